"""Places of half-open connections: bounded by address and in all, the peer's apart, the oldest gives way."""

from __future__ import annotations

import contextlib

import trio

from pairsync.core.units import NS_PER_S
from pairsync.io.admission import (
    HALF_OPEN_ADDRESS_MAX,
    HALF_OPEN_PEER_MAX,
    HALF_OPEN_STRANGERS_MAX,
    USED_TOKENS_MAX,
    Admission,
    Pace,
    Places,
    UsedTokens,
)


class Crowd:
    """Tasks that take a place and keep it until they are thrown out."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.admission = Admission(frozenset({"peer"}))
        self.thrown_out: list[int] = []
        self._nursery = nursery
        self._forever = trio.Event()
        self._count = 0

    async def enter(self, *hosts: str) -> None:
        for host in hosts:
            self._nursery.start_soon(self._stay, host, self._count)
            self._count += 1
            await trio.testing.wait_all_tasks_blocked()

    async def _stay(self, host: str, number: int) -> None:
        with self.admission.place(host) as scope:
            await self._forever.wait()
        if scope.cancelled_caught:
            self.thrown_out.append(number)


async def test_an_address_has_few_places_and_the_oldest_gives_way() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        await crowd.enter("other", *["one"] * (HALF_OPEN_ADDRESS_MAX + 2))
        assert crowd.thrown_out == [1, 2]
        assert crowd.admission.half_open == HALF_OPEN_ADDRESS_MAX + 1
        nursery.cancel_scope.cancel()


async def test_strangers_together_have_few_places_and_none_of_the_peers() -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        await crowd.enter("peer", *(f"stranger {n}" for n in range(HALF_OPEN_STRANGERS_MAX + 3)))
        assert crowd.thrown_out == [1, 2, 3]
        await crowd.enter(*["peer"] * HALF_OPEN_PEER_MAX)
        assert crowd.thrown_out == [1, 2, 3, 0]
        assert crowd.admission.half_open == HALF_OPEN_STRANGERS_MAX + HALF_OPEN_PEER_MAX
        nursery.cancel_scope.cancel()
    assert crowd.admission.half_open == 0


async def test_a_place_is_given_back() -> None:
    admission = Admission(frozenset())
    with contextlib.suppress(ValueError), admission.place("one"):
        assert admission.half_open == 1
        raise ValueError
    assert admission.half_open == 0


def test_pace() -> None:
    pace = Pace(10, 0)
    assert [pace.delay_ns(0) for _ in range(11)] == [0] * 10 + [NS_PER_S // 10]
    assert pace.delay_ns(NS_PER_S // 10) == 0
    assert pace.delay_ns(NS_PER_S // 10) > 0
    assert [pace.delay_ns(100 * NS_PER_S) for _ in range(11)][-1] > 0  # never more than one second's worth


def test_used_tokens_are_remembered_for_a_while() -> None:
    used = UsedTokens()
    for number in range(USED_TOKENS_MAX + 1):
        used.add(number.to_bytes(16, "big"))
    assert (0).to_bytes(16, "big") not in used
    assert (1).to_bytes(16, "big") in used


async def test_places_and_known_addresses_are_the_owners() -> None:
    known: set[str] = set()
    admission = Admission(known, Places(address=2, strangers=3, peers=1))
    async with trio.open_nursery() as nursery:
        scopes: list[trio.CancelScope] = []

        async def stay(host: str) -> None:
            with admission.place(host) as scope:
                scopes.append(scope)
                await trio.sleep_forever()

        for host in ("one", "one", "one", "two", "three"):
            nursery.start_soon(stay, host)
            await trio.testing.wait_all_tasks_blocked()
        assert [scope.cancel_called for scope in scopes] == [True, True, False, False, False]
        known.add("one")
        nursery.start_soon(stay, "one")
        await trio.testing.wait_all_tasks_blocked()
        assert [scope.cancel_called for scope in scopes] == [True, True, True, False, False, False]
        nursery.cancel_scope.cancel()
