"""What resyncs have overwritten of one replica, and what is kept of it: its `Overlays`.

DESIGN rule 9: nothing is overwritten silently.  While a replica is being resynced one overlay is its *undo
log* (``storage.undolog``): the way back to its last consistent point.  When the resync is complete what the
replica had written on its own stays of it as a *kept* overlay: listed, exported as an image, undone.  Each is
one file beside the metadata, ``<volume>.pairsync-overlay-<number>`` (``storage.overlayfile``); the higher
number is the newer.  At most one is an undo log.

**Bounds.**  All overlays of a replica together take at most ``bytes_max`` (`default_overlay_bytes`), and
there are at most `OVERLAYS_MAX`.  Nothing is dropped by itself: an undo log that would pass the bound raises
ENOSPC, and `make_room` drops kept overlays, the oldest first, each after a warning.

**After a crash** a file is as it was before the last step or as after it.  `begin` tells from the superblock
what an undo log that it finds is worth: see there.

**Threads.**  `list` answers from memory, from any thread.  `export` and `ops` may run beside all else: they
read a file that nobody changes, and keep nobody from opening it, for they may take hours, and the host may
have to take the guest over meanwhile.  They read the device beside the data lane.  All other methods belong
to the data lane.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Condition, Generation, WriteOp
from pairsync.core.superblock import Superblock
from pairsync.core.units import GIB
from pairsync.errors import BackendError, BusyError, ConfigError, MetadataError, MismatchError

from .device import Device
from .directory import Directory, OsDirectory
from .overlayexport import write_image
from .overlayfile import RECORDS_AT, OverlayHeader, OverlayInfo, OverlayState, overlay_info
from .overlaylog import (
    Damage,
    OverlayLog,
    create_log,
    kept_blocks,
    open_log,
    read_overlay_header,
    write_ops,
)
from .undolog import NEW_SUFFIX, UndoLog

__all__ = ["OVERLAYS_MAX", "OverlayInfo", "Overlays", "default_overlay_bytes", "overlays_beside"]

OVERLAYS_MAX: Final = 64
"""Overlays of one replica: as many as generations of its lineage are kept (`LINEAGE_GENERATIONS_MAX`), so the
oldest belongs to a history that nobody compares with any more."""

_BYTES_MAX_AT_LEAST: Final = GIB + GIB // 32
"""1 GiB of content, and the page of a record for each 128 KiB of it: such a volume can be kept whole."""


def default_overlay_bytes(size_bytes: int) -> int:
    """Bound of all overlays of a volume of that size: a quarter of it, at least 1 GiB.

    A replica that differs in more than a quarter is better restored than undone.
    """
    return max(size_bytes // 4, _BYTES_MAX_AT_LEAST)


class Overlays:
    """All overlays of one replica; see the module.

    Belongs to whoever has the replica's metadata open: two at a time would not see each other's files.
    Construction reads the headers, and the whole undo log's pages if there is one; raises `BackendError`.
    ``size_bytes`` is the volume's.
    """

    def __init__(
        self, directory: Directory, stem: str, size_bytes: int, *, bytes_max: int | None = None
    ) -> None:
        self._directory = directory
        self._prefix = f"{stem}.pairsync-overlay-"
        self._size_bytes = size_bytes
        self.bytes_max = default_overlay_bytes(size_bytes) if bytes_max is None else bytes_max
        self.problems: tuple[str, ...] = ()
        """Files that cannot be read as overlays, and why: for the log.  They are left alone."""
        self._infos: dict[int, OverlayInfo] = {}  # replaced as a whole: `list` may run in another thread
        self._undo: UndoLog | None = None  # while it is open
        self._number_max = 0
        self._load()

    # ------------------------------------------------------------------ what there is

    def _load(self) -> None:
        self._directory.sync()
        infos: dict[int, OverlayInfo] = {}
        problems: list[str] = []
        for name in self._directory.names(self._prefix):
            suffix = name.removeprefix(self._prefix)
            if suffix.endswith(NEW_SUFFIX):
                self._directory.remove(name)
                continue
            if not re.fullmatch(r"[1-9][0-9]{0,17}", suffix):
                problems.append(f"{name}: no name of an overlay")
                continue
            number = int(suffix)
            self._number_max = max(self._number_max, number)
            try:
                infos[number] = self._look_at(number)
            except (MetadataError, MismatchError) as error:
                problems.append(str(error))
        self._infos = infos
        self.problems = tuple(problems)

    def _look_at(self, number: int) -> OverlayInfo:
        file = self._directory.open(self._name(number))
        try:
            slots, header = read_overlay_header(file)
            slots.settle()  # found here, it must not turn into an earlier one
            file_bytes = file.size_bytes
        finally:
            file.close()
        if header.number != number or header.size_bytes > self._size_bytes:
            raise MismatchError(
                f"{file.path}: says that it is overlay {header.number} of a volume of {header.size_bytes} "
                f"bytes, not {number} of {self._size_bytes}"
            )
        if header.state is OverlayState.UNDO:  # after a crash its counts lag behind
            log = open_log(self._directory, self._name(number))
            try:
                kept = kept_blocks(log).count
                data_blocks = sum(len(record.digests) for record in log.records())
                header = replace(header, block_count=kept, data_block_count=data_blocks)
                file_bytes = log.file_bytes
            finally:
                log.close()
        return overlay_info(header, file_bytes)

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def list(self) -> Sequence[OverlayInfo]:
        """All overlays, the oldest first."""
        undo = self._undo
        infos = dict(self._infos)
        if undo is not None:
            infos[int(undo.info.id)] = undo.info
        return [infos[number] for number in sorted(infos)]

    def find(self, overlay_id: str) -> OverlayInfo:
        """The overlay of that id; `ConfigError` if there is none."""
        for info in self.list():
            if info.id == overlay_id:
                return info
        there = ", ".join(info.id for info in self.list()) or "none"
        raise ConfigError(f"{self._directory.path}: no overlay {overlay_id!r}; there is {there}")

    @property
    def file_bytes(self) -> int:
        """Space that all overlays take."""
        return sum(info.file_bytes for info in self.list())

    # ------------------------------------------------------------------ the undo log

    def begin(self, superblock: Superblock, target: Generation, created_s: int) -> UndoLog:
        """The undo log of a resync that is about to begin, or that goes on; durable on return.

        Call it before the superblock says SYNCING, with the one that is durable; again when a resync goes
        on, or takes a newer target.  What an earlier one has left is told from the superblock:

        * SYNCING, same lineage: the resync was interrupted; the log goes on.
        * Not SYNCING, same lineage: nothing was overwritten yet, or all was put back; the log goes.
        * Another lineage: that resync was completed, but the log was not finished (its owner broke the
          order); all of it becomes a kept overlay.

        A log that is begun on a replica that is SYNCING already is not `UndoLog.whole`: there is no
        consistent point to go back to.  Blocks that an overlay of the same lineage holds are not kept again.

        Raises `MetadataError` where the log that was left is damaged (`set_aside` it, and begin again),
        `BackendError` with ENOSPC where there is no room or are too many overlays (`make_room`).
        """
        self._check_identity(superblock)
        if self._undo is not None:
            raise BusyError(f"{self._directory.path}: the undo log of {superblock.name} is open")
        left = self._left()
        if left is not None and left.lineage != superblock.lineage:
            self.set_aside(left.id)
        elif left is not None and superblock.condition is not Condition.SYNCING:
            self.drop(left.id)
        elif left is not None:
            undo = self._open_undo(int(left.id))
            undo.retarget(target)
            return undo
        self._check_count()
        header = OverlayHeader(
            pair_id=superblock.pair_id,
            volume_id=superblock.volume_id,
            volume=superblock.name,
            size_bytes=superblock.size_bytes,
            number=self._number_max + 1,
            created_s=created_s,
            lineage=superblock.lineage,
            target=target,
            state=OverlayState.UNDO,
            whole=superblock.condition is not Condition.SYNCING,
        )
        self._create(header)
        return self._open_undo(header.number)

    def open_undo(self, superblock: Superblock) -> UndoLog | None:
        """The undo log of a replica whose resync was interrupted; None if there is none.

        Raises as `begin` for a damaged one.
        """
        self._check_identity(superblock)
        if self._undo is not None:
            raise BusyError(f"{self._directory.path}: the undo log of {superblock.name} is open")
        left = self._left()
        if (
            left is None
            or left.lineage != superblock.lineage
            or superblock.condition is not Condition.SYNCING
        ):
            return None
        return self._open_undo(int(left.id))

    def set_aside(self, overlay_id: str) -> None:
        """Make a kept overlay of an undo log that is not open, with all that it holds."""
        info = self.find(overlay_id)
        if info.state is not OverlayState.UNDO or self._undo is not None:
            raise ConfigError(f"overlay {overlay_id} is no undo log, or is open")
        log = open_log(self._directory, self._name(int(info.id)))
        try:
            kept = kept_blocks(log).count
            header = replace(
                log.header,
                state=OverlayState.KEPT,
                record_count=log.record_count,
                block_count=kept,
                data_block_count=sum(len(record.digests) for record in log.records()),
            )
            log.write_header(header)
            self._note(overlay_info(header, log.file_bytes))
        finally:
            log.close()

    def _left(self) -> OverlayInfo | None:
        return next((info for info in self.list() if info.state is OverlayState.UNDO), None)

    def _check_identity(self, superblock: Superblock) -> None:
        if superblock.size_bytes < self._size_bytes:
            raise MismatchError(
                f"volume {superblock.name} has {superblock.size_bytes} bytes, less than {self._size_bytes}"
            )
        self._size_bytes = superblock.size_bytes  # volumes grow; what an older overlay holds stays right

    def _check_count(self) -> None:
        if len(self._infos) >= OVERLAYS_MAX:
            raise BackendError(
                f"{self._directory.path}: {len(self._infos)} overlays are kept already: drop some first",
                errno.ENOSPC,
            )
        self._admit(0, RECORDS_AT)

    def _create(self, header: OverlayHeader) -> None:
        name = self._name(header.number)
        log = create_log(self._directory, name + NEW_SUFFIX, header)
        try:
            log.commit()
            self._directory.publish(log.file, name)
        finally:
            log.close()
        self._number_max = header.number
        self._note(overlay_info(header, RECORDS_AT))

    def _open_undo(self, number: int) -> UndoLog:
        log = open_log(self._directory, self._name(number))
        try:
            if log.damage:
                raise MetadataError(log.damage[0].what)  # noqa: TRY301
            log.settle()
            log.trim()
            undo = UndoLog(
                log,
                self._directory,
                self._name(number),
                elsewhere=self._elsewhere(log.header),
                admit=lambda file_bytes: self._admit(number, file_bytes),
                ended=lambda info: self._ended(number, info),
            )
            undo.grow(self._size_bytes)
        except BaseException:
            log.close()
            raise
        self._undo = undo
        return undo

    def _elsewhere(self, header: OverlayHeader) -> DirtyMap | None:
        """Blocks that were kept by an earlier overlay of the very same replica.

        A resync that was completed, and finished here, before the superblock could say so, runs again over
        content that is not the replica's own any more.
        """
        if header.whole or not header.lineage:
            return None
        merged: DirtyMap | None = None
        for info in self._infos.values():
            if info.state is OverlayState.KEPT and info.lineage == header.lineage:
                log = open_log(self._directory, self._name(int(info.id)), alone=False)
                try:
                    kept = kept_blocks(log)
                finally:
                    log.close()
                if merged is None:
                    merged = kept
                else:
                    merged.merge(kept)
        return merged

    def _admit(self, number: int, file_bytes: int) -> None:
        """Whether that file may have that size; raises ENOSPC."""
        others = sum(info.file_bytes for key, info in self._infos.items() if key != number)
        if others + file_bytes > self.bytes_max:
            raise BackendError(
                f"{self._directory.path}{os.sep}{self._name(number)}: {file_bytes} bytes beside {others} of "
                f"other overlays are more than the bound of {self.bytes_max}",
                errno.ENOSPC,
            )

    def _note(self, info: OverlayInfo) -> None:
        self._infos = {**self._infos, int(info.id): info}

    def _forget(self, number: int) -> None:
        self._infos = {key: info for key, info in self._infos.items() if key != number}

    def _ended(self, number: int, info: OverlayInfo | None) -> None:
        self._undo = None
        if info is None:
            self._forget(number)
        else:
            self._note(info)

    # ------------------------------------------------------------------ what is kept

    def export(
        self,
        overlay_id: str,
        device: Device,
        path: str | os.PathLike[str],
        *,
        only: bool = False,
        salvage: bool = False,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Sequence[Damage]:
        """Write a raw sparse image of the volume with the overlay's blocks put in; durable on return.

        With ``only`` all other blocks read as zero.  ``device`` is read as it is: of one that is written
        meanwhile the rest is of no single moment.  ``progress`` is given bytes done and bytes in all.
        Raises `ConfigError` if there is such a file or no such overlay, `MetadataError` for damaged content,
        which ``salvage`` leaves out and returns; nothing is left behind then.
        """
        log = self._open_to_read(overlay_id)
        try:
            if device.size_bytes < log.header.size_bytes:
                raise MismatchError(
                    f"{device.path}: has {device.size_bytes} bytes, less than {log.header.size_bytes}"
                )
            return write_image(log, device, Path(path), only=only, salvage=salvage, progress=progress)
        finally:
            log.close()

    def ops(self, overlay_id: str, *, salvage: bool = False) -> Iterator[Sequence[WriteOp]]:
        """The overlay's content as batches of writes, with at most 1 MiB of data each.

        Close the iterator if it is not walked to its end.  Errors as `export`.
        """
        log = self._open_to_read(overlay_id)
        try:
            if log.damage and not salvage:
                raise MetadataError(log.damage[0].what)
            for record in log.records():
                chunks, lost = log.read(record)
                if lost is not None and not salvage:
                    raise MetadataError(lost.what)
                yield write_ops(chunks, log.header.size_bytes)
        finally:
            log.close()

    def damage(self, overlay_id: str) -> Sequence[Damage]:
        """Read all of the overlay: what of it is lost."""
        log = self._open_to_read(overlay_id)
        try:
            found = [log.read(record)[1] for record in log.records()]
            return [*log.damage, *(each for each in found if each is not None)]
        finally:
            log.close()

    def _open_to_read(self, overlay_id: str) -> OverlayLog:
        number = int(self.find(overlay_id).id)
        self._check_not_open(number)
        return open_log(self._directory, self._name(number), alone=False)

    def drop(self, overlay_id: str) -> None:
        """Remove an overlay for good.

        `ConfigError` if there is none of that id, `BusyError` if it is the undo log that is open.
        """
        number = int(self.find(overlay_id).id)
        self._check_not_open(number)
        self._directory.remove(self._name(number))
        self._forget(number)

    def _check_not_open(self, number: int) -> None:
        if self._undo is not None and int(self._undo.info.id) == number:
            raise BusyError(f"overlay {number} is the undo log of a resync that is under way")

    def make_room(
        self, bytes_wanted: int, warn: Callable[[OverlayInfo], None], *, bytes_max: int | None = None
    ) -> bool:
        """Drop kept overlays, the oldest first, until ``bytes_wanted`` more fit, and one more may be begun.

        They fit below ``bytes_max``, by default the bound; where the file system is full give `file_bytes`,
        and that much is freed.  ``warn`` is called before each is dropped, and keeps it by raising.  Whether
        there is room now; nothing is dropped where dropping everything would not make it.
        """
        bound = self.bytes_max if bytes_max is None else bytes_max
        undo_bytes = sum(info.file_bytes for info in self.list() if info.state is OverlayState.UNDO)
        if undo_bytes + bytes_wanted > bound:
            return False
        while self.file_bytes + bytes_wanted > bound or (
            self._undo is None and len(self._infos) >= OVERLAYS_MAX
        ):
            oldest = next((info for info in self.list() if info.state is OverlayState.KEPT), None)
            if oldest is None:
                return False
            warn(oldest)
            self.drop(oldest.id)
        return True


def overlays_beside(
    metadata: str | os.PathLike[str], size_bytes: int, *, bytes_max: int | None = None
) -> Overlays:
    """The overlays of the replica whose metadata file that is, which is open; errors as `Overlays`."""
    where = Path(metadata).absolute()
    stem = where.name.removesuffix(".pairsync")
    return Overlays(OsDirectory(where.parent), stem, size_bytes, bytes_max=bytes_max)
