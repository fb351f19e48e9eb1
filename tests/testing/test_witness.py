"""The witness suite passes the model, and finds what broken stores do."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.errors import PeerLost
from pairsync.io.witnessstore import WitnessStore
from pairsync.testing.witness import (
    LOSS_CHECKS,
    RESTART_CHECKS,
    WITNESS_CHECKS,
    MemoryBench,
    MemoryWitness,
    Operation,
    WitnessBench,
    WitnessBroken,
    WitnessCheck,
    judge_history,
)
from pairsync.testing.witness import checks as c

PAIR = b"one pair of two!"
KEY = WitnessKey(PAIR, "db1")
EVERY_CHECK = [*WITNESS_CHECKS, *RESTART_CHECKS, *LOSS_CHECKS]
INITIAL = Snapshot(b"12345678", 10, None)


@pytest.mark.parametrize("check", EVERY_CHECK, ids=lambda check: check.__name__)
async def test_the_model_passes(check: WitnessCheck) -> None:
    await check(MemoryBench(PAIR))


async def test_the_model_loses_calls_and_answers_when_told() -> None:
    witness = MemoryWitness()
    first = await witness.get(KEY)
    witness.reachable = False
    with pytest.raises(PeerLost, match="not reachable"):
        await witness.swap(KEY, first.version, b"x")
    witness.reachable, witness.answers = True, False
    assert witness.look(KEY) == first
    with pytest.raises(PeerLost, match="answer"):
        await witness.swap(KEY, first.version, b"x")
    assert witness.look(KEY).value == b"x"
    await witness.renew(KEY, Snapshot(first.incarnation, first.version + 2, None))
    assert witness.look(KEY).incarnation != first.incarnation


# -- stores that are broken ----------------------------------------------------------------------------------


class Blind(MemoryWitness):
    """Stores whatever the version is."""

    def put(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        return super().put(key, self.look(key).version, value)


class Torn(MemoryWitness):
    """Compares first and stores later."""

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        current = self.look(key)
        if current.version != version:
            return Conflict(current)
        await trio.lowlevel.checkpoint()
        return super().put(key, self.look(key).version, value)


class Stale(MemoryWitness):
    """Answers every other look from memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[WitnessKey, Snapshot] = {}
        self._turn = itertools.count()

    async def get(self, key: WitnessKey) -> Snapshot:
        fresh = await super().get(key)
        old = self._cache.get(key)
        if old is not None and next(self._turn) % 2:
            return old
        self._cache[key] = fresh
        return fresh


class Lenient(MemoryWitness):
    """Cuts what is too long."""

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        return await super().swap(key, version, value[:1024])


class Mixing(MemoryWitness):
    """Takes names for the same that are not."""

    def look(self, key: WitnessKey) -> Snapshot:
        return super().look(WitnessKey(key.pair_id, key.guest.strip().lower()))

    def put(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        return super().put(WitnessKey(key.pair_id, key.guest.strip().lower()), version, value)


class Counting(MemoryWitness):
    """Counts versions from zero in every incarnation, and draws the same incarnation again."""

    def __init__(self) -> None:
        super().__init__(bytes)


class Falsifying(MemoryWitness):
    """Keeps no empty value."""

    def put(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        done = super().put(key, version, value)
        if not value and isinstance(done, Snapshot):
            self._registers[key] = Snapshot(done.incarnation, done.version, None)
        return done


class Forgetful(MemoryBench):
    """Loses what it had at a restart, and does not say so."""

    async def restart(self) -> None:
        await super().restart()
        now = self.witness._registers
        for key, one in list(now.items()):
            now[key] = Snapshot(one.incarnation, one.version - 1, None)


def bench_of(witness: Callable[[], MemoryWitness]) -> WitnessBench:
    bench = MemoryBench(PAIR)
    bench.witness = witness()
    return bench


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Blind, c.stale_swap_conflicts_and_changes_nothing),
        (Torn, c.one_of_many_wins),
        (Torn, c.histories_are_linearizable),
        (Stale, c.histories_are_linearizable),
        (Lenient, c.too_long_value_is_refused),
        (Mixing, c.guests_are_apart),
        (Counting, c.lost_memory_is_another_incarnation),
        (Falsifying, c.values_are_kept_as_they_are),
    ],
)
async def test_a_broken_store_is_found(broken: type[MemoryWitness], check: WitnessCheck) -> None:
    with pytest.RaisesGroup(WitnessBroken, allow_unwrapped=True, flatten_subgroups=True):
        await check(bench_of(broken))


async def test_a_store_that_forgets_at_a_restart_is_found() -> None:
    with pytest.raises(WitnessBroken, match="a restart changed"):
        await c.restart_keeps_what_was_answered(Forgetful(PAIR))


