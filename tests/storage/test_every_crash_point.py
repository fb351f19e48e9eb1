"""Every crash point of a replica's life: cut, reopened, and held against the rules.

Recorded lives (made, used, recovered, ended) run on simulated files; ``testing.crashpoints`` builds what a
crash may leave of them at every point.  Each state is opened by the product's own loader.  Then the same once
more with a bug planted, which must be found.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pairsync.core.dirty import PAGE_BLOCKS
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import MetadataError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.replica import Replica, recover_replica
from pairsync.storage import slots
from pairsync.storage.bitmap import Bitmap
from pairsync.storage.blockfile import enlarge_file
from pairsync.storage.file import RawFile
from pairsync.storage.journal import Journal
from pairsync.storage.metadata import MetadataStore, format_metadata, load_metadata, metadata_bytes
from pairsync.storage.slots import DualSlot, SlotValue
from pairsync.testing import replica_life
from pairsync.testing.crashpoints import Budget, CrashState, crash_states, explore, live_state
from pairsync.testing.disks import SimMedium
from pairsync.testing.recording import Note, Recording, RecordingFile, Resize
from pairsync.testing.replica_ledger import (
    PAIR_ID,
    SEGMENT_BYTES,
    VOLUME_NAME,
    Known,
    Ledger,
    RuleBroken,
    check_content,
    check_found,
    found_blocks,
    life_superblock,
)
from pairsync.testing.replica_life import ReplicaLife, hand_made, wander
from pairsync.testing.simfiles import SimGrowingFile

BLOCKS = 12
SIZE = BLOCKS * BLOCK_BYTES

WIDE_SIZE = 3 * PAGE_BLOCKS * BLOCK_BYTES
"""Of a volume with three pages of bitmap, whose content is left out."""

FULL = Budget(exhaustive_max=256, subsets_max=256, draws=24)
BRIEF = Budget(exhaustive_max=16, subsets_max=16, draws=2)
TINY = Budget(exhaustive_max=8, subsets_max=4, draws=1)


def made(size_bytes: int = SIZE) -> SimMedium:
    """A new replica: metadata "m" and volume "v", durable."""
    medium = SimMedium()
    medium.create("m", metadata_bytes(size_bytes, SEGMENT_BYTES))
    file = medium.open("m")
    format_metadata(file, life_superblock(1, size_bytes, clean=True), segment_bytes=SEGMENT_BYTES)
    file.close()
    if size_bytes == SIZE:
        medium.create("v", size_bytes)
    return medium


def growing(medium: SimMedium, name: str) -> SimGrowingFile:
    return SimGrowingFile(medium, medium.claim(name))


def recording_of(medium: SimMedium) -> Recording:
    return Recording({name: medium.content(name) for name in medium.names()})


def opened_life(medium: SimMedium, recording: Recording, ledger: Ledger) -> ReplicaLife:
    opened = load_metadata(recording.watch(growing(medium, "m")))
    size_bytes = opened.superblock.size_bytes
    device = RawFile(recording.watch(growing(medium, "v")), size_bytes) if "v" in medium.names() else None
    return ReplicaLife(opened, device, ledger, recording.note)


def recorded(live: Callable[[ReplicaLife], None], size_bytes: int = SIZE) -> Recording:
    """A new replica's life from its first opening on."""
    medium = made(size_bytes)
    recording = recording_of(medium)
    ledger = Ledger(size_bytes)
    recording.note(ledger.known())
    live(opened_life(medium, recording, ledger))
    return recording


def reopened(medium: SimMedium) -> Replica:
    volume = VolumeConfig(VOLUME_NAME, "v")

    def open_device(size_bytes: int) -> RawFile:
        file = growing(medium, "v")
        if file.size_bytes < size_bytes:
            raise RuleBroken(f"a volume of {size_bytes} bytes in a file of {file.size_bytes}")
        return RawFile(file, size_bytes)

    return recover_replica(load_metadata(growing(medium, "m")), open_device, volume, PAIR_ID)


def judge(state: CrashState) -> None:
    """The rules, for a whole replica."""
    known: Known = state.notes[-1]
    replica = reopened(state.medium())
    setup = replica.setup
    check_found(setup.superblock, setup.recovered, setup.first_generation, known)
    check_content(replica.device, setup.recovered, known)


