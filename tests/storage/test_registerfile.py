"""The file of the witness: kept through every crash, never believed when it is a copy or damaged."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.witness import Snapshot, WitnessKey
from pairsync.errors import BackendError, BusyError, ConfigError, InternalError, MetadataError, PairsyncError
from pairsync.storage.blockfile import BlockFile
from pairsync.storage.directory import Directory, OsDirectory
from pairsync.storage.linux import file_identity
from pairsync.storage.registerfile import FILE_NAME, GUESTS_MAX, LOST_NAME, Entry, RegisterFile
from pairsync.testing.crashpoints import Budget, CrashState, explore
from pairsync.testing.disks import SECTOR_BYTES, Fault, SimAction, SimMedium, SimOperation
from pairsync.testing.recording import Recording, RecordingDirectory, Write
from pairsync.testing.replica_ledger import RuleBroken
from pairsync.testing.simfiles import SimDirectory

PAIR, OTHER = b"one pair of two!", b"another of two.."
SAME = bytes(32)
ROOM = 8 * SECTOR_BYTES


def key(guest: str = "db1", pair_id: bytes = PAIR) -> WitnessKey:
    return WitnessKey(pair_id, guest)


def opened(directory: Directory, identity: bytes = SAME, *, seed: int = 0, room: int = ROOM) -> RegisterFile:
    return RegisterFile(
        directory, identity=lambda file: identity, entropy=Random(seed).randbytes, room_bytes=room
    )


def put(file: RegisterFile, value: bytes | None, where: WitnessKey | None = None) -> Snapshot:
    """The next version of a register."""
    where = where or key()
    now = file.find(where)
    entry = (
        file.fresh(where) if now is None else Entry(where, Snapshot(now.incarnation, now.version + 1, value))
    )
    file.append([entry])
    return entry.snapshot


def reopened(medium: SimMedium, identity: bytes = SAME) -> RegisterFile:
    medium.process_crash()
    return opened(SimDirectory(medium), identity, seed=99)


# -- what is kept --------------------------------------------------------------------------------------------


def test_registers_survive_and_versions_go_on() -> None:
    medium = SimMedium()
    file = opened(SimDirectory(medium))
    assert file.find(key()) is None
    first = put(file, None)
    assert first.value is None
    last = [put(file, value) for value in (b"a", b"", bytes(1024))][-1]
    other = put(file, None, key("db2"))
    file = reopened(medium)
    assert file.distrust is None
    assert (file.find(key()), file.find(key("db2")), len(file)) == (last, other, 2)
    assert put(file, b"b").version == last.version + 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=1024)), max_size=40), st.integers(0, 9))
def test_any_life_is_kept_through_reopening(life: list[tuple[str, bytes]], seed: int) -> None:
    medium = SimMedium()
    random = Random(seed)
    file = opened(SimDirectory(medium), seed=seed)
    expected: dict[WitnessKey, Snapshot] = {}
    for guest, value in life:
        expected[key(guest)] = put(file, value, key(guest))
        if random.random() < 0.1:
            file = reopened(medium)
        assert {each: file.find(each) for each in expected} == expected
    file = reopened(medium)
    assert {each: file.find(each) for each in expected} == expected
    assert medium.names() == [FILE_NAME]


def test_a_full_file_is_written_anew_with_what_is_live() -> None:
    medium = SimMedium()
    file = opened(SimDirectory(medium))
    for number in range(100):
        last = put(file, b"%d" % number)
    assert file.size_bytes < 4096 + 4 * ROOM
    assert reopened(medium).find(key()) == last


def test_a_batch_is_one_write() -> None:
    medium = SimMedium()
    recording = Recording()
    file = opened(RecordingDirectory(SimDirectory(medium), recording), room=64 * SECTOR_BYTES)
    count = len(recording.operations)
    file.append([file.fresh(key(str(number))) for number in range(20)])
    (write,) = recording.operations[count:]
    assert isinstance(write, Write)
    assert write.durable
    assert len(reopened(medium)) == 20


def test_a_pair_has_few_registers_and_others_are_not_touched_by_that() -> None:
    file = opened(SimDirectory(SimMedium()))
    file.append([file.fresh(key(str(number))) for number in range(GUESTS_MAX)])
    with pytest.raises(ConfigError, match="256 registers"):
        file.fresh(key("one more"))
    file.append([file.fresh(key("db1", OTHER))])
    assert file.pairs() == {PAIR: GUESTS_MAX, OTHER: 1}


def test_pairs_that_are_not_served_any_more_are_forgotten() -> None:
    medium = SimMedium()
    file = opened(SimDirectory(medium))
    kept = put(file, None, key("db1", OTHER))
    put(file, None)
    assert file.keep_only([OTHER]) == 1
    assert file.keep_only([OTHER]) == 0
    for each in (file, reopened(medium)):
        assert (each.find(key()), each.find(key("db1", OTHER)), len(each)) == (None, kept, 1)


def test_forgetting_that_fails_forgets_nothing() -> None:
    medium = SimMedium()
    file = opened(SimDirectory(medium))
    put(file, None)
    medium.fault = lambda operation: Fault() if operation.action is SimAction.CHANGE else None
    with pytest.raises(BackendError):
        file.keep_only([])
    medium.fault = lambda operation: None
    assert file.find(key()) is not None
    assert file.pairs() == {PAIR: 1}


def test_what_cannot_be_a_register_is_not_stored() -> None:
    file = opened(SimDirectory(SimMedium()))
    for snapshot in (Snapshot(b"short", 1, None), Snapshot(b"12345678", -1, None)):
        with pytest.raises(InternalError):
            file.append([Entry(key(), snapshot)])
    with pytest.raises(ConfigError):
        file.append([Entry(key(), Snapshot(b"12345678", 1, bytes(1025)))])


# -- lost memory ---------------------------------------------------------------------------------------------


def test_a_register_that_is_behind_begins_anew() -> None:
    file = opened(SimDirectory(SimMedium()))
    now = put(file, None)
    assert file.renewed(key(), now) is None
    assert file.renewed(key(), Snapshot(b"87654321", now.version + 5, None)) is None
    assert file.renewed(key("none"), now) is None
    entry = file.renewed(key(), Snapshot(now.incarnation, now.version + 1, None))
    assert entry is not None
    assert entry.snapshot.incarnation != now.incarnation
    assert entry.snapshot.value is None


def test_a_copy_is_not_believed_and_is_put_aside() -> None:
    medium = SimMedium()
    put(opened(SimDirectory(medium)), b"x")
    before = medium.content(FILE_NAME)
    file = reopened(medium, identity=b"\x01" * 32)
    assert file.distrust is not None
    assert "copy" in file.distrust
    assert len(file) == 0
    assert medium.content(LOST_NAME) == before
    file.close()
    assert reopened(medium, identity=b"\x01" * 32).distrust is None


def test_a_restored_file_is_not_believed_on_a_real_file_system(tmp_path: Path) -> None:
    def start() -> RegisterFile:
        return RegisterFile(
            OsDirectory(tmp_path), identity=lambda file: file_identity(file.path), entropy=Random(5).randbytes
        )

    file = start()
    put(file, b"old")
    shutil.copy2(tmp_path / FILE_NAME, tmp_path / "backup")
    last = put(file, b"new")
    file.close()
    file = start()
    assert (file.distrust, file.find(key())) == (None, last)
    with pytest.raises(BusyError):
        start()
    file.close()
    (tmp_path / "backup").replace(tmp_path / FILE_NAME)
    file = start()
    assert file.distrust is not None
    assert file.find(key()) is None
    file.close()
    (tmp_path / FILE_NAME).unlink()
    file = start()
    assert file.find(key()) is None
    file.close()


@pytest.mark.parametrize("offset", [0, 9, 20, 60, 4096, 4096 + 40, 4096 + 512, 4096 + 560])
def test_a_damaged_file_is_not_believed(offset: int) -> None:
    medium = SimMedium()
    file = opened(SimDirectory(medium))
    for number in range(4):
        put(file, b"%d" % number)
    file.close()
    medium.damage(FILE_NAME, offset, 0x40)
    file = reopened(medium)
    assert file.distrust is not None
    assert "damaged" in file.distrust or "no file" in file.distrust
    assert len(file) == 0


def test_damage_of_the_last_record_alone_looks_like_a_torn_batch() -> None:
    # nothing in the file says that it was durable: hosts notice it, for they have seen its version
    medium = SimMedium()
    file = opened(SimDirectory(medium))
    before = put(file, b"a")
    before = put(file, b"b")
    last = put(file, b"c")
    file.close()
    medium.damage(FILE_NAME, 4096 + 2 * 512 + 50, 1)
    file = reopened(medium)
    assert file.find(key()) == before
    assert file.renewed(key(), last) is not None


def test_a_cut_or_foreign_file_is_not_believed() -> None:
    for content in (b"", b"\0" * 512, b"x" * 8192):
        medium = SimMedium()
        medium.create(FILE_NAME, len(content))
        medium.platter(FILE_NAME, medium.life).live[:] = content
        assert opened(SimDirectory(medium)).distrust is not None


def test_a_file_of_another_version_is_refused_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    medium = SimMedium()
    with monkeypatch.context() as patched:
        patched.setattr("pairsync.storage.registerfile._FORMAT", 2)
        opened(SimDirectory(medium)).close()
    before = medium.content(FILE_NAME)
    with pytest.raises(MetadataError, match="format 2"):
        reopened(medium)
    assert medium.content(FILE_NAME) == before


# -- disks that fail -----------------------------------------------------------------------------------------


class Failing:
    """Fails the operations of one kind from the n-th on, for a while."""

    def __init__(self, action: SimAction, first: int, count: int) -> None:
        self._action = action
        self._numbers = itertools.count()
        self._failing = range(first, first + count)

    def __call__(self, operation: SimOperation) -> Fault | None:
        if operation.action is self._action and next(self._numbers) in self._failing:
            return Fault()
        return None


@pytest.mark.parametrize("action", [SimAction.WRITE, SimAction.FLUSH, SimAction.CHANGE])
@pytest.mark.parametrize("first", range(12))
@pytest.mark.parametrize("count", [1, 2])
def test_a_failing_disk_loses_nothing_and_is_used_again(action: SimAction, first: int, count: int) -> None:
    medium = SimMedium()
    file = opened(SimDirectory(medium))
    medium.fault = Failing(action, first, count)
    known = put(file, None) if first else None
    for number in range(40):
        value = b"%d" % number
        try:
            known = put(file, value)
        except BackendError:
            assert file.find(key()) == known
    medium.fault = lambda operation: None
    assert known is not None
    assert put(file, b"last").version > known.version
    assert file.find(key()) == reopened(medium).find(key())


# -- crashes -------------------------------------------------------------------------------------------------


Registers = dict[WitnessKey, Snapshot]
NOTHING: tuple[Registers, Registers] = ({}, {})


def life(directory: RecordingDirectory, recording: Recording) -> None:
    """Swaps of two registers, alone and in a batch, over several new files; what is durable is noted."""
    file = opened(directory, room=16 * SECTOR_BYTES)
    durable: dict[WitnessKey, Snapshot] = {}
    for step in range(18):
        guests = ("a", "b") if step % 3 == 2 else ("ab"[step % 2],)
        entries = []
        for guest in guests:
            now = durable.get(key(guest))
            fresh = file.fresh(key(guest))
            value = (
                Snapshot(now.incarnation, now.version + 1, b"%02d" % step * 450) if now else fresh.snapshot
            )
            entries.append(Entry(key(guest), value))
        recording.note((dict(durable), {each.key: each.snapshot for each in entries}))
        file.append(entries)
        durable |= {each.key: each.snapshot for each in entries}
        recording.note((dict(durable), {}))
        if step == 8:
            file.close()
            file = opened(directory, seed=7, room=16 * SECTOR_BYTES)


def judge(state: CrashState) -> None:
    medium = state.medium()
    file = opened(SimDirectory(medium), seed=50)
    durable, tried = state.notes[-1] if state.notes else NOTHING
    if file.distrust is not None:
        raise RuleBroken(f"not believed: {file.distrust}")
    for where in (key("a"), key("b")):
        found = file.find(where)
        if found != durable.get(where) and (where not in tried or found != tried[where]):
            raise RuleBroken(f"{where.guest}: {found}, durable was {durable.get(where)}")
    for number in range(3):
        last = put(file, b"after %d" % number, key("a"))
    if reopened(medium).find(key("a")) != last:
        raise RuleBroken("what came after the crash was lost")


def explored() -> int:
    recording = Recording()
    life(RecordingDirectory(SimDirectory(SimMedium()), recording), recording)
    return explore(recording, judge, Budget(exhaustive_max=512, subsets_max=512, draws=24)).states


def test_every_crash_leaves_what_was_durable() -> None:
    assert explored() > 150


def write_lazily(self: BlockFile, offset: int, buffers: list[bytes], *, durable: bool = False) -> None:
    write(self, offset, buffers, durable=False)


write = BlockFile.write


def test_a_lazy_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockFile, "write", write_lazily)
    with pytest.raises(RuleBroken):
        explored()


def test_a_file_published_before_its_flush_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockFile, "flush", lambda self: None)
    with pytest.raises((RuleBroken, PairsyncError)):
        explored()


def test_room_is_written_before_a_file_is_published() -> None:
    recording = Recording()
    opened(RecordingDirectory(SimDirectory(SimMedium()), recording))
    covered = sum(len(each.data) for each in recording.operations if isinstance(each, Write))
    assert covered == 4096 + ROOM
