"""A preferred witness and an alternate one, each a process of its own, as two real hosts use them."""

from __future__ import annotations

import signal

import pytest
import trio
from tests.e2e.conftest import MakeDirectory
from tests.e2e.sites import FAILOVER_S, WITNESSES, Site, a_site

pytestmark = pytest.mark.slow

BACK_S = 30.0
"""The preferred witness is looked for every few seconds at first."""


async def _votes(site: Site, host: str, witness: str) -> None:
    """Wait until that witness is one of three who decide, by the word of the host on which the guest runs."""
    while True:
        grant = await site.agreed(host)
        if (grant["witness"], grant["sole"]) == (WITNESSES[witness], False):
            return
        await trio.sleep(0.2)


async def test_the_alternate_witness_votes_until_the_preferred_one_is_back(
    make_directory: MakeDirectory,
) -> None:
    async with a_site(make_directory(), ("w", "v")) as site:
        await site.init()
        for name in ("w", "v", "b", "a"):
            await site.start(name)
        await site.grant("a")
        await _votes(site, "a", "w")
        async with await site.client("a") as client:
            await client.write(0, b"x" * 4096)

        await site.end("w", signal.SIGKILL)
        await _votes(site, "a", "v")
        await site.end("a", signal.SIGKILL)  # with the alternate one the other host takes over
        began = trio.current_time()
        async with await site.client("b") as client:
            assert await client.read(0, 4096) == b"x" * 4096
        assert trio.current_time() - began < 2 * FAILOVER_S

        await site.start("a")
        await site.grant("b")
        await _votes(site, "b", "v")
        await site.start("w")
        with trio.fail_after(BACK_S):
            await _votes(site, "b", "w")
