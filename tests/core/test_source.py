"""The write path beside a slow resync: the guest's writes end, and the volume closes in order.

Its rules, one by one, are in ``test_write_path.py``.
"""

from __future__ import annotations

import pytest

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import OpKind, Role, WriteOp
from pairsync.core.source import VolumeSource
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_S
from pairsync.testing.manual import ManualPair

SIZE_BYTES = 24 * MIB


def _data(offset: int, length: int) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, length, b"x" * length)


def _source(pair: ManualPair) -> VolumeSource:
    return pair.a.session.sources[0]


def _work(pair: ManualPair) -> None:
    """All that host a can do now; what it sends stays on its way."""
    while pair.a.busy:
        pair.a.complete(*pair.a.busy[0])


def _resyncing(options: VolumeOptions) -> ManualPair:
    """Host b is back after the whole volume was written without it; its first blocks are on their way."""
    pair = ManualPair(SIZE_BYTES, options)
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    for at in range(0, SIZE_BYTES, MIB):
        pair.a.write("early", [_data(at, MIB)])
        pair.settle()
    pair.b.start(Role.STANDBY, 1)
    pair.settle()
    pair.connect()
    while not _source(pair).inflight_bytes:
        pair.step()
    _work(pair)
    return pair


def _one_second(pair: ManualPair) -> None:
    """A link of half a megabyte a second: one message of a resync goes over and is answered."""
    pair.tick(NS_PER_S)
    if pair.a.outbox:
        pair.deliver(pair.a)
    while pair.b.busy:
        pair.b.complete(*pair.b.busy[0])
    while pair.b.outbox:
        pair.deliver(pair.b)
    _work(pair)


@pytest.mark.parametrize(
    "options",
    [
        VolumeOptions(level="async"),
        VolumeOptions(level="async", lag_bytes=MIB),
        VolumeOptions(level="async", at_bound="fall-behind", lag_bytes=MIB),
    ],
    ids=["throttle", "throttle-tight", "fall-behind"],
)
def test_a_slow_resync_does_not_keep_an_asynchronous_writer_waiting(options: VolumeOptions) -> None:
    pair = _resyncing(options)
    for _ in range(12):  # longer than the bound of 5 s: everything on its way is old now
        _one_second(pair)
    assert _source(pair).tracker.todo
    pair.a.completed.clear()
    pair.a.write("live", [_data(0, BLOCK_BYTES)])
    for _ in range(3):
        _one_second(pair)
    assert [done.errnos for done in pair.a.completed] == [None]


def test_a_volume_closes_in_order_beside_a_resync_without_waiting_for_its_end() -> None:
    pair = _resyncing(VolumeOptions())
    sent_before = _source(pair).inflight_bytes
    pair.a.completed.clear()
    pair.a.close("close")
    for _ in range(sent_before // MIB * 2 + 3):  # what is on its way already
        _one_second(pair)
    assert [done.errnos for done in pair.a.completed] == [None]
    assert pair.a.metadata[0].superblock.clean
    assert pair.differing()
    assert not pair.forgotten()
