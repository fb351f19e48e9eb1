"""Keeping ahead: many batches in one go, and nothing that depends on it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError
from pairsync.storage.ahead import AHEAD_BYTES_MAX, Ahead

WAIT_S = 20.0


def batch(block: int, length: int = BLOCK_BYTES) -> list[WriteOp]:
    return [WriteOp(OpKind.ZERO, block * BLOCK_BYTES, length)]


class Log:
    """Keeps nothing; says what it was given, and stands still while it is told to."""

    def __init__(self) -> None:
        self.groups: list[list[WriteOp]] = []
        self.begun = threading.Event()
        self.may_go = threading.Event()
        self.error: BaseException | None = None

    def keep(self, ops: Sequence[WriteOp]) -> None:
        self.begun.set()
        assert self.may_go.wait(WAIT_S)
        self.groups.append(list(ops))
        if self.error is not None:
            raise self.error


@pytest.fixture
def log() -> Log:
    return Log()


def test_what_waits_is_kept_in_one_go_and_in_order(log: Log) -> None:
    ahead = Ahead(log.keep, "vda")
    batches = [batch(block) for block in range(5)]
    ahead.announce(batches[0])
    assert log.begun.wait(WAIT_S)
    for each in batches[1:]:
        ahead.announce(each)
    log.may_go.set()
    for each in batches:
        ahead.wait(each)
    assert log.groups == [batches[0], [op for each in batches[1:] for op in each]]
    assert ahead.close(WAIT_S)


def test_one_go_is_bounded_and_a_batch_is_never_divided(log: Log) -> None:
    ahead = Ahead(log.keep, "vda")
    first = batch(0)
    large = [batch(each, AHEAD_BYTES_MAX // 2 + BLOCK_BYTES) for each in (1, 2)]
    larger = batch(3, 2 * AHEAD_BYTES_MAX)
    ahead.announce(first)
    assert log.begun.wait(WAIT_S)
    for each in (*large, larger):
        ahead.announce(each)
    log.may_go.set()
    ahead.wait(larger)
    assert log.groups == [first, large[0], large[1], larger]
    assert ahead.close(WAIT_S)


def test_small_writes_count_as_the_blocks_that_are_kept_of_them(log: Log) -> None:
    """The lane waits for the whole go: of writes of one byte that was a gigabyte."""
    ahead = Ahead(log.keep, "vda")
    first = batch(0)
    half = AHEAD_BYTES_MAX // BLOCK_BYTES // 2
    small = [[WriteOp(OpKind.ZERO, block * BLOCK_BYTES, 1) for block in range(half)] for _ in range(5)]
    ahead.announce(first)
    assert log.begun.wait(WAIT_S)
    for each in small:
        ahead.announce(each)
    log.may_go.set()
    ahead.wait(small[-1])
    assert [len(group) for group in log.groups] == [1, 2 * half, 2 * half, half]
    assert ahead.close(WAIT_S)


def test_a_batch_that_was_not_announced_is_not_waited_for(log: Log) -> None:
    ahead = Ahead(log.keep, "vda")
    announced = batch(1)
    ahead.announce(announced)
    assert log.begun.wait(WAIT_S)
    ahead.wait(batch(1))  # the same blocks, another batch
    log.may_go.set()
    assert ahead.close(WAIT_S)


def test_an_error_is_for_the_lane_to_meet(log: Log) -> None:
    log.error = BackendError("full", 28)
    log.may_go.set()
    ahead = Ahead(log.keep, "vda")
    for block in range(3):
        each = batch(block)
        ahead.announce(each)
        ahead.wait(each)
    assert len(log.groups) == 3
    assert ahead.close(WAIT_S)


def test_who_waits_goes_on_when_it_is_closed_or_hangs(log: Log) -> None:
    ahead = Ahead(log.keep, "vda")
    hanging, behind = batch(0), batch(1)
    ahead.announce(hanging)
    assert log.begun.wait(WAIT_S)
    ahead.announce(behind)
    waiter = threading.Thread(target=ahead.wait, args=(behind,))
    waiter.start()
    assert not ahead.close(0.05)  # it keeps on hanging
    waiter.join(WAIT_S)
    assert not waiter.is_alive()
    ahead.announce(batch(2))  # nobody will keep it, and nobody has to wait for it
    log.may_go.set()
    assert ahead.close(WAIT_S)
    assert log.groups == [hanging]


def test_a_bug_in_keeping_lets_nobody_wait_for_ever(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    log.error = ValueError("a bug")
    log.may_go.set()
    ahead = Ahead(log.keep, "vda")
    each = batch(0)
    ahead.announce(each)
    ahead.wait(each)
    assert ahead.close(WAIT_S)
    assert len(told) == 1
    ahead.announce(each)
    ahead.wait(each)