def judge_metadata(state: CrashState) -> None:
    """The rules, where there is no volume."""
    opened = load_metadata(growing(state.medium(), "m"))
    check_found(opened.superblock, found_blocks(opened), opened.generation_next, state.notes[-1])


def second_life(state: CrashState, recording: Recording) -> None:
    """Another process finds that state: it recovers, and goes on."""
    life = opened_life(state.medium(), recording, Ledger.after(state.notes[-1], SIZE))
    life.begin()
    life.meet()
    life.write([2, 6])
    life.cut()
    life.write([0])
    life.finish()


def stops(recording: Recording) -> list[int]:
    """Where a process may be killed: within every operation, and when it has been told of its end."""
    return [
        at
        for at, operation in enumerate(recording.operations, 1)
        if not isinstance(operation, Note) or not isinstance(recording.operations[at - 2], Note)
    ]


# -- the scenarios: each returns how many states it examined ------------------------------------------------


def a_new_file() -> int:
    """Made under another name, and renamed when it is whole."""
    medium = SimMedium()
    medium.create("m.new", metadata_bytes(SIZE, SEGMENT_BYTES))
    recording = Recording()
    recording.operations.append(Resize(recording.create("m.new"), metadata_bytes(SIZE, SEGMENT_BYTES)))
    file = recording.watch(medium.open("m.new"))
    format_metadata(file, life_superblock(1, SIZE, clean=True), segment_bytes=SEGMENT_BYTES)
    recording.rename("m.new", "m")
    recording.sync_directory()
    recording.note(Ledger(SIZE).known())

    def judge_new(state: CrashState) -> None:
        if state.notes or "m" in state.files:
            opened = load_metadata(state.medium().open("m"))
            check_found(opened.superblock, found_blocks(opened), 1, Ledger(SIZE).known())

    return explore(recording, judge_new, FULL).states


def a_life_with_everything() -> int:
    def live(life: ReplicaLife) -> None:
        hand_made(life)
        life.end()

    return explore(recorded(live), judge, FULL).states


def an_orderly_end() -> int:
    def live(life: ReplicaLife) -> None:
        life.begin()
        life.write([1, 8])
        life.end()

    return explore(recorded(live), judge, FULL).states


def a_drawn_life(seed: int) -> int:
    def live(life: ReplicaLife) -> None:
        life.begin()
        wander(life, random.Random(seed), 30, range(BLOCKS))
        life.end()

    return explore(recorded(live), judge, BRIEF).states


def a_volume_that_grows() -> int:
    """Twice, in the middle of a life; the file has rubbish behind the volume's end."""

    def live(life: ReplicaLife) -> None:
        life.begin()
        life.write([1, BLOCKS - 1])
        life.grow(2)
        life.write([BLOCKS, 3])
        life.meet()
        life.resync()
        life.cut()
        life.grow(3)
        life.write([BLOCKS + 4, BLOCKS])
        life.finish()
        life.end()

    medium = made()
    medium.remove("v")
    medium.create("v", SIZE + 3 * BLOCK_BYTES)
    file = medium.open("v")
    file.write(SIZE, [b"rubbish." * 1024])
    file.flush()
    file.close()
    recording = recording_of(medium)
    ledger = Ledger(SIZE)
    recording.note(ledger.known())
    live(opened_life(medium, recording, ledger))
    return explore(recording, judge, BRIEF).states


def a_map_that_grows() -> int:
    """By a page of bitmap, and by two."""
    places = [0, PAGE_BLOCKS - 1, 3 * PAGE_BLOCKS - 1]

    def live(life: ReplicaLife) -> None:
        life.begin()
        life.write(places)
        life.grow(1)
        life.write([3 * PAGE_BLOCKS])
        life.cut()
        life.finish()
        life.grow(PAGE_BLOCKS)
        wander(life, random.Random(3), 12, [*places, 3 * PAGE_BLOCKS, 4 * PAGE_BLOCKS])
        life.end()

    return explore(recorded(live, WIDE_SIZE), judge_metadata, BRIEF).states


def wide_maps(seed: int) -> int:
    """Of three bitmap pages, with intents that fill several records; without the volume's content."""
    places = [0, 3647, 3648, PAGE_BLOCKS - 1, PAGE_BLOCKS, 2 * PAGE_BLOCKS + 7, 3 * PAGE_BLOCKS - 1]

    def live(life: ReplicaLife) -> None:
        life.begin()
        wander(life, random.Random(seed), 20, places)
        life.write(range(1, 2 * 520, 2))  # two records
        life.cut()
        life.finish()
        wander(life, random.Random(seed), 10, places)

    return explore(recorded(live, WIDE_SIZE), judge_metadata, BRIEF).states