async def test_a_bench_says_what_it_cannot() -> None:
    class Plain(WitnessBench):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[WitnessStore]:
            yield MemoryWitness()

    for impossible in (Plain(PAIR).restart, Plain(PAIR).forget):
        with pytest.raises(NotImplementedError, match="Plain cannot"):
            await impossible()


# -- the judge -----------------------------------------------------------------------------------------------


def at(version: int, value: bytes | None) -> Snapshot:
    return Snapshot(INITIAL.incarnation, version, value)


def look(called: float, answered: float, result: Snapshot) -> Operation:
    return Operation(called, answered, None, None, result)


def swap(
    called: float, answered: float, version: int, value: bytes, result: Snapshot | Conflict | None
) -> Operation:
    return Operation(called, answered, version, value, result)


RIGHT: dict[str, list[Operation]] = {
    "one after the other": [
        swap(0, 1, 10, b"a", at(11, b"a")),
        swap(2, 3, 10, b"b", Conflict(at(11, b"a"))),
        look(4, 5, at(11, b"a")),
    ],
    "at once, the later call first": [
        swap(0, 9, 11, b"b", at(12, b"b")),
        swap(1, 9, 10, b"a", at(11, b"a")),
        look(2, 9, INITIAL),
        look(3, 9, at(11, b"a")),
    ],
    "a lost answer of what was done": [swap(0, math.inf, 10, b"a", None), look(2, 3, at(14, b"a"))],
    "done after it was given up": [
        swap(0, math.inf, 10, b"a", None),
        look(2, 3, INITIAL),
        look(4, 5, at(11, b"a")),
    ],
    "a lost answer of what was never done": [
        swap(0, math.inf, 10, b"a", None),
        swap(1, 2, 10, b"b", at(11, b"b")),
        look(3, 4, at(11, b"b")),
    ],
    "two lost answers on end": [
        swap(0, math.inf, 10, b"a", None),
        swap(0, math.inf, 11, b"b", None),
        look(2, 3, at(12, b"b")),
    ],
}
WRONG: dict[str, list[Operation]] = {
    "a read from the past": [swap(0, 1, 10, b"a", at(11, b"a")), look(2, 3, INITIAL)],
    "two winners": [swap(0, 9, 10, b"a", at(11, b"a")), swap(0, 9, 10, b"b", at(11, b"b"))],
    "a value from nowhere": [look(0, 1, at(11, b"x"))],
    "back and forth": [
        swap(0, math.inf, 10, b"a", None),
        look(2, 3, at(11, b"a")),
        look(4, 5, INITIAL),
    ],
    "a conflict without a winner": [swap(0, 1, 10, b"a", Conflict(at(11, b"x")))],
    "a conflict with its own version": [swap(0, 1, 10, b"a", Conflict(INITIAL))],
    "a lost swap under two versions": [
        swap(0, math.inf, 10, b"a", None),
        look(2, 3, at(11, b"a")),
        look(4, 5, at(12, b"a")),
    ],
    "a version that does not grow": [swap(0, 1, 10, b"a", at(10, b"a"))],
    "another incarnation": [look(0, 1, Snapshot(b"87654321", 10, None))],
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_is_explained(name: str) -> None:
    judge_history(INITIAL, RIGHT[name])


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_found(name: str) -> None:
    with pytest.raises(WitnessBroken):
        judge_history(INITIAL, WRONG[name])


def test_values_that_are_not_unique_cannot_be_judged() -> None:
    twice = [swap(0, 1, 10, b"a", at(11, b"a")), swap(2, 3, 11, b"a", at(12, b"a"))]
    with pytest.raises(ValueError, match="unique"):
        judge_history(INITIAL, twice)


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_of_a_true_register_are_explained_and_a_changed_one_is_not(seed: int) -> None:
    random = Random(seed)
    witness = MemoryWitness(random.randbytes)
    initial = witness.look(KEY)
    history: list[Operation] = []
    for number in range(40):
        moment = float(number)
        called, answered = moment - random.random() * 5, moment + random.random() * 5
        seen = witness.look(KEY)
        if random.random() < 0.4:
            history.append(look(called, answered, seen))
            continue
        version = seen.version - random.randrange(2)
        value = str(number).encode()
        done = witness.put(KEY, version, value)
        lost = random.random() < 0.2
        history.append(swap(called, math.inf if lost else answered, version, value, None if lost else done))
    judge_history(initial, history)
    broken = [*history, look(100, 101, witness.look(KEY)), look(102, 103, initial)]
    with pytest.raises(WitnessBroken):
        judge_history(initial, broken)
