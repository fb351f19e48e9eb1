"""Giving way: on real files and links, at every crash point, and refused where it would not be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from tests.guest.harness import PAIR_ID, Pair, await_event, in_time

from pairsync.core.assembly import state_of
from pairsync.core.dirty import DirtyMap
from pairsync.core.events import TroubleEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Condition, Generation, Introduce, Role, VolumeState
from pairsync.core.superblock import Superblock
from pairsync.core.truths import Concession, concession
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import ArbitrationError, BusyError, ConfigError, MismatchError
from pairsync.guest.concede import (
    Given,
    concede,
    concede_replicas,
    introduction_of,
    look_at_concession,
)
from pairsync.guest.config import VolumeConfig
from pairsync.guest.guest import open_guest
from pairsync.guest.promote import promote_replicas
from pairsync.guest.replica import create_replica, open_replica
from pairsync.storage.metadata import MetadataStore, format_metadata, load_metadata, metadata_bytes
from pairsync.testing.crashpoints import Budget, CrashState, explore
from pairsync.testing.disks import SimMedium
from pairsync.testing.recording import Recording
from pairsync.testing.replica_ledger import SEGMENT_BYTES, RuleBroken, found_blocks, life_superblock

SIZE = 8 * MIB
FIRST, SECOND, THERE = Generation(1, 1, 1), Generation(1, 2, 2), Generation(2, 1, 3)


def never() -> None:
    raise AssertionError("nothing may be forgotten")


async def alone(files: Pair, host: str, term: int, at: int, letter: bytes) -> None:
    """That host writes a mebibyte as an owner without a peer."""
    config = files.config("a" if host == "a" else "b", role=Role.ACTIVE, term=term, link=False)
    async with open_guest(config) as guest:
        await guest.volume("vda").write(at, letter * MIB)
        await guest.volume("vda").flush()


async def written_apart(files: Pair) -> None:
    files.create()
    async with files.both() as (active, _):
        await active.volume("vda").write(0, b"g" * 4 * MIB)
        await active.volume("vda").flush()
    await alone(files, "a", 1, 0, b"a")
    await alone(files, "a", 1, 2 * MIB, b"a")
    await alone(files, "b", 2, MIB, b"b")
    await alone(files, "b", 2, 2 * MIB, b"b")


def introduced(files: Pair, host: str) -> Introduce:
    config = files.config("a" if host == "a" else "b")
    return introduction_of(config.volumes, PAIR_ID, "guest")


def give_way(files: Pair, lost: str, kept: str) -> Given:
    volumes = files.config("a" if lost == "a" else "b").volumes
    theirs = introduced(files, kept)
    before = files.image("a").read_bytes(), files.image("b").read_bytes()
    forgotten: list[Superblock] = []
    told = look_at_concession(volumes, PAIR_ID, theirs=theirs)
    assert look_at_concession(volumes, PAIR_ID, theirs=theirs) == told  # nothing was changed
    old = load_superblock(volumes[0])
    assert concede_replicas(volumes, PAIR_ID, theirs=theirs, forget=lambda: forgotten.append(old)) == told
    assert (files.image("a").read_bytes(), files.image("b").read_bytes()) == before
    again = concede_replicas(volumes, PAIR_ID, theirs=theirs, forget=lambda: forgotten.append(old))
    assert len(forgotten) == 2
    assert again[0].stays
    return told[0]


def load_superblock(volume: VolumeConfig) -> Superblock:
    replica = open_replica(volume, PAIR_ID)
    block = replica.store.superblock
    replica.close()
    return block


async def resynced(files: Pair, kept: str, options: VolumeOptions | None = None) -> None:
    """Both run, the kept one active, until they are in sync."""
    active = files.config("a" if kept == "a" else "b", role=Role.ACTIVE, term=3, options=options)
    standby = files.config("b" if kept == "a" else "a", role=Role.STANDBY, term=3, options=options)
    async with open_guest(standby), open_guest(active) as guest:
        await guest.wait_in_sync()


def kept_overlay(files: Pair, host: str, image: Path) -> bytes:
    """The image of the one overlay there."""
    replica = open_replica(files.config("a" if host == "a" else "b").volumes[0], PAIR_ID)
    assert replica.keeper is not None
    (info,) = replica.keeper.infos()
    replica.keeper.overlays.export(info.id, replica.device, image)
    replica.close()
    return image.read_bytes()


@pytest.mark.parametrize(("lost", "kept", "at"), [("a", "b", 0), ("b", "a", MIB)])
async def test_what_it_had_written_is_overwritten_and_kept(
    files: Pair, tmp_path: Path, lost: str, kept: str, at: int
) -> None:
    async with in_time():
        await written_apart(files)
        given = give_way(files, lost, kept)
        assert not given.everything
        assert 2 * MIB // BLOCK_BYTES <= given.blocks < SIZE // BLOCK_BYTES
        await resynced(files, kept)
        assert files.same()
        content = files.image("a").read_bytes()
        assert content[at : at + MIB] == b"g" * MIB
        assert content[2 * MIB : 3 * MIB] == kept.encode() * MIB
        image = kept_overlay(files, lost, tmp_path / "image")
        assert image[at : at + MIB] == image[2 * MIB : 3 * MIB] == lost.encode() * MIB


async def test_what_was_copied_to_a_peer_that_was_put_back_is_kept_too(files: Pair, tmp_path: Path) -> None:
    """The source of a resync forgets as dirty what is copied.  Where a person puts the half overwritten peer
    back and keeps its side, the source gave up what it still counted as dirty, and lost all else of it."""
    size, narrow = 32 * MIB, VolumeOptions(intent_window_bytes=4 * MIB, inflight_bytes=MIB)
    half = size // BLOCK_BYTES // 2
    async with in_time():
        files.create(size_bytes=size)
        async with files.both() as (active, _):
            await active.volume("vda").write(0, b"g" * size)
        async with open_guest(files.config("a", options=narrow)) as active:
            await active.volume("vda").write(0, b"a" * size)
            await active.volume("vda").flush()
            async with open_guest(files.config("b", options=narrow)):
                while active.statistics().volumes[0].dirty_blocks > half:
                    await trio.lowlevel.checkpoint()
                assert not active.in_sync
        promote_replicas(files.config("b").volumes, PAIR_ID)
        assert files.image("b").read_bytes() == b"g" * size
        given = give_way(files, "a", "b")
        assert (given.everything, given.blocks) == (True, size // BLOCK_BYTES)
        await resynced(files, "b", VolumeOptions(overlay_bytes=2 * size))
        assert files.same()
        assert files.image("a").read_bytes() == b"g" * size
        assert kept_overlay(files, "a", tmp_path / "image") == b"a" * size


async def test_replicas_with_nothing_in_common(files: Pair, tmp_path: Path) -> None:
    """Two disks that were taken over with their content, as copies of one volume."""
    async with in_time():
        for host, letter in (("a", b"a"), ("b", b"b")):
            files.image("a" if host == "a" else "b").write_bytes(letter * SIZE)
        files.create()
        await alone(files, "a", 1, 0, b"x")
        await alone(files, "b", 2, MIB, b"y")
        given = give_way(files, "a", "b")
        assert (given.common, given.everything, given.blocks) == (None, True, SIZE // BLOCK_BYTES)
        await resynced(files, "b", VolumeOptions(overlay_bytes=2 * SIZE))
        assert files.same()
        assert files.image("a").read_bytes() == b"b" * MIB + b"y" * MIB + b"b" * (SIZE - 2 * MIB)
        assert kept_overlay(files, "a", tmp_path / "image") == b"x" * MIB + b"a" * (SIZE - MIB)


async def test_without_room_nothing_of_it_is_overwritten(files: Pair, tmp_path: Path) -> None:
    async with in_time():
        await written_apart(files)
        given = give_way(files, "b", "a")
        assert given.blocks * BLOCK_BYTES > MIB
        little = VolumeOptions(overlay_bytes=MIB)
        standby = files.config("b", role=Role.STANDBY, options=little)
        async with open_guest(standby) as lost, open_guest(files.config("a", term=3)):
            with lost.subscribe() as subscription:
                trouble = await await_event(subscription, TroubleEvent)
            assert "ENOSPC" in trouble.reason
        content = files.image("b").read_bytes()
        assert content[MIB : 3 * MIB].count(b"b") >= MIB  # what could be kept may be overwritten
        await resynced(files, "a", VolumeOptions(overlay_bytes=2 * SIZE))
        assert files.same()
        image = kept_overlay(files, "b", tmp_path / "image")
        assert image[MIB : 3 * MIB] == b"b" * 2 * MIB


async def test_it_is_all_or_nothing(files: Pair, tmp_path: Path) -> None:
    async with in_time():
        await written_apart(files)
    volumes = files.config("a").volumes
    theirs = introduced(files, "b")
    block = load_superblock(volumes[0])
    foreign = replace(theirs, volumes=(replace(theirs.volumes[0], volume_id=b"f" * 16),))
    for other, error, words in (
        (foreign, MismatchError, "is no replica of this one"),
        (replace(theirs, pair_id=b"x" * 16), MismatchError, "another pair"),
        (None, ConfigError, "is not known"),
        (replace(theirs, volumes=()), ConfigError, "is not known"),
    ):
        with pytest.raises(error, match=words):
            concede_replicas(volumes, PAIR_ID, theirs=other, forget=never)
    with pytest.raises(MismatchError, match="is volume 'vda', not 'vdb'"):
        concede_replicas([replace(volumes[0], name="vdb")], PAIR_ID, theirs=theirs, forget=never)
    replica = open_replica(volumes[0], PAIR_ID)
    with pytest.raises(BusyError):
        concede_replicas(volumes, PAIR_ID, theirs=theirs, forget=never)
    replica.close()
    assert load_superblock(volumes[0]) == block
    common = load_superblock(volumes[0]).lineage[1].describe()
    (given,) = concede_replicas(volumes, PAIR_ID, common={"vda": common}, forget=lambda: None)
    assert (given.common, given.given_up) == (common, (block.lineage[0].describe(),))


def test_a_way_back_is_taken_first(tmp_path: Path) -> None:
    path = tmp_path / "vda.img"
    create_replica(path, name="vda", pair_id=PAIR_ID, volume_id=b"v" * 16, size_bytes=MIB)
    volume = VolumeConfig("vda", path)
    replica = open_replica(volume, PAIR_ID)
    assert replica.keeper is not None
    whole = replace(replica.store.superblock, condition=Condition.CONSISTENT, lineage=(SECOND, FIRST))
    replica.store.write_superblock(whole)
    half = replace(whole, condition=Condition.SYNCING, sync_target=SECOND)
    replica.keeper.before(whole, half)
    replica.store.write_superblock(half)
    replica.close()
    theirs = introduction_of([volume], PAIR_ID, "guest")
    there = replace(
        theirs.volumes[0], condition=Condition.CONSISTENT, lineage=(THERE, FIRST), sync_target=None
    )
    with pytest.raises(ArbitrationError, match="put it back first"):
        concede_replicas([volume], PAIR_ID, theirs=replace(theirs, volumes=(there,)), forget=never)
    (tmp_path / "vda.img.pairsync-overlay-1").unlink()
    (given,) = concede_replicas(
        [volume], PAIR_ID, theirs=replace(theirs, volumes=(there,)), forget=lambda: None
    )
    assert (given.common, given.everything) == (None, True)


# ---------------------------------------------------------------------- crash points

BLOCKS = 12
OWN = frozenset({1, 5})
LOSER = replace(
    life_superblock(1, BLOCKS * BLOCK_BYTES, clean=True),
    condition=Condition.CONSISTENT,
    lineage=(SECOND, FIRST),
    term=1,
)


def superblock_first(store: MetadataStore, made: Concession) -> None:
    """A bug."""
    store.write_superblock(made.after)
    concede(store, made)


def conceding(
    base: Generation, give: Callable[[MetadataStore, Concession], None]
) -> tuple[Recording, Concession]:
    """A replica that had written two blocks on its own gives way; its map begins at ``base``."""
    before = replace(LOSER, map_base=base)
    medium = SimMedium()
    medium.create("m", metadata_bytes(before.size_bytes, SEGMENT_BYTES))
    file = medium.open("m")
    format_metadata(file, before, segment_bytes=SEGMENT_BYTES)
    own = DirtyMap(BLOCKS)
    for block in OWN:
        own.mark(block, block + 1)
    file.close()
    store = load_metadata(medium.open("m")).store
    store.write_bitmap({number: own.page_bytes(number) for number in own.page_numbers()})
    store.close()
    recording = Recording({name: medium.content(name) for name in medium.names()})
    store = load_metadata(recording.watch(medium.open("m"))).store
    theirs = replace(before, lineage=(THERE, FIRST))
    made = concession(before, introduced_as(theirs))
    assert made is not None
    give(store, made)
    recording.note("done")
    return recording, made


def introduced_as(block: Superblock) -> VolumeState:
    return state_of(block, DirtyMap(BLOCKS), VolumeOptions(), reached=None, given=0)


def explored(base: Generation, give: Callable[[MetadataStore, Concession], None] = concede) -> int:
    recording, made = conceding(base, give)

    def judge(state: CrashState) -> None:
        opened = load_metadata(state.medium().open("m"))
        dirty = found_blocks(opened)
        everything = made.everything and opened.superblock == made.after
        owed = frozenset(range(BLOCKS)) if everything else OWN
        if any(block not in dirty for block in owed):
            raise RuleBroken(f"what was written here is not in the map: {dirty.describe()}")
        if opened.superblock not in {made.after, replace(LOSER, map_base=base)}:
            raise RuleBroken("neither before nor after")
        if state.notes and opened.superblock != made.after:
            raise RuleBroken("it was done, and is not")

    return explore(recording, judge, Budget()).states


@pytest.mark.parametrize("base", [FIRST, SECOND])
def test_every_crash_point(base: Generation) -> None:
    assert explored(base) > 3


def test_a_superblock_that_is_written_too_early_is_found() -> None:
    with pytest.raises(RuleBroken, match="not in the map"):
        explored(SECOND, superblock_first)
