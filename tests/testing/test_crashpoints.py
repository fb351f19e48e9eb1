"""The explorer itself: exactly the states that a crash may leave, none that it may not, and each once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from pairsync.errors import BackendError, InternalError
from pairsync.testing.crashpoints import Budget, CrashState, crash_states, explore, live_state
from pairsync.testing.disks import SECTOR_BYTES, SimMedium
from pairsync.testing.recording import (
    Flush,
    Link,
    Recording,
    RecordingDirectory,
    Rename,
    Resize,
    SyncDirectory,
    Unlink,
    Write,
)
from pairsync.testing.simfiles import SimDirectory

A, B, C = (bytes([letter]) * SECTOR_BYTES for letter in b"ABC")
Z = bytes(SECTOR_BYTES)


def contents(recording: Recording, name: str = "f", budget: Budget | None = None) -> set[bytes | None]:
    return {state.files.get(name) for state in crash_states(recording, budget or Budget())}


def of_file(*operations: Write | Flush | Resize, sectors: int = 2) -> Recording:
    recording = Recording({"f": Z * sectors})
    recording.operations += operations
    return recording


def test_an_unflushed_write_is_there_or_not_sector_by_sector() -> None:
    assert contents(of_file(Write(0, 0, A + B))) == {Z + Z, A + Z, Z + B, A + B}


def test_unflushed_writes_come_in_any_order_and_overwritten_ones_come_back() -> None:
    recording = of_file(Write(0, 0, A), Write(0, SECTOR_BYTES, B), Write(0, 0, C))
    assert contents(recording) == {left + right for left in (Z, A, C) for right in (Z, B)}


def test_a_flush_settles_what_was_before_it() -> None:
    recording = of_file(Write(0, 0, A), Flush(0), Write(0, SECTOR_BYTES, B))
    recording.note("told")
    assert {s.files["f"] for s in crash_states(recording) if s.notes} == {A + Z, A + B}


def test_a_durable_write_settles_its_own_sectors_only() -> None:
    recording = of_file(Write(0, 0, A), Write(0, SECTOR_BYTES, B, durable=True))
    recording.note("told")
    assert {s.files["f"] for s in crash_states(recording) if s.notes} == {Z + B, A + B}


def test_writes_within_a_sector_are_one_after_the_other() -> None:
    recording = of_file(Write(0, 0, b"aa"), Write(0, 1, b"b"), sectors=1)
    assert {content and content[:3] for content in contents(recording)} == {b"\0\0\0", b"aa\0", b"ab\0"}


def test_notes_hold_from_where_they_were_taken() -> None:
    recording = of_file(sectors=1)
    recording.note("before")
    recording.operations.append(Write(0, 0, A))
    recording.note("written")
    recording.operations.append(Flush(0))
    recording.note("flushed")
    found = {(state.notes[-1], state.files["f"]) for state in crash_states(recording)}
    assert found == {("before", Z), ("before", A), ("written", Z), ("written", A), ("flushed", A)}


def test_the_size_is_undecided_until_a_flush() -> None:
    recording = of_file(Resize(0, 2 * SECTOR_BYTES), Write(0, SECTOR_BYTES, B), sectors=1)
    assert contents(recording) == {Z, Z + Z, Z + B}
    assert contents(of_file(Write(0, 100, A), sectors=1)) == {
        Z,
        Z + bytes(100),
        Z[:100] + A[:412],
        Z[:100] + A[:412] + bytes(100),
        Z + A[:100],
        Z[:100] + A,
    }


def test_a_file_that_is_cut_may_come_back_whole() -> None:
    recording = Recording({"f": A + B})
    recording.operations.append(Resize(0, SECTOR_BYTES))
    assert contents(recording) == {A + B, A + Z, A}


def test_a_rename_may_be_there_and_the_content_not() -> None:
    recording = Recording({"f": Z})
    number = recording.create("new")
    recording.operations.append(Write(number, 0, A))
    recording.rename("new", "f")
    assert contents(recording) == {Z, b"", A}


def test_whoever_flushes_before_the_rename_and_the_directory_after_it_finds_one_or_the_other() -> None:
    recording = Recording({"f": Z})
    number = recording.create("new")
    recording.operations += [Write(number, 0, A), Flush(number)]
    recording.rename("new", "f")
    recording.sync_directory()
    recording.note("renamed")
    assert contents(recording) == {Z, A}
    assert {state.files["f"] for state in crash_states(recording) if state.notes} == {A}


def test_names_persist_in_their_order() -> None:
    recording = Recording({"a": Z})
    recording.rename("a", "b")
    recording.create("c")
    recording.unlink("b")
    found = {tuple(state.files) for state in crash_states(recording)}
    assert found == {("a",), ("b",), ("b", "c"), ("c",)}


SCATTERED = [Write(0, 2 * at * SECTOR_BYTES, bytes([at + 1]) * 2 * SECTOR_BYTES) for at in range(9)]


def test_beyond_the_budget_what_is_listed_is_tried() -> None:
    def halves(state: CrashState) -> str:
        """For each sector whether it was kept."""
        content = state.files["f"]
        return "".join("01"[content[at] != 0] for at in range(0, len(content), SECTOR_BYTES))

    budget = Budget(exhaustive_max=16, subsets_max=16, draws=3)
    found = {halves(state) for state in crash_states(of_file(*SCATTERED, sectors=18), budget)}
    assert {"0" * 18, "1" * 18} <= found
    for at in range(9):
        before, after = "0" * 2 * at, "0" * (16 - 2 * at)
        for alone in ("11", "10", "01"):
            assert before + alone + after in found
            assert (before + alone + after).translate({48: 49, 49: 48}) in found
        assert "11" * at + "00" * (9 - at) in found
    drawn = len(list(crash_states(of_file(*SCATTERED, sectors=18), budget)))
    assert 100 < drawn < 500


def test_the_same_seed_draws_the_same() -> None:
    def drawn(seed: int) -> list[bytes]:
        budget = Budget(exhaustive_max=1, subsets_max=1, draws=5, seed=seed)
        return [state.files["f"] for state in crash_states(of_file(*SCATTERED, sectors=18), budget)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_no_state_is_tried_twice_and_a_later_beginning_leaves_the_earlier_out() -> None:
    recording = of_file(Write(0, 0, A), Write(0, 0, A), Flush(0), Write(0, SECTOR_BYTES, B))
    states = [state.files["f"] for state in crash_states(recording)]
    assert sorted(states) == sorted(set(states))
    assert {state.files["f"] for state in crash_states(recording, since=3)} == {A + Z, A + B}


def test_explore_says_where_and_counts() -> None:
    recording = of_file(Write(0, 0, A), Write(0, SECTOR_BYTES, B))
    assert explore(recording, lambda _: None).states == 4

    def judge(state: CrashState) -> None:
        if state.files["f"] == Z + B:
            raise BackendError("as it should not be")

    with pytest.raises(BackendError) as failure:
        explore(recording, judge)
    (told,) = failure.value.__notes__
    assert told == (
        "crash at operation 2 of 2: versions [0, 1] of [(0, 0), (0, 1)]; the last ones were\n"
        "  0: 512 bytes at 0 of file 0 written\n"
        "  1: 512 bytes at 512 of file 0 written"
    )
    with pytest.raises(InternalError):
        explore(of_file(Write(0, 0, A)), judge, since=9)


def test_a_killed_process_leaves_what_it_wrote_and_nothing_of_it_durable() -> None:
    recording = of_file(Write(0, 0, A, durable=True), Write(0, SECTOR_BYTES, B, durable=True))
    recording.note("both are durable")
    within = recording.killed_at(2)
    assert live_state(within).files == {"f": A + B}
    within.operations.append(Write(0, 0, C))
    assert contents(within) == {Z + Z, A + Z, A + B, C + Z, C + B}
    told = recording.killed_at(3)
    assert live_state(told).notes == ("both are durable",)
    told.operations.append(Write(0, 0, C))
    assert {state.files["f"] for state in crash_states(told, since=3)} == {A + B, C + B}
    assert recording.killed_at(0).operations == []


def test_a_kill_within_a_flush_takes_it_back() -> None:
    recording = Recording({"f": Z})
    recording.create("g")
    recording.sync_directory()
    recording.rename("g", "h")
    recording.unlink("h")
    recording.operations.append(Flush(0))
    assert recording.killed_at(2).operations == recording.operations[:1]
    assert recording.killed_at(5).operations == recording.operations[:4]
    assert set(live_state(recording.killed_at(3)).files) == {"f", "h"}
    assert set(live_state(recording).files) == {"f"}


def test_a_watched_file_is_the_file_and_leaves_a_recording() -> None:
    medium = SimMedium()
    medium.create("f", 8192)
    recording = Recording({"f": medium.content("f")})
    file = recording.watch(medium.open("f"))
    file.write(0, (b"one", b"two"))
    file.write(4096, (A,), durable=True)
    file.zero(0, 3, keep_space=False)
    file.flush()
    assert recording.operations == [
        Write(0, 0, b"onetwo"),
        Write(0, 4096, A, durable=True),
        Write(0, 0, bytes(3)),
        Flush(0),
    ]
    assert file.read(0, 6) == b"\0\0\0two"
    view = bytearray(3)
    assert file.read_nowait(3, memoryview(view))
    assert view == b"two"
    assert file.allocation(0, 8192) == [(8192, False)]
    assert file.hole_bytes(0, 8192) == 0
    file.will_need(0, 1)
    file.close()
    assert live_state(recording).files["f"] == medium.content("f")


def test_a_watched_directory_leaves_what_it_promises() -> None:
    medium = SimMedium()
    recording = Recording()
    directory = RecordingDirectory(SimDirectory(medium, "d/"), recording)
    file = directory.create("new")
    file.resize(SECTOR_BYTES)
    file.write(0, (A,))
    file.flush()
    assert directory.names("n") == ["new"]
    directory.publish(file, "f")
    assert file.path == "d/f"
    file.close()
    with contextlib.closing(directory.open("f")) as again:
        assert again.read(0, SECTOR_BYTES) == A
    directory.remove("f")
    directory.remove("f")
    assert recording.operations == [
        Link("new", 0),
        SyncDirectory(),
        Resize(0, SECTOR_BYTES),
        Write(0, 0, A),
        Flush(0),
        Rename("new", "f"),
        SyncDirectory(),
        Unlink("f"),
        SyncDirectory(),
    ]
    stranger = SimDirectory(medium, "d/").create("stranger")
    with pytest.raises(InternalError):
        directory.publish(stranger, "g")
    stranger.close()


def test_a_state_becomes_a_medium_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"left over")
    state = CrashState({"a": A, "b": b""}, (), 0, "")
    state.lay_out(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": A, "b": b""}
    medium = state.medium()
    assert medium.names() == ["a", "b"]
    assert medium.open("a").read(0, SECTOR_BYTES) == A
    assert medium.undecided() == []