def killed_and_then_a_power_cut() -> int:
    """What a killed process has left in the page cache is found by the next one, and can still be lost.

    Killed at every third point.
    """
    first = recorded(hand_made)
    states = 0
    for stop in stops(first)[::3]:
        recording = first.killed_at(stop)
        since = len(recording.operations)
        second_life(live_state(recording), recording)
        states += explore(recording, judge, TINY, since=since).states
    return states


def killed_in_a_release() -> int:
    """The segment is used again, by a record of several sectors, when its release may still be lost."""

    def live(life: ReplicaLife) -> None:
        life.begin()
        life.meet()
        life.write([1])
        life.write([2])
        life.cut()
        life.finish()

    first = recorded(live, WIDE_SIZE)
    states = 0
    for stop in stops(first):
        recording = first.killed_at(stop)
        since = len(recording.operations)
        state = live_state(recording)
        life = opened_life(state.medium(), recording, Ledger.after(state.notes[-1], WIDE_SIZE))
        life.begin()
        life.meet()
        life.write([3])
        life.cut()
        life.write(range(100, 300, 2))
        states += explore(recording, judge_metadata, TINY, since=since).states
    return states


def two_power_cuts() -> int:
    """Every thirtieth state that a first one leaves is lived on, and cut again."""
    states = 0
    for state in list(crash_states(recorded(hand_made), BRIEF))[::30]:
        recording = Recording(state.files)
        recording.note(state.notes[-1])
        second_life(state, recording)
        states += explore(recording, judge, TINY).states
    return states


# -- the rules hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "states_min"),
    [
        (a_new_file, 20),
        (a_life_with_everything, 2000),
        (an_orderly_end, 50),
        (a_volume_that_grows, 120),
        (a_map_that_grows, 60),
        (lambda: sum(map(a_drawn_life, range(3))), 1500),
        (lambda: sum(map(wide_maps, range(8))), 500),
        (killed_and_then_a_power_cut, 3000),
        (killed_in_a_release, 200),
        (two_power_cuts, 1000),
    ],
    ids=["format", "everything", "end", "grows", "map-grows", "drawn", "wide", "killed", "release", "twice"],
)
def test_every_crash_point(
    scenario: Callable[[], int], states_min: int, record_property: Callable[[str, object], None]
) -> None:
    states = scenario()
    record_property("states", states)
    print(f"{states} states examined")
    assert states >= states_min


# -- planted bugs are found ----------------------------------------------------------------------------------


class Careless:
    """A file that does not flush, or makes no write durable."""

    def __init__(self, file: Any, *, flushes: bool, durable: bool) -> None:
        self._file = file
        self._flushes = flushes
        self._durable = durable

    def write(self, offset: int, buffers: Sequence[bytes], *, durable: bool = False) -> None:
        self._file.write(offset, buffers, durable=durable and self._durable)

    def flush(self) -> None:
        if self._flushes:
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def carelessly(
    method: Callable[..., Any], *, flushes: bool = True, durable: bool = True
) -> Callable[..., Any]:
    """The method of an object that has a ``_file``, while that is careless."""

    def planted(self: Any, *args: Any) -> Any:
        file = self._file
        self._file = Careless(file, flushes=flushes, durable=durable)
        try:
            return method(self, *args)
        finally:
            self._file = file

    return planted


def release_first(store: MetadataStore, pages: Mapping[int, bytes], release: Sequence[int]) -> int:
    for segment in release:
        store.release_segment(segment)
    if pages:
        store.write_bitmap(pages)
    return 0


def store_in_one_slot(self: Any, payload: bytes) -> None:
    self._sequence += 1
    raw = slots.encode_slot(self._kind, SlotValue(self._sequence, payload))
    self._file.write(self._offsets[0], (raw,), durable=True)


def trusting(kind: int, raw: bytes) -> SlotValue | None:
    """`decode_slot` without a look at the digest."""
    found_kind, length, sequence = slots._FIELDS.unpack_from(raw, 16)
    return SlotValue(sequence, raw[48 : 48 + length]) if found_kind == kind else None


