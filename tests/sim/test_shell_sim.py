"""The simulator of the whole shell: its seeds, its determinism, and what it finds in a broken shell.

Each of the mutants below is a bug that somebody could make in the shell; fifty seeds must find it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import pytest

from pairsync.core.effects import Apply, Flush, Journal
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.stream import StreamReceiver, StreamSender
from pairsync.core.units import NS_PER_S
from pairsync.guest import performer, replica
from pairsync.guest.performer import Performer
from pairsync.guest.volume import Volume
from pairsync.io.hub import Hub
from pairsync.storage.device import Device
from pairsync.storage.digesttable import DigestTable
from pairsync.storage.kept import Keeper
from pairsync.storage.metadata import MetadataStore
from pairsync.testing.shellsim import simulate
from pairsync.testing.shellsim.__main__ import COMMAND
from pairsync.testing.shellsim.network import WireSpeed, _Wire
from pairsync.testing.shellsim.profile import draw_profile
from pairsync.testing.shellsim.trace import Timers
from pairsync.testing.sim import run_seeds

MUTANT_SEEDS = 50


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What the hosts log would fill pages."""
    caplog.set_level(logging.CRITICAL + 1, "pairsync")


# -- the simulator itself ------------------------------------------------------------------------------------


def test_no_thread_takes_part() -> None:
    before = threading.active_count()
    simulate(5)
    assert threading.active_count() == before


class _Queue:
    """In the place of the simulator's timers."""

    def __init__(self) -> None:
        self.now = 0
        self.due: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []

    def now_ns(self) -> int:
        return self.now

    def at(self, when_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        self.due.append((when_ns, len(self.due), call, arguments))

    def run(self, until_ns: int) -> None:
        while self.due and min(self.due, key=lambda each: each[:2])[0] <= until_ns:
            first = min(self.due, key=lambda each: each[:2])
            self.due.remove(first)
            self.now = first[0]
            first[2](*first[3])
        self.now = until_ns


def test_what_a_cut_held_up_is_not_overtaken() -> None:
    """Something was held, and what was sent behind it is still under way when the cut ends."""
    queue = _Queue()
    speed = WireSpeed(delay_ns=1000, jitter_ns=0, ns_per_kib=0, window_bytes=1 << 20, piece_bytes=1 << 20)
    wire = _Wire(cast("Timers", queue), random.Random(1), speed)
    arrived: list[str] = []
    wire.carry(1, arrived.append, "first")
    queue.run(600)
    wire.carry(1, arrived.append, "second")
    wire.cut = True
    queue.run(1200)
    assert arrived == []
    wire.heal()
    queue.run(1 << 60)
    assert arrived == ["first", "second"]


@pytest.mark.slow
def test_many_seeds_hold_and_reach_everything() -> None:
    seeds = COMMAND.coverage_seeds
    summary = run_seeds(range(seeds), jobs=2, run=COMMAND.simulate)
    assert not summary.failures, "\n\n".join(map(COMMAND.report, summary.failures))
    assert not COMMAND.missing(summary.coverage)
    assert summary.requests > 50 * seeds


# -- mutants -------------------------------------------------------------------------------------------------


class Patch(Protocol):
    def __call__(self, monkeypatch: pytest.MonkeyPatch) -> None: ...


def journal_is_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performer, "journal_job", lambda *_: 0)


def journal_comes_after_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intent is said to be durable at once, and recorded when the next one comes."""
    late: dict[Performer, Journal] = {}
    real = Performer._journal

    def journal(self: Performer, effect: Journal) -> None:
        before = late.get(self)
        late[self] = effect
        self.session.journaled(effect.volume, effect.token, 0, self.now_ns())
        if before is not None and (before.volume, before.segment, before.generation) == (
            effect.volume,
            effect.segment,
            effect.generation,
        ):
            store = self._replicas[effect.volume].store
            replica.journal_job(store, before.segment, before.generation, before.extents)

    assert real is not journal
    monkeypatch.setattr(Performer, "_journal", journal)


def superblock_is_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performer, "persist_job", lambda *_: 0)


def flush_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performer, "flush_job", lambda _: 0)


def segments_are_given_up_before_the_bitmap(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_job(store: MetadataStore, pages: Mapping[int, bytes], release: Sequence[int]) -> int:
        for segment in release:
            store.release_segment(segment)
        return replica.save_job(store, pages, ()) if len(pages) > 1 else 0

    monkeypatch.setattr(performer, "save_job", save_job)


def applied_is_sent_before_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standby answers at once and writes when the next batch comes."""
    real = Performer._apply
    late: dict[Performer, Apply] = {}

    def apply(self: Performer, effect: Apply) -> None:
        if self.session.sources:
            real(self, effect)
            return
        before = late.pop(self, None)
        late[self] = effect
        if before is not None:
            replica.apply_job(self._replicas[before.volume].device, before.ops)
        self.session.applied(effect.volume, effect.token, None, self.now_ns())

    monkeypatch.setattr(Performer, "_apply", apply)


