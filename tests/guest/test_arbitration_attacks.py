"""What an adversary has tried against an arbitrated pair, each of which has worked once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from tests.guest.halves import TIMING, Both, agreed, noise, until
from tests.guest.harness import Host, Pair, in_time

from pairsync.core.arbiter import Arbiter
from pairsync.core.units import NS_PER_S


@pytest.fixture
def both(pair: Pair) -> Both:
    return Both(pair)


def exchange_disk(both: Both, host: Host) -> None:
    """Empty files where the replica's were; the register's memory stays."""
    for file in Path(both.pair.base / host).glob("vda*"):
        file.unlink()
    both.pair.create(hosts=host)


async def test_an_exchanged_disk_is_not_promoted_though_the_grant_calls_its_host_in_sync(both: Both) -> None:
    async with in_time():
        async with both.whole() as (first, _):
            await first.write(3)
        exchange_disk(both, "b")
        async with both.host("b") as second:
            await trio.sleep(1.5 * TIMING.failover_ns / NS_PER_S)
            assert not second.serves
            async with both.host("a") as first:
                await until(lambda: first.serves)
                assert await first.read(3) == noise(3)
                await until(lambda: agreed(first) and agreed(second) and first.guest.in_sync)
                await first.arbitration.move()
                await until(lambda: second.serves)
                assert await second.read(3) == noise(3)


async def test_a_permit_that_was_asked_for_is_taken_back_too(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_time(), both.whole() as (first, _):

        def permitted() -> bool:
            return first.guest.session._permit.alone

        assert not permitted()
        monkeypatch.setattr(Arbiter, "peer_excluded", True)
        first.arbitration.ask_alone()
        assert permitted()
        monkeypatch.setattr(Arbiter, "peer_excluded", False)
        await until(lambda: not permitted())
