"""Points: what has changed since, against a bytes oracle; made and dropped, and cut at every write."""

from __future__ import annotations

import errno
import itertools
import random
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import OpKind, PointMark, WriteOp
from pairsync.core.points import POINTS_MAX
from pairsync.core.units import BLOCK_BYTES, block_count_of
from pairsync.errors import BackendError, ConfigError
from pairsync.storage import pointcopy
from pairsync.storage.digestfile import UNKNOWN_DIGEST, block_digests, unpack_leaves
from pairsync.storage.digests import digests_bytes, format_digests, load_digests
from pairsync.storage.directory import Directory
from pairsync.storage.pointcopy import PointCopy
from pairsync.storage.points import Points
from pairsync.testing.crashpoints import Budget, CrashState, explore
from pairsync.testing.disks import Fault, SimAction, SimDisk, SimMedium, SimOperation
from pairsync.testing.recording import Recording, RecordingDirectory
from pairsync.testing.replica_ledger import RuleBroken
from pairsync.testing.simfiles import SimDirectory

ID = b"v" * 16
SIZE = 1100 * BLOCK_BYTES - 100  # three pages of leaves, the last block partial
BLOCKS = block_count_of(SIZE)
ALL = 1 << 30


class Stand:
    """A volume with its table and its points, and what it should hold."""

    def __init__(self, directory: Directory | None = None, medium: SimMedium | None = None) -> None:
        self.medium = SimMedium() if medium is None else medium
        self.device = SimDisk(self.medium, "v", SIZE)
        self.medium.create("d", digests_bytes(SIZE))
        file = self.medium.open("d")
        format_digests(file, volume_id=ID, size_bytes=SIZE, blank=True)
        file.close()
        self.directory = SimDirectory(self.medium) if directory is None else directory
        self.content = bytearray(SIZE)
        self.at: dict[int, bytes] = {}  # tag: what the volume held
        self.tags = itertools.count(1)
        self.since_save = DirtyMap(BLOCKS)  # what a dirty map would hold
        self.open(DirtyMap(BLOCKS))

    def open(self, doubtful: DirtyMap) -> None:
        opened = load_digests(self.medium.open("d"), volume_id=ID, size_bytes=SIZE, doubtful=doubtful)
        self.table = opened.table
        self.points = Points(self.directory, "m", ID, self.table)

    def close(self) -> None:
        self.points.close()
        self.table.close()

    def apply(self, *ops: WriteOp) -> None:
        self.device.apply(ops)
        self.table.note(self.device, ops)
        for op in ops:
            data = bytes(op.length) if op.data is None else op.data
            self.content[op.offset : op.offset + op.length] = data
            self.since_save.mark(op.offset // BLOCK_BYTES, -(-(op.offset + op.length) // BLOCK_BYTES))

    def put(self, block: int, letter: bytes = b"x") -> None:
        length = min(BLOCK_BYTES, SIZE - block * BLOCK_BYTES)
        self.apply(WriteOp(OpKind.DATA, block * BLOCK_BYTES, length, letter * length))

    def zero(self, first: int, stop: int) -> None:
        end = min(stop * BLOCK_BYTES, SIZE)
        self.apply(WriteOp(OpKind.TRIM, first * BLOCK_BYTES, end - first * BLOCK_BYTES))

    def save(self) -> None:
        self.table.save()
        self.since_save = DirtyMap(BLOCKS)

    def begin(self, name: str = "monday") -> PointCopy:
        tag = next(self.tags)
        copy = self.points.begin(PointMark(name, tag, tag))
        self.at[tag] = bytes(self.content)
        return copy

    def make(self, name: str = "monday") -> int:
        copy = self.begin(name)
        while self.points.go_on(copy):
            pass
        return copy.point.header.tag

    def changed(self, tag: int, *, runs_max: int = ALL) -> set[int]:
        blocks: set[int] = set()
        at = 0
        while at < BLOCKS:
            found = self.points.changed(tag, at, BLOCKS, runs_max=runs_max)
            assert found.stop > at
            for run in found.runs:
                assert at <= run.start < run.stop <= found.stop
                blocks.update(range(*run))
            at = found.stop
        return blocks

    def differing(self, tag: int) -> set[int]:
        then, now = block_digests(memoryview(self.at[tag])), block_digests(memoryview(self.content))
        return {block for block in range(BLOCKS) if then[block] != now[block]}


def test_what_has_changed_is_what_differs() -> None:
    stand = Stand()
    for block in (0, 7, 511, 512, BLOCKS - 1):
        stand.put(block)
    tag = stand.make()
    assert stand.changed(tag) == set()
    stand.put(7, b"y")
    stand.put(8)
    stand.put(512, b"x")  # the same again
    stand.zero(511, 512)
    stand.apply(WriteOp(OpKind.DATA, 600 * BLOCK_BYTES + 9, 1, b"z"))
    stand.put(BLOCKS - 1, b"y")
    assert stand.changed(tag) == stand.differing(tag) == {7, 8, 511, 600, BLOCKS - 1}
    assert stand.changed(tag, runs_max=1) == stand.differing(tag)
    stand.zero(0, BLOCKS)
    assert stand.changed(tag) == {0, 7, 511, 512, BLOCKS - 1}
    assert unpack_leaves(stand.points.digests(tag, 0, BLOCKS)).tolist() == block_digests(
        memoryview(stand.at[tag])
    )


def test_what_is_not_known_counts_as_changed() -> None:
    stand = Stand()
    stand.put(3)
    stand.table.forget([(5, 6)])
    tag = stand.make()
    stand.put(5)
    stand.table.forget([(9, 12), (1000, BLOCKS)])
    assert stand.changed(tag) == {5, 9, 10, 11, *range(1000, BLOCKS)}
    assert unpack_leaves(stand.points.digests(tag, 4, 7)).tolist() == [0, UNKNOWN_DIGEST, 0]


def test_a_table_that_is_being_made_anew_is_not_copied_as_leaves() -> None:
    stand = Stand()
    stand.put(3)
    stand.save()
    stand.close()
    doubtful = DirtyMap(BLOCKS)
    doubtful.mark(600, BLOCKS)
    stand.open(doubtful)
    copy = stand.begin()
    assert copy.point.header.known_below == 600
    while stand.points.go_on(copy):
        pass
    assert stand.changed(1) == set(range(600, BLOCKS))
    assert unpack_leaves(stand.points.digests(1, 598, 602)).tolist() == [0, 0, 1, 1]


def test_it_is_of_the_moment_whatever_is_written_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointcopy, "_STEP_PIECES", 1)
    monkeypatch.setattr(pointcopy, "PIECE_PAGES", 1)
    for when in range(4):
        stand = Stand()
        for block in (1, 2, 600, 1030):
            stand.put(block)
        copy, more = stand.begin(), True
        for step in range(4):
            if step == when:
                stand.put(1, b"y")
                stand.put(700)
                stand.zero(600, 601)
                stand.zero(1024, BLOCKS)
                stand.save()  # all of it goes to the file
                stand.put(1, b"z")
                stand.save()
            if more:
                more = stand.points.go_on(copy)
        while more:
            more = stand.points.go_on(copy)
        assert stand.changed(1) == stand.differing(1) == {1, 600, 700, 1030}


