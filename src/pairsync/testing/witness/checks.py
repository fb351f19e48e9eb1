"""What every witness store must do, as checks of one that is really served.

The values are those of ``core.witness``, the errors those of ``io.witnessstore``.  Random choices come from a
fixed seed; which of several hosts is served first is up to the store, so a history is judged, not foretold.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

import trio

from pairsync.core.witness import INCARNATION_BYTES, VALUE_BYTES_MAX, Conflict, Snapshot, WitnessKey
from pairsync.errors import ConfigError, PeerError
from pairsync.io.witnessstore import WitnessStore

from .bench import WitnessBench, WitnessBroken
from .history import Operation, judge_history

__all__ = [
    "LOSS_CHECKS",
    "RESTART_CHECKS",
    "WITNESS_CHECKS",
    "WitnessCheck",
    "first_look_makes_an_empty_register",
    "first_looks_at_once_agree",
    "guests_are_apart",
    "histories_are_linearizable",
    "histories_with_a_restart_are_linearizable",
    "lost_memory_is_another_incarnation",
    "one_of_many_wins",
    "restart_keeps_what_was_answered",
    "stale_swap_conflicts_and_changes_nothing",
    "swap_stores_and_everybody_sees_it",
    "too_long_value_is_refused",
    "values_are_kept_as_they_are",
]

WitnessCheck: TypeAlias = Callable[[WitnessBench], Awaitable[None]]

PATIENCE_S: Final = 30.0
"""A bound for a store at a second's distance that elects a leader; never a wait."""

RETRY_S: Final = 0.05
"""Between two attempts to reach a store that is away."""

HOSTS: Final = 4
"""Who use a register at once in the histories: twice as many as a pair has."""

OPERATIONS: Final = 12
"""Of each of them: enough to meet, few enough to be judged at once."""

GIVE_UP_S: Final = (0.0, 0.0005, 0.002, 0.01)
"""How soon an impatient host gives up."""

_SEED: Final = 4


@asynccontextmanager
async def _hosts(bench: WitnessBench, count: int) -> AsyncIterator[list[WitnessStore]]:
    with trio.fail_after(PATIENCE_S):
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(bench.open()) for _ in range(count)]


async def _patiently(store: WitnessStore, key: WitnessKey) -> Snapshot:
    """Look until the store can be reached."""
    while True:
        try:
            return await store.get(key)
        except PeerError:
            await trio.sleep(RETRY_S)


def _require(truth: bool, what: str, *shown: object) -> None:
    if not truth:
        raise WitnessBroken(f"{what}: {', '.join(map(repr, shown))}")


async def _swapped(store: WitnessStore, key: WitnessKey, version: int, value: bytes) -> Snapshot:
    done = await store.swap(key, version, value)
    if isinstance(done, Conflict):
        raise WitnessBroken(f"a swap at the current version {version} was refused: {done}")
    _require(done.version > version and done.value == value, "a swap answers what it did not store", done)
    return done


# -- one after the other -------------------------------------------------------------------------------------


async def first_look_makes_an_empty_register(bench: WitnessBench) -> None:
    """The register has an incarnation from then on, the same for everybody."""
    async with _hosts(bench, 2) as (one, other):
        key = bench.key("first-look")
        first = await _patiently(one, key)
        _require(first.value is None, "a new register holds something", first)
        _require(len(first.incarnation) == INCARNATION_BYTES, "an incarnation has 8 bytes", first)
        for store in (one, other):
            again = await _patiently(store, key)
            _require(again == first, "two looks at an untouched register differ", first, again)


async def swap_stores_and_everybody_sees_it(bench: WitnessBench) -> None:
    """The version grows with every swap, also with one of the same value."""
    async with _hosts(bench, 2) as (one, other):
        key = bench.key("swap")
        now = await _patiently(one, key)
        writer, reader = one, other
        for value in (b"a", b"b", b"b", b""):
            after = await _swapped(writer, key, now.version, value)
            _require(after.incarnation == now.incarnation, "a swap changes the incarnation", now, after)
            seen = await reader.get(key)
            _require(seen == after, "another host sees something else than was stored", after, seen)
            now = after
            writer, reader = reader, writer


