"""The metadata file as a whole: made whole or not at all, opened alone, safe at every crash."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bitarray import bitarray

from pairsync.core.dirty import PAGE_BLOCKS, PAGE_BYTES, DirtyMap
from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, MIB, TIB, block_count_of
from pairsync.errors import BackendError, BusyError, ConfigError, InternalError, MetadataError
from pairsync.storage import osfile
from pairsync.storage.metadata import (
    MetadataStore,
    OpenedMetadata,
    create_metadata,
    format_metadata,
    load_metadata,
    metadata_bytes,
    metadata_path,
    open_metadata,
)
from pairsync.testing.disks import Fault, PowerCut, SimAction, SimMedium

SEGMENT_BYTES = 64 * 1024
BLOCKS = 3 * PAGE_BLOCKS
SIZE = BLOCKS * 4096


def _blocks(extents: Iterable[tuple[int, int]]) -> set[int]:
    return {block for start, stop in extents for block in range(start, stop)}


def _dirty(opened: OpenedMetadata) -> set[int]:
    """The dirty set as a volume would take it: bitmap and journal together."""
    found = _blocks(opened.intents)
    for page in opened.pages:
        bits = bitarray(endian="little")
        bits.frombytes(page.content)
        found |= {page.number * PAGE_BLOCKS + i for i in bits.search(bitarray("1"))}
    return found


def _pages(blocks: set[int]) -> dict[int, bytes]:
    """All pages of the volume with those blocks marked."""
    dirty = DirtyMap(BLOCKS)
    for block in blocks:
        dirty.mark(block, block + 1)
    return {number: dirty.page_bytes(number) for number in range(3)}


@pytest.fixture
def new_medium(make_superblock: Any) -> Callable[[], SimMedium]:
    """Makes a medium with fresh metadata in the file "m"."""

    def make() -> SimMedium:
        medium = SimMedium()
        medium.create("m", metadata_bytes(SIZE, SEGMENT_BYTES))
        file = medium.open("m")
        format_metadata(file, make_superblock(size_bytes=SIZE), segment_bytes=SEGMENT_BYTES)
        file.close()
        return medium

    return make


def _opened(medium: SimMedium) -> OpenedMetadata:
    medium.process_crash()
    return load_metadata(medium.open("m"))


# -- real files ----------------------------------------------------------------------------------------------


def test_made_opened_written_and_opened_again(tmp_path: Path, make_superblock: Any) -> None:
    path = Path(metadata_path(tmp_path / "vda"))
    assert path.name == "vda.pairsync"
    create_metadata(path, make_superblock(size_bytes=SIZE))
    assert [entry.name for entry in tmp_path.iterdir()] == ["vda.pairsync"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == metadata_bytes(SIZE)
    opened = open_metadata(path)
    assert opened.superblock == make_superblock(size_bytes=SIZE)
    assert (_dirty(opened), opened.generation_next, opened.notes) == (set(), 1, ())
    store = opened.store
    store.append_intents(1, 1, [(5, 8)])
    store.append_intents(1, 1, [(BLOCKS - 1, BLOCKS)])
    store.write_bitmap(_pages({7, 9, PAGE_BLOCKS}))
    newer = make_superblock(
        size_bytes=SIZE, term=2, condition=Condition.SYNCING, sync_target=Generation(2, 1, 5)
    )
    store.write_superblock(newer)
    assert store.superblock == newer
    assert store.path == str(path)
    assert store.sound
    store.close()
    store.close()
    again = open_metadata(path)
    assert again.superblock == newer
    assert again.generation_next == 2
    assert _dirty(again) == {5, 6, 7, 9, PAGE_BLOCKS, BLOCKS - 1}
    again.store.release_segment(0)
    again.store.release_segment(1)
    again.store.open_segment(0, 2)
    assert again.store.segment_room(0) == 2048
    assert {page.number for page in again.store.read_bitmap()} == {0, 1}
    again.store.close()


def test_an_existing_file_is_not_touched(tmp_path: Path, make_superblock: Any) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        create_metadata(path, make_superblock())
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_one_process_at_a_time(tmp_path: Path, make_superblock: Any) -> None:
    path = tmp_path / "m"
    create_metadata(path, make_superblock(), segment_bytes=SEGMENT_BYTES)
    opened = open_metadata(path)
    with pytest.raises(BusyError, match="in use"):
        open_metadata(path)
    opened.store.close()
    open_metadata(path).store.close()


def test_a_creation_that_was_cut_short_is_taken_over(tmp_path: Path, make_superblock: Any) -> None:
    path = tmp_path / "m"
    path.with_name("m.new").write_bytes(b"left behind" * 100_000)
    create_metadata(path, make_superblock(), segment_bytes=SEGMENT_BYTES)
    opened = open_metadata(path)
    assert _dirty(opened) == set()
    opened.store.close()
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_creation_that_fails_leaves_nothing(
    tmp_path: Path, make_superblock: Any, file_size_limit: None
) -> None:
    with pytest.raises(BackendError, match="File too large"):
        create_metadata(tmp_path / "m", make_superblock())
    with pytest.raises(BackendError, match="No such file"):
        create_metadata(tmp_path / "missing" / "m", make_superblock())
    with pytest.raises(InternalError):
        create_metadata(tmp_path / "m", make_superblock(name="n" * 500), segment_bytes=SEGMENT_BYTES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.tools("mount", "umount")
def test_out_of_space(tmp_path: Path, make_superblock: Any) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        for size, segment_bytes in ((SIZE, 8 * MIB), (TIB, SEGMENT_BYTES)):
            with pytest.raises(BackendError, match="No space left on device") as caught:
                create_metadata(tmp_path / "m", make_superblock(size_bytes=size), segment_bytes=segment_bytes)
            assert caught.value.errno == errno.ENOSPC
            assert list(tmp_path.iterdir()) == []
        create_metadata(tmp_path / "m", make_superblock(size_bytes=SIZE), segment_bytes=SEGMENT_BYTES)
        store = open_metadata(tmp_path / "m").store
        assert not store.may_block
        with contextlib.suppress(OSError), open(tmp_path / "hog", "wb") as hog:
            hog.write(bytes(MIB))
        store.write_bitmap(_pages({1, 2 * PAGE_BLOCKS}))  # its space was there from the beginning
        store.append_intents(0, 1, [(1, 2)])
        store.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_terabyte(tmp_path: Path, make_superblock: Any) -> None:
    path = tmp_path / "m"
    create_metadata(path, make_superblock(size_bytes=TIB), segment_bytes=SEGMENT_BYTES)
    store = open_metadata(path).store
    store.write_bitmap({0: b"\x01" * PAGE_BYTES, 8191: b"\x80" * PAGE_BYTES})
    store.append_intents(0, 1, [(0, block_count_of(TIB))])  # a discard of everything
    store.close()
    script = textwrap.dedent(
        """
        import resource, sys
        from pairsync.storage.metadata import open_metadata
        before = resource.getrusage(resource.RUSAGE_SELF)
        opened = open_metadata(sys.argv[1])
        print([page.number for page in opened.pages], opened.intents[0].stop)
        after = resource.getrusage(resource.RUSAGE_SELF)
        print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        print((after.ru_maxrss - before.ru_maxrss) // 1024)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert done[0] == f"[0, 8191] {block_count_of(TIB)}"
    assert float(done[1]) < 1  # seconds of processor time
    assert int(done[2]) < 16  # MiB
    assert path.stat().st_blocks * 512 < 40 * MIB


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_reserved_pages_are_not_read(
    where: str, tmp_path: Path, memory_path: Path, make_superblock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (tmp_path if where == "disk" else memory_path) / "m"
    create_metadata(path, make_superblock(size_bytes=TIB), segment_bytes=SEGMENT_BYTES)
    opened = open_metadata(path)
    read_bytes: list[int] = []
    real, real_too = os.preadv, os.pread

    def counting(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        read_bytes.append(len(buffers[0]))
        return real(fd, buffers, offset, flags)

    def counting_too(fd: int, length: int, offset: int) -> bytes:
        read_bytes.append(length)
        return real_too(fd, length, offset)

    monkeypatch.setattr(os, "preadv", counting)
    monkeypatch.setattr(os, "pread", counting_too)
    assert _dirty(opened) == set()
    assert sum(read_bytes) < MIB
    opened.store.close()


def test_where_space_cannot_be_reserved_the_file_is_sparse(
    tmp_path: Path, make_superblock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(osfile, "fallocate", refusing)
    create_metadata(tmp_path / "m", make_superblock(size_bytes=TIB), segment_bytes=SEGMENT_BYTES)
    assert (tmp_path / "m").stat().st_blocks * 512 < 2 * MIB
    opened = open_metadata(tmp_path / "m")
    assert _dirty(opened) == set()
    opened.store.close()


def test_a_process_killed_in_mid_append_keeps_what_it_was_told_is_durable(
    tmp_path: Path, make_superblock: Any
) -> None:
    path = tmp_path / "m"
    create_metadata(path, make_superblock(size_bytes=TIB), segment_bytes=4 * MIB)
    script = textwrap.dedent(
        """
        import sys
        from pairsync.storage.metadata import open_metadata
        store = open_metadata(sys.argv[1]).store
        for number in range(1000):
            store.append_intents(1, 1, [(7 * number, 7 * number + 3)])
            print(number, flush=True)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 200:
                child.kill()
                break
        reported = 200 + len(child.stdout.read().split())
    opened = open_metadata(path)  # the lock died with the process
    found = _blocks(opened.intents)
    assert found >= {7 * n + i for n in range(reported + 1) for i in range(3)}
    assert found <= {7 * n + i for n in range(reported + 2) for i in range(3)}
    opened.store.close()


# -- what is no metadata -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(65536), b"PAIRSYNC" * 100_000])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MetadataError, match=f"{path}: damaged"):
        open_metadata(path)
    assert path.read_bytes() == content
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("change_bytes", [-4096, -1])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, make_superblock: Any, change_bytes: int) -> None:
    path = tmp_path / "m"
    create_metadata(path, make_superblock(), segment_bytes=SEGMENT_BYTES)
    os.truncate(path, path.stat().st_size + change_bytes)
    with pytest.raises(MetadataError, match=r"damaged: has .* expected for volume vda"):
        open_metadata(path)


def test_a_longer_file_is_what_a_growth_cut_short_leaves(tmp_path: Path, make_superblock: Any) -> None:
    path = tmp_path / "m"
    create_metadata(path, make_superblock(), segment_bytes=SEGMENT_BYTES)
    os.truncate(path, path.stat().st_size + 4096)
    opened = open_metadata(path)
    assert opened.superblock == make_superblock()
    assert list(opened.pages) == []
    opened.store.close()


def test_a_volume_grows_in_the_middle_of_everything(tmp_path: Path, make_superblock: Any) -> None:
    path = tmp_path / "m"
    block = make_superblock()
    create_metadata(path, block, segment_bytes=SEGMENT_BYTES)
    opened = open_metadata(path)
    store = opened.store
    blocks = block_count_of(block.size_bytes)
    larger = block.size_bytes + 3 * PAGE_BLOCKS * BLOCK_BYTES
    with pytest.raises(InternalError):
        store.write_superblock(replace(block, size_bytes=larger))  # there is no room yet
    store.append_intents(0, 1, [(0, 1)])
    store.extend(larger)
    assert path.stat().st_size == metadata_bytes(larger, SEGMENT_BYTES)
    with pytest.raises(InternalError):
        store.append_intents(0, 1, [(blocks, blocks + 1)])
    store.write_superblock(replace(block, size_bytes=larger, clean=False))
    store.append_intents(0, 1, [(blocks + 7, blocks + 9)])
    last = (block_count_of(larger) - 1) // PAGE_BLOCKS
    store.write_bitmap({last: b"\x01" + bytes(PAGE_BYTES - 1)})
    with pytest.raises(InternalError):
        store.write_superblock(block)
    store.close()
    again = open_metadata(path)
    assert again.superblock.size_bytes == larger
    assert [page.number for page in again.pages] == [last]
    assert list(again.intents) == [(0, 1), (blocks + 7, blocks + 9)]
    again.store.close()


def test_a_file_that_cannot_be_enlarged_says_so(new_medium: Callable[[], SimMedium]) -> None:
    store = _opened(new_medium()).store
    with pytest.raises(BackendError, match="cannot be enlarged"):
        store.extend(store.superblock.size_bytes + (1 << 40))


def test_a_superblock_that_makes_no_sense_is_refused(new_medium: Callable[[], SimMedium]) -> None:
    medium = new_medium()
    store = _opened(medium).store
    store._slots.store(b"a whole slot of something else")
    with pytest.raises(MetadataError, match="m: damaged: superblock: not msgpack"):
        _opened(medium)


def test_the_size_of_a_volume_is_fixed(new_medium: Callable[[], SimMedium], make_superblock: Any) -> None:
    store = _opened(new_medium()).store
    with pytest.raises(InternalError):
        store.write_superblock(make_superblock(size_bytes=SIZE + 1))


def test_flipped_bits_give_the_same_or_a_refusal(
    new_medium: Callable[[], SimMedium], make_superblock: Any
) -> None:
    """One damaged byte anywhere in slots and journal: the same content, more dirty blocks, or an error."""
    medium = new_medium()
    store = _opened(medium).store
    newest = make_superblock(size_bytes=SIZE, term=9)
    store.write_superblock(newest)
    for number in range(3):
        store.append_intents(0, 1, [(number, number + 1)])
    refused = same = 0
    header = 64 * 1024
    places = [*range(100), *range(16384, 16484), *range(32768, 32848), *range(36864, 36944)]
    places += [header + 4096 * page + at for page in range(3) for at in range(64)]
    for at in places:
        medium.damage("m", at, 0x21)
        try:
            opened = _opened(medium)
        except MetadataError:
            refused += 1
        else:
            same += 1
            assert opened.superblock == newest
            assert _dirty(opened) >= {0, 1}
        medium.damage("m", at, 0x21)
    assert same >= 360
    assert refused >= 100  # the first two records of the journal


def test_damage_is_noted(new_medium: Callable[[], SimMedium]) -> None:
    medium = new_medium()
    medium.damage("m", 16384 + 60, 1)
    medium.damage("m", 32768 + 49, 1)
    notes = _opened(medium).notes
    assert notes == (
        "the superblock at 16384 is torn or damaged; the other copy was used",
        "the journal release mark at 32768 is torn or damaged; the other copy was used",
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_takes_no_write_opens_and_says_so(
    new_medium: Callable[[], SimMedium], number: int
) -> None:
    medium = new_medium()
    _opened(medium).store.append_intents(0, 1, [(1, 2)])
    medium.fault = lambda op: Fault(number) if op.action is SimAction.WRITE else None
    opened = _opened(medium)
    (note,) = opened.notes
    assert note.startswith("what was found could not be made durable: m: write of 4096 bytes at 0: ")
    assert _dirty(opened) == {1}
    with pytest.raises(BackendError):
        opened.store.append_intents(1, opened.generation_next, [(5, 6)])
    medium.fault = None
    if number == errno.ENOSPC:  # there may be room later
        opened.store.append_intents(1, opened.generation_next, [(5, 6)])
        assert _dirty(_opened(medium)) == {1, 5}


def test_a_failed_flush_ends_all_writing(new_medium: Callable[[], SimMedium], make_superblock: Any) -> None:
    medium = new_medium()
    store = _opened(medium).store
    medium.fault = lambda op: Fault(errno.EIO) if op.action is SimAction.FLUSH else None
    with pytest.raises(BackendError):
        store.write_bitmap(_pages({1}))
    medium.fault = None
    assert not store.sound
    attempts: list[Callable[[], None]] = [
        lambda: store.write_bitmap(_pages({1})),
        lambda: store.append_intents(0, 1, [(1, 2)]),
        lambda: store.write_superblock(make_superblock(size_bytes=SIZE)),
    ]
    for attempt in attempts:
        with pytest.raises(BackendError, match="an earlier flush failed"):
            attempt()


# -- power cuts ----------------------------------------------------------------------------------------------


class Known:
    """What a volume knows to be durable while it uses its metadata."""

    def __init__(self, superblock: Superblock) -> None:
        self.superblocks = [superblock]  # the durable one, and the one that is being written
        self.dirty: set[int] = set()  # must be found
        self.maybe: set[int] = set()  # may be found too


def _use(store: MetadataStore, first_generation: int, known: Known, make: Any) -> None:
    """Four write-intent generations as ``core.tracker`` runs them, with blocks that the peer lacks.

    Of every generation the even blocks turn out to be durable on the peer and the odd ones not.
    """
    todo: set[int] = set()
    previous: set[int] = set()
    for number in range(first_generation, first_generation + 4):
        segment = number % 2
        here: set[int] = set()
        for step in range(3):
            start = 5000 * number + 911 * step + number
            extents = [(start, start + 3), (start + 50, start + 51)]
            known.maybe |= _blocks(extents)
            store.append_intents(segment, number, extents)
            here |= _blocks(extents)
            known.dirty |= _blocks(extents)
        if previous:  # the generation before closes: its odd blocks go to the bitmap, its even ones are safe
            before = {block for block in todo if block % 4 == 1}
            todo -= before  # these were resynced meanwhile
            todo |= {block for block in previous if block % 2}
            known.maybe |= before | previous
            known.dirty -= before | {block for block in previous if not block % 2}
            store.write_bitmap(_pages(todo))
            known.maybe -= before - todo - here - previous
            store.release_segment(1 - segment)
            known.maybe -= previous - todo
        previous = here
        newer = make(size_bytes=SIZE, term=number, clean=bool(number % 2))
        known.superblocks.append(newer)
        store.write_superblock(newer)
        known.superblocks = [newer]


def test_a_power_cut_at_every_step(
    new_medium: Callable[[], SimMedium], make_superblock: Any, every_outcome: Callable[..., int]
) -> None:
    first = make_superblock(size_bytes=SIZE)

    def attempt(step: int | None) -> tuple[SimMedium, Known]:
        medium = new_medium()
        opened = _opened(medium)
        known = Known(first)
        medium.step, medium.cut_at_step = 0, step
        with contextlib.suppress(PowerCut):
            _use(opened.store, opened.generation_next, known, make_superblock)
        return medium, known

    def judge(medium: SimMedium, known: Known) -> None:
        opened = _opened(medium)
        assert opened.superblock in known.superblocks
        found = _dirty(opened)
        assert known.dirty <= found
        assert found <= known.dirty | known.maybe
        # Recovery, as `OpenedMetadata` asks for it; a second cut in its middle is the next test's business.
        opened.store.write_bitmap(_pages(found))
        opened.store.release_segment(0)
        opened.store.release_segment(1)
        opened.store.append_intents(0, opened.generation_next, [(1, 2)])
        medium.power_cut(lambda _: 0)
        assert _dirty(_opened(medium)) == found | {1}

    assert every_outcome(attempt, judge) > 300


def test_a_power_cut_at_every_step_of_recovery(
    new_medium: Callable[[], SimMedium], make_superblock: Any, every_outcome: Callable[..., int]
) -> None:
    def attempt(step: int | None) -> tuple[SimMedium, set[int]]:
        medium = new_medium()
        opened = _opened(medium)
        opened.store.write_bitmap(_pages({2, PAGE_BLOCKS + 5}))
        opened.store.append_intents(1, 1, [(5, 9)])
        opened.store.append_intents(0, 2, [(PAGE_BLOCKS, PAGE_BLOCKS + 2)])
        opened = _opened(medium)
        found = _dirty(opened)
        medium.step, medium.cut_at_step = 0, step
        with contextlib.suppress(PowerCut):
            opened.store.write_bitmap(_pages(found))
            opened.store.release_segment(0)
            opened.store.release_segment(1)
        return medium, found

    def judge(medium: SimMedium, known: set[int]) -> None:
        assert _dirty(_opened(medium)) == known

    assert every_outcome(attempt, judge) > 15