def test_one_under_its_name_is_replaced_when_the_new_one_is_complete() -> None:
    stand = Stand()
    first = stand.make()
    stand.put(1)
    copy = stand.begin()
    assert [mark.tag for mark in stand.points.list()] == [first]
    assert stand.changed(first) == {1}
    while stand.points.go_on(copy):
        pass
    assert [mark.tag for mark in stand.points.list()] == [2]
    assert stand.changed(2) == set()
    with pytest.raises(ConfigError, match="any more"):
        stand.changed(first)


def test_a_later_one_gives_up_the_one_under_way() -> None:
    stand = Stand()
    stand.put(1)
    copy = stand.begin("monday")
    assert stand.points.under_way() is copy
    tag = stand.make("tuesday")
    with pytest.raises(BackendError, match="given up"):
        stand.points.go_on(copy)
    assert [mark.name for mark in stand.points.list()] == ["tuesday"]
    assert stand.changed(tag) == set()
    assert stand.directory.names("m-point-") == ["m-point-tuesday"]


def test_all_but_some_are_dropped_and_so_is_one_under_way() -> None:
    stand = Stand()
    tags = [stand.make(name) for name in ("a", "b", "c")]
    copy = stand.begin("d")
    stand.points.keep([*tags, 4], copy)
    assert len(stand.points.list()) == 3
    stand.points.keep([tags[1]], None)  # asked before "d" was
    assert [mark.name for mark in stand.points.list()] == ["b"]
    stand.points.keep([tags[1]], copy)
    with pytest.raises(BackendError, match="given up"):
        stand.points.go_on(copy)
    stand.close()
    stand.open(DirtyMap(BLOCKS))
    assert [mark.name for mark in stand.points.list()] == ["b"]


