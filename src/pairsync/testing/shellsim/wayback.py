"""What resyncs overwrite is kept: checked on copies of the standby's medium (DESIGN rule 9).

When a superblock that says SYNCING takes the place of a consistent one, the content of the volume is
remembered: the last consistent point.  Whenever a host dies while the standby's superblock says so, a copy of
its medium is put back by what lies on it, and must be that content; after a power cut a sector that was not
durable at that moment may also be what it was before.  When the superblock says CONSISTENT again, what the
standby had written on its own, and is not there any more, must be kept durably, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pairsync.core.messages import Condition
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import PairsyncError
from pairsync.storage.file import RawFile
from pairsync.storage.metadata import load_metadata, metadata_path
from pairsync.storage.overlay import Overlays
from pairsync.storage.overlayfile import OverlayState
from pairsync.testing.disks import SECTOR_BYTES, SimMedium
from pairsync.testing.simfiles import SimDirectory

from .start import OVERLAY_MARK, data_name

if TYPE_CHECKING:
    from .world import World

__all__ = ["WayBack"]


class _Point:
    """A last consistent point: the content, and what else of a sector a power cut may leave of it."""

    __slots__ = ("content", "excused", "older")

    def __init__(self, content: bytes, older: dict[int, list[bytes]]) -> None:
        self.content = content
        self.older = older
        self.excused = False  # a full disk may have cost the way back


class WayBack:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._points: dict[int, _Point] = {}  # by volume; while the superblock says SYNCING, or might
        self._full: set[int] = set()  # volumes whose next way back may have found no room to begin

    # ------------------------------------------------------------------ what happens

    def about_to_write(self, volume: int, before: Superblock, after: Superblock) -> None:
        """A superblock of the standby is about to be replaced."""
        if after.condition is not Condition.SYNCING or before.condition is Condition.SYNCING:
            return
        self._points.pop(volume, None)
        if before.condition is Condition.CONSISTENT and before.lineage:
            medium = self._world.standby.medium
            platter = medium.platter(data_name(volume), medium.life)
            older = {sector: list(contents) for sector, contents in platter.older.items()}
            self._points[volume] = _Point(bytes(platter.live), older)
            self._points[volume].excused = volume in self._full
        self._full.discard(volume)

    def written(self, volume: int, after: Superblock, own: frozenset[int]) -> None:
        """A superblock of the standby is durable; it had written ``own`` alone."""
        if after.condition is Condition.CONSISTENT:
            point = self._points.pop(volume, None)
            if point is not None and own:
                self._check_own(volume, point, own)

    def disk_full(self, name: str) -> None:
        """A write of the standby to a file of that name has found no room."""
        for volume in range(len(self._world.profile.sizes_bytes)):
            if not name.startswith(data_name(volume) + OVERLAY_MARK):
                continue
            if volume in self._points:
                self._points[volume].excused = True
            else:
                self._full.add(volume)

    def swapped(self) -> None:
        """The standby's disks were replaced."""
        self._points.clear()

    def host_died(self, *, cache_lost: bool) -> None:
        """A host has died; ``cache_lost`` if it was the standby, and its cache with it."""
        for volume, point in self._points.items():
            reverted = self._revert(volume, point)
            if reverted is not None:
                self._compare(volume, point, reverted, cut=cache_lost)
                if cache_lost:
                    point.content, point.older = reverted, {}

    # ------------------------------------------------------------------ checks

    def _overlays(self, medium: SimMedium, volume: int, block: Superblock) -> Overlays:
        return Overlays(SimDirectory(medium), data_name(volume), block.size_bytes)

    def _revert(self, volume: int, point: _Point) -> bytes | None:
        """What a copy of the standby's volume is when it was put back; None if it need not be."""
        copy = _copy(self._world.standby.medium, durable=False)
        opened = load_metadata(copy.open(metadata_path(data_name(volume))))
        block = opened.superblock
        if block.condition is not Condition.SYNCING:
            return None
        try:
            overlays = self._overlays(copy, volume, block)
            undo = overlays.open_undo(block)
            if undo is None or not undo.whole:
                if not point.excused and not any(
                    info.state is OverlayState.KEPT and info.lineage == block.lineage
                    for info in overlays.list()  # complete, and cut off before the superblock could say so
                ):
                    self._world.fail("way-back", f"volume {volume}: SYNCING, and there is no way back")
                return None
            if undo.kept:
                self._world.reach("way-back")
            undo.revert(RawFile(copy.open(data_name(volume)), block.size_bytes))
        except PairsyncError as error:
            self._world.fail("way-back", f"volume {volume}: {error}")
        return copy.content(data_name(volume))

    def _compare(self, volume: int, point: _Point, reverted: bytes, *, cut: bool) -> None:
        if reverted == point.content:
            return
        for sector, at in enumerate(range(0, len(reverted), SECTOR_BYTES)):
            there, was = reverted[at : at + SECTOR_BYTES], point.content[at : at + SECTOR_BYTES]
            if there != was and not (cut and there in point.older.get(sector, ())):
                self._world.fail("way-back", f"volume {volume}: sector {sector} is not what it was")

    def _check_own(self, volume: int, point: _Point, own: frozenset[int]) -> None:
        copy = _copy(self._world.standby.medium, durable=True)
        opened = load_metadata(copy.open(metadata_path(data_name(volume))))
        live = self._world.standby.medium.content(data_name(volume))
        kept = self._kept(self._overlays(copy, volume, opened.superblock))
        for block in sorted(own):
            part = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
            was = point.content[part].ljust(BLOCK_BYTES, b"\0")
            if live[part].ljust(BLOCK_BYTES, b"\0") == was:
                continue
            if was not in kept.get(block, ()) and not point.excused:
                self._world.fail(
                    "own-kept", f"volume {volume}: block {block} was overwritten and is not kept"
                )
            self._world.reach("own-kept")

    def _kept(self, overlays: Overlays) -> dict[int, list[bytes]]:
        """What kept overlays hold, by block."""
        kept: dict[int, list[bytes]] = {}
        for info in overlays.list():
            if info.state is not OverlayState.KEPT:
                continue
            for ops in overlays.ops(info.id):
                for op in ops:
                    content = bytes(op.length) if op.data is None else bytes(op.data)
                    for at in range(0, op.length, BLOCK_BYTES):
                        block = (op.offset + at) // BLOCK_BYTES
                        whole = content[at : at + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")  # the last one
                        kept.setdefault(block, []).append(whole)
        return kept


def _copy(medium: SimMedium, *, durable: bool) -> SimMedium:
    """The files as a process would read them; or what is ``durable`` of them."""
    copy = SimMedium()
    for name in medium.names():
        content = medium.content(name)
        copy.create(name, len(content))
        platter = copy.platter(name, copy.life)
        platter.live[:] = content
        if durable:
            for sector, contents in medium.platter(name, medium.life).older.items():
                at = sector * SECTOR_BYTES
                platter.live[at : at + len(contents[0])] = contents[0]
    return copy
