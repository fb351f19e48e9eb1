"""A pair of sessions under every interleaving: completions, deliveries, cuts and time in any order.

No host crashes here (the simulator does that); drawn is the order in which effects end and messages arrive,
and which effects fail.  After every step: no request has ended twice, a crash of the active host would
find every difference in its dirty map, and what was acknowledged is where the superblocks say it is.  At the
end everything heals: each request has ended, the pair is in sync, the disks are equal and close cleanly.
"""

from __future__ import annotations

import errno
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Condition, OpKind, Role, WriteOp
from pairsync.core.standing import Phase
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS, NS_PER_S
from pairsync.testing.manual import ManualHost, ManualPair

BLOCKS = 12
GROWN_BLOCKS_MAX = 24
VOLUMES = 2
HALF_BYTES = BLOCK_BYTES // 2
HEALING_ROUNDS_MAX = 400  # of half a second: several times the longest wait

OPTIONS = [
    VolumeOptions(),
    VolumeOptions(level="async", lag_bytes=MIB, lag_ns=2 * NS_PER_S),
    VolumeOptions(level="async", at_bound="fall-behind", lag_bytes=MIB, lag_ns=NS_PER_S),
]


class PairMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pair = ManualPair(BLOCKS * BLOCK_BYTES, volumes=VOLUMES)
        self.number = 0  # of requests; also the content of writes
        self.open: dict[int, tuple[int, list[WriteOp]]] = {}  # requests that have not ended
        self.ended: Counter[int] = Counter()
        # What the guest was told of each half block: the content, None where a write failed.
        self.told: list[dict[int, int | None]] = [{} for _ in range(VOLUMES)]

    @property
    def a(self) -> ManualHost:
        return self.pair.a

    @initialize(options=st.sampled_from(OPTIONS))
    def begin(self, options: VolumeOptions) -> None:
        self.pair = ManualPair(BLOCKS * BLOCK_BYTES, options, volumes=VOLUMES)
        self.pair.a.start(Role.ACTIVE, 1)
        self.pair.b.start(Role.STANDBY, 1)

    # ------------------------------------------------------------------ the guest

    @rule(data=st.data(), volume=st.integers(0, VOLUMES - 1))
    def write(self, data: st.DataObject, volume: int) -> None:
        """No two writes of one block at a time: then what must be there afterwards is known."""
        busy = {h // 2 for v, ops in self.open.values() if v == volume for h in _halves(ops)}
        self.number += 1
        ops: list[WriteOp] = []
        halves = self.a.session.sources[volume].growth.size_bytes // HALF_BYTES
        for _ in range(data.draw(st.integers(1, 2))):
            start = data.draw(st.integers(0, halves - 1))
            stop = min(start + data.draw(st.sampled_from([1, 2, 2, 3, 8])), halves)
            if busy & {half // 2 for half in range(start, stop)}:
                continue
            kind = data.draw(st.sampled_from([OpKind.DATA, OpKind.DATA, OpKind.ZERO]))
            length = (stop - start) * HALF_BYTES
            content = bytes([self.number % 255 + 1]) * length if kind is OpKind.DATA else None
            ops.append(WriteOp(kind, start * HALF_BYTES, length, content))
            busy |= {half // 2 for half in range(start, stop)}
        self.open[self.number] = (volume, ops)
        self.a.write(self.number, ops, volume)
        self._collect()

    @rule(volume=st.integers(0, VOLUMES - 1))
    def flush(self, volume: int) -> None:
        self.number += 1
        self.open[self.number] = (volume, [])
        self.a.flush(self.number, volume)
        self._collect()

    @rule(volume=st.integers(0, VOLUMES - 1), halves=st.integers(1, 5))
    def grow(self, volume: int, halves: int) -> None:
        """A last block that is partial becomes whole sometimes."""
        size_bytes = self.a.session.sources[volume].growth.size_bytes + halves * HALF_BYTES
        if size_bytes <= GROWN_BLOCKS_MAX * BLOCK_BYTES:
            self.number += 1
            self.open[self.number] = (volume, [])
            self.a.grow(self.number, size_bytes, volume)
            self._collect()

    def _collect(self) -> None:
        """What the sessions said has ended."""
        for end in self.a.completed:
            assert isinstance(end.ticket, int)
            self.ended[end.ticket] += 1
            volume, ops = self.open.pop(end.ticket)
            errnos = [0] * len(ops) if end.errnos is None else end.errnos
            for op, error in zip(ops, errnos, strict=False):
                for half in _halves([op]):
                    self.told[volume][half] = None if error else (op.data[0] if op.data else 0)
        self.a.completed.clear()

    # ------------------------------------------------------------------ what happens

    @precondition(lambda self: self.a.busy or self.pair.b.busy)
    @rule(data=st.data())
    def something_ends(self, data: st.DataObject) -> None:
        lanes = [(host, *lane) for host in (self.pair.a, self.pair.b) for lane in host.busy]
        host, lane, volume = data.draw(st.sampled_from(lanes))
        at = 0
        if lane == "side":
            at = data.draw(st.integers(0, len(host.waiting(lane, volume)) - 1))
        host.complete(lane, volume, at=at)
        self._collect()

    @precondition(lambda self: any("disk" in lane for lane in self.a.busy))
    @rule(data=st.data())
    def a_disk_job_fails(self, data: st.DataObject) -> None:
        volumes = [volume for lane, volume in self.a.busy if lane == "disk"]
        self.a.complete("disk", data.draw(st.sampled_from(volumes)), error=errno.EIO)
        self._collect()

    @precondition(lambda self: self.a.outbox or self.pair.b.outbox)
    @rule(data=st.data())
    def messages_arrive(self, data: st.DataObject) -> None:
        sender = data.draw(st.sampled_from([host for host in (self.pair.a, self.pair.b) if host.outbox]))
        self.pair.deliver(sender, data.draw(st.integers(1, len(sender.outbox))))
        self._collect()

    @precondition(lambda self: not self.pair.linked)
    @rule()
    def connect(self) -> None:
        self.pair.connect()
        self._collect()

    @precondition(lambda self: self.pair.linked)
    @rule()
    def cut(self) -> None:
        self.pair.cut()
        self._collect()

    @rule(ms=st.sampled_from([1, 100, 500, 500, 3000]))
    def time_passes(self, ms: int) -> None:
        self.pair.tick(ms * NS_PER_MS)
        self._collect()

    @rule(steps=st.integers(5, 40))
    def much_happens(self, steps: int) -> None:
        for _ in range(steps):
            if not self.pair.step():
                break
        self._collect()

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def no_request_ends_twice(self) -> None:
        assert all(count == 1 for count in self.ended.values())

    @invariant()
    def the_dirty_map_shows_every_difference(self) -> None:
        for volume in range(VOLUMES):
            assert self.pair.forgotten(volume) == []

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        writing = [
            {h for v, ops in self.open.values() if v == n for h in _halves(ops)} for n in range(VOLUMES)
        ]
        for volume, told in enumerate(self.told):
            hosts = [self.a]
            synced = self.a.metadata[volume].superblock.peer_in_sync and self.a.options.level == "sync"
            if synced:
                hosts.append(self.pair.b)
            for half, content in told.items():
                if content is None or half in writing[volume]:
                    continue
                for host in hosts:
                    found = host.disks[volume].content[half * HALF_BYTES]
                    assert found == content, f"half block {half} of volume {volume} on host {host.name}"

    @invariant()
    def a_size_is_served_where_it_is_recorded(self) -> None:
        for index, source in enumerate(self.a.session.sources if self.a.up else ()):
            served = source.growth.size_bytes
            hosts = [self.a]
            if self.a.metadata[index].superblock.peer_in_sync:
                hosts.append(self.pair.b)
            for host in hosts:
                assert host.metadata[index].superblock.size_bytes >= served
                assert len(host.disks[index].content) >= served

    @invariant()
    def in_sync_is_said_only_of_what_is_whole(self) -> None:
        for index, source in enumerate(self.a.session.sources if self.a.up else ()):
            if source.standing.phase is Phase.IN_SYNC:
                there = self.pair.b.metadata[index].superblock
                assert there.condition is Condition.CONSISTENT
                assert there.lineage[0] == source.standing.newest

    def teardown(self) -> None:
        if not self.a.up:
            return
        for _ in range(HEALING_ROUNDS_MAX):
            if not self.pair.linked:
                self.pair.connect()
            self.pair.settle()
            self._collect()
            self.the_dirty_map_shows_every_difference()
            if self.a.session.in_sync and self.pair.b.session.in_sync and not self._dirty_after_errors():
                break
            self.pair.tick(500 * NS_PER_MS)
        assert self.a.session.in_sync
        assert self.pair.b.session.in_sync
        assert self.open == {}
        for volume in range(VOLUMES):
            assert len(self.a.disks[volume].content) == len(self.pair.b.disks[volume].content)
            assert self.pair.differing(volume) == []
            self.open[-volume - 1] = (volume, [])
            self.a.close(-volume - 1, volume)
        self.pair.settle()
        self._collect()
        assert self.open == {}
        for metadata in self.a.metadata:
            assert metadata.superblock.clean
            assert metadata.recovered().count == 0

    def _dirty_after_errors(self) -> bool:
        """A write that failed here is copied in passing, while the pair is in sync."""
        return any(source.tracker.todo for source in self.a.session.sources)


def _halves(ops: list[WriteOp]) -> list[int]:
    return [op.offset // HALF_BYTES + i for op in ops for i in range(op.length // HALF_BYTES)]


TestPairMachine = PairMachine.TestCase
TestPairMachine.settings = settings(stateful_step_count=60, max_examples=60)