def test_there_is_room_for_so_many() -> None:
    stand = Stand()
    for number in range(POINTS_MAX):
        stand.make(f"p{number}")
    with pytest.raises(BackendError, match="already") as caught:
        stand.begin("more")
    assert caught.value.errno == errno.ENOSPC
    stand.make("p3")  # in its place


@pytest.mark.parametrize("which", range(12))
def test_a_disk_that_fails_leaves_no_point_and_harms_nothing_else(which: int) -> None:
    stand = Stand()
    stand.put(1)
    stand.put(600)
    seen = 0

    def fault(operation: SimOperation) -> Fault | None:
        nonlocal seen
        if operation.name.startswith("m-point") and operation.action is not SimAction.READ:
            seen += 1
            return Fault(errno.ENOSPC) if seen == which + 1 else None
        return None

    stand.medium.fault = fault
    with suppress(BackendError):
        copy = stand.begin()
        stand.put(1, b"y")
        stand.save()  # copies before it writes, and must not fail for that
        while stand.points.go_on(copy):
            pass
    stand.medium.fault = None
    stand.save()
    names = [mark.name for mark in stand.points.list()]
    stand.close()
    stand.open(DirtyMap(BLOCKS))
    assert [mark.name for mark in stand.points.list()] in ([], ["monday"])
    if names:
        assert stand.changed(1) == {1}
    assert stand.changed(stand.make("tuesday")) == set()


def test_files_that_are_no_points_of_this_volume_are_left_alone_and_told_of() -> None:
    stand = Stand()
    stand.make("good")
    other = Points(stand.directory, "m", b"w" * 16, stand.table)
    assert not other.list()
    assert "of another volume" in other.problems[0]
    damaged = stand.directory.create("m-point-bad")
    damaged.close()
    stand.directory.create("m-point-.cut").close()
    stand.close()
    stand.open(DirtyMap(BLOCKS))
    assert [mark.name for mark in stand.points.list()] == ["good"]
    assert len(stand.points.problems) == 1
    assert stand.directory.names("m-point-") == ["m-point-bad", "m-point-good"]


# -- against an oracle ---------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, BLOCKS - 1), st.sampled_from([b"x", b"y"])),
        st.tuples(st.just("zero"), st.integers(0, BLOCKS - 1), st.integers(1, 700)),
        st.tuples(st.just("bytes"), st.integers(0, SIZE - 9000), st.integers(1, 9000)),
        st.tuples(st.just("doubt"), st.integers(0, BLOCKS - 1), st.integers(1, 300)),
        st.tuples(st.sampled_from(["begin", "go on", "save", "read", "end", "kill"]), st.none(), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, pending=st.sampled_from([2, 8192]))