def standby_applies_in_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Performer._apply

    def apply(self: Performer, effect: Apply) -> None:
        ops = effect.ops if self.session.sources else list(reversed(effect.ops))
        real(self, effect._replace(ops=ops))

    monkeypatch.setattr(Performer, "_apply", apply)


def frames_arrive_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = StreamReceiver.accept

    def accept(self: StreamReceiver, first: int, frame_count: int, size_bytes: int) -> int:
        real(self, first, frame_count, size_bytes)
        return 0

    monkeypatch.setattr(StreamReceiver, "accept", accept)


def frames_are_lost_with_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def rewind(self: StreamSender[Any]) -> int:
        return 0

    monkeypatch.setattr(StreamSender, "rewind", rewind)


def nobody_is_told_that_a_session_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def announce_lost(self: Hub) -> None:
        self.session = None

    monkeypatch.setattr(Hub, "_announce_lost", announce_lost)


def zeroes_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resync reads find a hole where there is none any more: the standby keeps what it had."""

    def apply_job(device: Device, ops: Sequence[WriteOp]) -> Sequence[int] | None:
        return replica.apply_job(device, [op for op in ops if op.kind is not OpKind.TRIM])

    monkeypatch.setattr(performer, "apply_job", apply_job)


def writes_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Volume.submit

    def submit(self: Volume, ops: Sequence[WriteOp], done: Callable[[Sequence[int] | None], None]) -> None:
        done(None)
        real(self, ops, lambda _: None)

    monkeypatch.setattr(Volume, "submit", submit)


def what_is_overwritten_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "preserve", lambda *_: None)


def the_way_back_goes_before_adoption(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first flush of a resync."""
    real = Performer._flush

    def flush(self: Performer, effect: Flush) -> None:
        keeper = self._replicas[effect.volume].keeper
        if keeper is not None and keeper.undo is not None:
            keeper.undo.discard()
            keeper._undo = None
        real(self, effect)

    monkeypatch.setattr(Performer, "_flush", flush)


def what_was_written_alone_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "_finish", lambda *_: None)


MUTANTS: list[Patch] = [
    journal_is_not_durable,
    journal_comes_after_the_write,
    superblock_is_not_durable,
    flush_does_nothing,
    segments_are_given_up_before_the_bitmap,
    applied_is_sent_before_it_is,
    standby_applies_in_reverse,
    frames_arrive_twice,
    frames_are_lost_with_a_path,
    nobody_is_told_that_a_session_is_lost,
    zeroes_are_not_written,
    writes_are_answered_at_once,
    what_is_overwritten_is_not_kept,
    the_way_back_goes_before_adoption,
    what_was_written_alone_is_not_kept,
]


def test_damage_that_is_copied_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a resync reads is compared with its digest: nothing else keeps it from the good copy."""
    monkeypatch.setattr(DigestTable, "compare", lambda *_: [])
    tried = 0
    for seed in range(1000):
        profile = draw_profile(random.Random(f"profile {seed}"))
        dies = {"crash-active", "power-active"} & profile.faults.keys()
        if not dies or "flip-active" not in profile.faults or profile.storm_ns > 2 * NS_PER_S:
            continue
        tried += 1
        outcome = simulate(seed)
        if outcome.failure is not None:
            assert outcome.rule in {"dirty-superset", "lost-write"}, outcome.failure
            return
    pytest.fail(f"{tried} seeds have not found it")


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_found(mutant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    for seed in range(MUTANT_SEEDS):
        outcome = simulate(seed)
        if outcome.failure is not None:
            print(f"seed {seed}: {outcome.failure[:150]}")
            return
    pytest.fail(f"{MUTANT_SEEDS} seeds have not found it")