async def stale_swap_conflicts_and_changes_nothing(bench: WitnessBench) -> None:
    """A conflict tells how the register is; a version that was never reached is none either."""
    async with _hosts(bench, 2) as (one, other):
        key = bench.key("stale")
        first = await _patiently(one, key)
        second = await _swapped(one, key, first.version, b"second")
        for version in (first.version, second.version + 1, second.version - 1, 0):
            done = await other.swap(key, version, b"never")
            if not isinstance(done, Conflict):
                raise WitnessBroken(f"a swap at version {version} was done: {done}")
            _require(done.current == second, "a conflict tells something else than there is", second, done)
        seen = await other.get(key)
        _require(seen == second, "a swap that was refused changed something", second, seen)


async def values_are_kept_as_they_are(bench: WitnessBench) -> None:
    """Every byte, none at all, as many as there may be."""
    async with _hosts(bench, 2) as (one, other):
        key = bench.key("values")
        now = await _patiently(one, key)
        everything = bytes(range(256)) * (VALUE_BYTES_MAX // 256)
        for value in (b"", bytes(VALUE_BYTES_MAX), everything, b'"\\\n', b"\xff"):
            now = await _swapped(one, key, now.version, value)
            seen = await other.get(key)
            _require(seen == now, "a value came back as another one", now, seen)


async def too_long_value_is_refused(bench: WitnessBench) -> None:
    """The caller is told so, and nothing changes."""
    async with _hosts(bench, 1) as (one,):
        key = bench.key("too-long")
        before = await _patiently(one, key)
        try:
            await one.swap(key, before.version, bytes(VALUE_BYTES_MAX + 1))
        except ConfigError:
            after = await one.get(key)
            _require(after == before, "a value that was refused changed something", before, after)
            return
        raise WitnessBroken(f"a value of {VALUE_BYTES_MAX + 1} bytes was taken")


async def guests_are_apart(bench: WitnessBench) -> None:
    """Names that are alike, long, or full of what separates other things."""
    names = [
        "guest",
        "guest ",
        "Guest",
        "guest/1",
        "guest\0",
        "guest%2f1",
        "g" * 255,
        "\N{SNOWMAN}" * 85,
        "/",
        "..",
    ]
    async with _hosts(bench, 1) as (one,):
        found: dict[str, Snapshot] = {}
        for name in names:
            first = await _patiently(one, bench.key(name))
            found[name] = await _swapped(one, bench.key(name), first.version, name.encode())
        for name in names:
            seen = await one.get(bench.key(name))
            _require(seen == found[name], f"the register of {name!r:.20} was touched", found[name], seen)
        incarnations = {each.incarnation for each in found.values()}
        _require(len(incarnations) == len(names), "two registers share an incarnation", found)


# -- at once -------------------------------------------------------------------------------------------------


async def one_of_many_wins(bench: WitnessBench) -> None:
    """Of swaps at the same version exactly one is done, and the others are told its value."""
    async with _hosts(bench, HOSTS) as stores:
        key = bench.key("race")
        for turn in range(8):
            before = await _patiently(stores[0], key)
            done: list[Snapshot | Conflict] = []

            async def race(number: int, store: WitnessStore, version: int, turn: int) -> None:
                done.append(await store.swap(key, version, f"{turn}/{number}".encode()))  # noqa: B023

            async with trio.open_nursery() as nursery:
                for number, store in enumerate(stores):
                    nursery.start_soon(race, number, store, before.version, turn)
            winners = [each for each in done if isinstance(each, Snapshot)]
            _require(len(winners) == 1, "several or none won", *done)
            losers = [each.current for each in done if isinstance(each, Conflict)]
            _require(all(each == winners[0] for each in losers), "a loser saw no winner", *done)


async def first_looks_at_once_agree(bench: WitnessBench) -> None:
    """Hosts that make a register at the same moment make the same one."""
    async with _hosts(bench, HOSTS) as stores:
        await _patiently(stores[0], bench.key("warm"))
        for turn in range(4):
            found: list[Snapshot] = []

            async def look(store: WitnessStore, turn: int) -> None:
                found.append(await _patiently(store, bench.key(f"born-{turn}")))  # noqa: B023

            async with trio.open_nursery() as nursery:
                for store in stores:
                    nursery.start_soon(look, store, turn)
            _require(len(set(found)) == 1, "a register was made twice", *found)


async def histories_are_linearizable(bench: WitnessBench) -> None:
    """Random looks and swaps of several hosts; some give up before they have their answer."""
    for turn in range(4):
        random = Random(f"{_SEED}/{turn}")  # noqa: S311  # repeatable, no secret
        await _history(bench, f"history-{turn}", random, impatience=0.25 * (turn % 2))


@dataclass
class _Script:
    """What hosts do in a history, and what came of it."""

    key: WitnessKey
    random: Random
    impatience: float
    operations: list[Operation]

    async def play(self, store: WitnessStore, host: int) -> None:
        """One host: look, then swap at what was seen last, or look again."""
        known = await self._one(store, 0, None)
        for step in range(OPERATIONS):
            value = None if self.random.random() < 0.3 else f"{host}/{step}".encode()
            known = await self._one(store, known, value)

    async def _one(self, store: WitnessStore, known: int, value: bytes | None) -> int:
        hurried = self.random.random() < self.impatience
        give_up_s = self.random.choice(GIVE_UP_S) if hurried else math.inf
        called, answered = trio.current_time(), math.inf
        result: Snapshot | Conflict | None = None
        try:
            with trio.move_on_after(give_up_s):
                result = await (store.get(self.key) if value is None else store.swap(self.key, known, value))
                answered = trio.current_time()
        except PeerError:
            await trio.sleep(RETRY_S)
        version = None if value is None else known
        self.operations.append(Operation(called, answered, version, value, result))
        shown = result.current if isinstance(result, Conflict) else result
        return known if shown is None else shown.version


async def _history(
    bench: WitnessBench,
    guest: str,
    random: Random,
    *,
    impatience: float = 0.0,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> None:
    async with _hosts(bench, HOSTS) as stores:
        key = bench.key(guest)
        initial = await _patiently(stores[0], key)
        script = _Script(key, random, impatience, [])
        async with trio.open_nursery() as nursery:
            for host, store in enumerate(stores):
                nursery.start_soon(script.play, store, host)
            if meanwhile is not None:
                nursery.start_soon(meanwhile)
        called = trio.current_time()
        last = await _patiently(stores[-1], key)
        script.operations.append(Operation(called, trio.current_time(), None, None, last))
        judge_history(initial, script.operations)


# -- that goes away, or forgets ------------------------------------------------------------------------------


async def restart_keeps_what_was_answered(bench: WitnessBench) -> None:
    """Killed and started again, a store holds the same, under the same incarnation."""
    async with _hosts(bench, 1) as (one,):
        key = bench.key("restart")
        first = await _patiently(one, key)
        stored = await _swapped(one, key, first.version, b"kept")
        await bench.restart()
        seen = await _patiently(one, key)
        _require(seen == stored, "a restart changed the register", stored, seen)


async def histories_with_a_restart_are_linearizable(bench: WitnessBench) -> None:
    """Killed while several hosts use a register: what was answered stands, what was not is done or not."""
    random = Random(_SEED)  # noqa: S311  # repeatable, no secret
    await _history(bench, "killed", random, meanwhile=bench.restart)


async def lost_memory_is_another_incarnation(bench: WitnessBench) -> None:
    """A store that lost everything says so, and no swap from before is done in it."""
    async with _hosts(bench, 1) as (one,):
        key = bench.key("forget")
        first = await _patiently(one, key)
        before = await _swapped(one, key, first.version, b"lost")
        await bench.forget()
        after = await _patiently(one, key)
        _require(
            after.incarnation != before.incarnation, "the incarnation outlived the memory", before, after
        )
        _require(after.value is None, "a new incarnation holds something", after)
        for version in (before.version, first.version):
            done = await one.swap(key, version, b"from before")
            _require(isinstance(done, Conflict), "a swap from before was done", before, done)


WITNESS_CHECKS: Final[tuple[WitnessCheck, ...]] = (
    first_look_makes_an_empty_register,
    swap_stores_and_everybody_sees_it,
    stale_swap_conflicts_and_changes_nothing,
    values_are_kept_as_they_are,
    too_long_value_is_refused,
    guests_are_apart,
    one_of_many_wins,
    first_looks_at_once_agree,
    histories_are_linearizable,
)
"""What every store must pass."""

RESTART_CHECKS: Final[tuple[WitnessCheck, ...]] = (
    restart_keeps_what_was_answered,
    histories_with_a_restart_are_linearizable,
)
"""For a store whose process can be killed."""

LOSS_CHECKS: Final[tuple[WitnessCheck, ...]] = (lost_memory_is_another_incarnation,)
"""For a store that can be made to lose its memory."""