def test_no_change_is_missed_and_none_invented(steps: list[tuple[str, object, object]], pending: int) -> None:
    stand = Stand()
    copy: PointCopy | None = None
    doubted: set[int] = set()  # blocks that may be unknown, now or at a point
    names = itertools.cycle(["a", "b", "c"])
    for what, one, other in steps:
        stand.table._pending_max = pending
        match (what, one, other):
            case ("put", int(block), bytes(letter)):
                stand.put(block, letter)
            case ("zero", int(block), int(count)):
                stand.zero(block, min(block + count, BLOCKS))
            case ("bytes", int(offset), int(length)):
                stand.apply(WriteOp(OpKind.DATA, offset, length, random.Random(offset).randbytes(length)))
            case ("doubt", int(block), int(count)):
                stop = min(block + count, BLOCKS)
                stand.table.forget([(block, stop)])
                doubted.update(range(block, stop))
            case ("begin", _, _):
                copy = stand.begin(next(names))
            case ("go on", _, _):
                if copy is not None and not stand.points.go_on(copy):
                    copy = None
            case ("save", _, _):
                stand.save()
            case ("read", _, _):
                stand.table.examine(stand.device, 0, 0, BLOCKS, read_bytes_max=ALL, pages_max=ALL)
            case ("end" | "kill", _, _):
                if what == "end":
                    stand.save()
                stand.close()
                doubted.update(block for run in stand.since_save.runs() for block in range(*run))
                stand.open(stand.since_save.copy())
                copy = None
        for mark in stand.points.list():
            missed = stand.differing(mark.tag) - (found := stand.changed(mark.tag))
            assert not missed
            assert found - stand.differing(mark.tag) <= doubted


# -- crash points --------------------------------------------------------------------------------------------


def recorded_life() -> Recording:
    """Points are made while blocks are written, replaced and dropped; a note before and after each."""
    recording = Recording()
    medium = SimMedium()
    stand = Stand(RecordingDirectory(SimDirectory(medium), recording), medium)
    stand.put(1)
    stand.put(600)
    there: dict[str, bytes] = {}

    def note(*alternatives: dict[str, bytes]) -> None:
        recording.note(alternatives)

    def make(name: str, letter: bytes) -> None:
        copy = stand.begin(name)
        before, after = dict(there), {**there, name: bytes(stand.content)}
        note(before, after)
        stand.put(1, letter)
        stand.zero(600, 700)
        stand.save()
        while stand.points.go_on(copy):
            pass
        there.update(after)
        note(there.copy())

    note({})
    make("a", b"y")
    make("b", b"z")
    make("a", b"u")
    note(dict(there), {"a": there["a"]})
    stand.points.keep([3])
    note({"a": there["a"]})
    return recording


def judge(state: CrashState) -> None:
    """Each point is there whole or not at all, as it was promised."""
    if not state.notes:
        return
    medium = state.medium()
    stand = Stand(medium=medium)
    found = {}
    for mark in stand.points.list():
        found[mark.name] = unpack_leaves(stand.points.digests(mark.tag, 0, BLOCKS)).tolist()
    promised = [
        {name: block_digests(memoryview(content)) for name, content in each.items()}
        for each in state.notes[-1]
    ]
    if found not in promised:
        raise RuleBroken(f"found {sorted(found)}, promised {[sorted(each) for each in promised]}")
    if stand.points.problems:
        raise RuleBroken(f"{stand.points.problems}")
    if any(name.startswith("m-point-.") for name in medium.names()):
        raise RuleBroken("what was cut short was left")


BRIEF = Budget(exhaustive_max=32, subsets_max=32, draws=4)


def test_every_crash_point_of_points() -> None:
    states = explore(recorded_life(), judge, BRIEF).states
    print(f"{states} states examined")
    assert states > 60


@pytest.mark.parametrize("planted", ["not flushed", "no copy before a write"])
def test_a_planted_bug_is_found(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted == "not flushed":

        def publish(self: Points, copy: PointCopy) -> None:
            copy.file.flush = lambda: None  # type: ignore[method-assign]
            original(self, copy)

        original = Points._publish
        monkeypatch.setattr(Points, "_publish", publish)
    else:
        monkeypatch.setattr(PointCopy, "before", lambda self, page, stop: None)
    with pytest.raises(RuleBroken):
        explore(recorded_life(), judge, BRIEF)
