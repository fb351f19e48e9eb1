"""A guest is moved home when it is time, and a move that fails is no end of it.

With real hosts: `tests/e2e/test_failover.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import trio
import trio.testing

from pairsync.core.units import NS_PER_S
from pairsync.errors import ArbitrationError, ClosedError, ConfigError, InternalError
from pairsync.guest.arbitration import Arbitration
from pairsync.guest.guest import Guest
from pairsync.io.keys import host_subject, make_identity
from pairsync.node.homing import is_home, take_home

AFTER_S = 10


class Pair:
    """What is looked at, and asked to move: each time it does what is told."""

    name = "db1"

    def __init__(self, told: list[Exception | None]) -> None:
        self.serves = True
        self.in_sync = True
        self.moved_s: list[float] = []
        self._told: Iterator[Exception | None] = iter(told)

    async def move(self) -> None:
        self.moved_s.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        said = next(self._told)
        if said is not None:
            raise said
        self.serves = False

    async def run(self) -> None:
        def now_ns() -> int:
            return int(trio.current_time() * NS_PER_S)

        either = cast("Any", self)
        await take_home(cast("Arbitration", either), cast("Guest", either), AFTER_S * NS_PER_S, now_ns)


def test_both_hosts_have_the_same_home() -> None:
    alpha, beta = (make_identity(host_subject(each)).certificate_pem for each in ("alpha", "beta"))
    assert is_home("alpha", alpha, beta)
    assert not is_home("alpha", beta, alpha)
    for own, peer in ((alpha, beta), (beta, alpha)):
        with pytest.raises(ConfigError, match=r"\[register\]: home: 'alhpa' is neither this host, .*'beta'"):
            is_home("alhpa", own, peer)


def test_a_name_that_both_hosts_have_is_nobodys_home() -> None:
    one, other = (make_identity(host_subject("node")).certificate_pem for _ in range(2))
    with pytest.raises(ConfigError, match="both hosts have the name 'node'"):
        is_home("node", one, other)


async def test_a_move_that_fails_is_tried_again_later(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    pair = Pair([ArbitrationError("the other host went silent"), ClosedError("the volume is closed"), None])
    nursery.start_soon(pair.run)
    began_s = trio.current_time()
    await trio.sleep(20 * AFTER_S)
    waited_s = [later - before for before, later in zip([began_s, *pair.moved_s], pair.moved_s, strict=False)]
    assert waited_s == pytest.approx([AFTER_S, 2 * AFTER_S, 4 * AFTER_S], abs=1)


@pytest.mark.parametrize("lacking", ["serves", "in_sync"])
async def test_who_does_not_serve_or_has_no_home_in_sync_moves_nothing(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, lacking: str
) -> None:
    pair = Pair([])
    setattr(pair, lacking, False)
    nursery.start_soon(pair.run)
    await trio.sleep(20 * AFTER_S)
    assert not pair.moved_s


async def test_our_own_bug_is_not_hidden(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(InternalError):
        await Pair([InternalError("an invariant does not hold")]).run()