def data_first(self: Any, segment: int, number: int, fresh: Sequence[Any]) -> None:
    """`ReplicaLife._record`, put off until the data have been written."""
    apply, record = type(self)._apply, planted_originals["record"]

    def late(*args: Any) -> None:
        apply(self, *args)
        del self._apply
        record(self, segment, number, fresh)

    self._apply = late


planted_originals = {"record": ReplicaLife._record}


def forget_pages(self: ReplicaLife) -> None:
    """`ReplicaLife.begin` without the bitmap."""
    self.superblock()
    self.tracker.pages_to_save()
    self._save({}, (0, 1))


def size_first(self: ReplicaLife, blocks: int) -> None:
    """`ReplicaLife.grow`: the size before the room in the volume."""
    size_bytes = self._size_bytes + blocks * BLOCK_BYTES
    self.store.extend(size_bytes)
    self._replace(size_bytes, clean=False)
    self._size_bytes = size_bytes
    self.tracker.grow(size_bytes // BLOCK_BYTES)
    if self._device is not None:
        self._device.extend(size_bytes)
        self._device.enlarge(size_bytes)


def extend_without_zeroes(self: RawFile, size_bytes: int) -> None:
    enlarge_file(self._file, size_bytes)
    self._file.flush()


def clean_too_early(self: ReplicaLife) -> None:
    """`ReplicaLife.end`: the label before the map."""
    self.superblock(clean=True)
    self.cut()
    self.finish()


def from_1(self: Journal) -> Any:
    """`Journal.replay` without a memory of generations."""
    found = replay(self)
    self._generation_max = 0
    return found._replace(generation_next=1)


def settle_superblocks(self: Any) -> None:
    """`DualSlot.settle` where the value is kept twice."""
    if self._mirrored:
        settle(self)


def only_segment_0(self: Any, filling: Any) -> Any:
    return [] if filling.number else replay_segment(self, filling)


replay, replay_segment, settle = Journal.replay, Journal._replay_segment, DualSlot.settle

PLANTED: list[tuple[str, Any, str, Any, Callable[[], int]]] = [
    ("bitmap not flushed", Bitmap, "write", carelessly(Bitmap.write, flushes=False), a_life_with_everything),
    (
        "intents not durable",
        Journal,
        "append",
        carelessly(Journal.append, durable=False),
        a_life_with_everything,
    ),
    (
        "slots not durable",
        DualSlot,
        "store",
        carelessly(DualSlot.store, durable=False),
        a_life_with_everything,
    ),
    ("released before the bitmap", replica_life, "save_job", release_first, a_life_with_everything),
    ("one slot", DualSlot, "store", store_in_one_slot, a_life_with_everything),
    ("torn slots are taken", slots, "decode_slot", trusting, a_life_with_everything),
    ("data before intents", ReplicaLife, "_record", data_first, a_life_with_everything),
    ("data not flushed", replica_life, "flush_job", lambda _: 0, a_life_with_everything),
    ("clean before the map", ReplicaLife, "end", clean_too_early, an_orderly_end),
    ("the size before the room", ReplicaLife, "grow", size_first, a_volume_that_grows),
    ("rubbish in the room", RawFile, "extend", extend_without_zeroes, a_volume_that_grows),
    (
        "room that is not flushed",
        RawFile,
        "extend",
        carelessly(RawFile.extend, flushes=False),
        a_volume_that_grows,
    ),
    ("one segment replayed", Journal, "_replay_segment", only_segment_0, a_life_with_everything),
    ("recovery forgets the map", ReplicaLife, "begin", forget_pages, two_power_cuts),
    ("generations begin anew", Journal, "replay", from_1, a_life_with_everything),
    ("found is not durable", DualSlot, "settle", lambda _: None, killed_and_then_a_power_cut),
    ("found release is not durable", DualSlot, "settle", settle_superblocks, killed_in_a_release),
    ("renamed before it is flushed", RecordingFile, "_flush", lambda _: None, a_new_file),
]


@pytest.mark.parametrize(
    ("where", "name", "planted", "scenario"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED]
)
def test_a_planted_bug_is_found(
    where: Any, name: str, planted: Any, scenario: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, planted)
    with pytest.raises((RuleBroken, MetadataError)) as found:
        scenario()
    assert found.value.__notes__[0].startswith("crash at operation")
    print(f"{found.value}\n{found.value.__notes__[0]}")
