"""Figures of an open guest, as frozen values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pairsync.core.events import ProgressEvent
from pairsync.core.messages import Condition
from pairsync.core.source import VolumeSource
from pairsync.core.target import VolumeTarget
from pairsync.core.units import BLOCK_BYTES
from pairsync.io.link import LinkStatistics

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["GuestStatistics", "VolumeStatistics", "progress_of", "statistics_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStatistics:
    """One volume.  ``state`` is one word; the figures of a resync and of a scrub are None while none runs.

    ``size_bytes`` is None as long as the disk could not be opened.
    """

    name: str
    state: str
    size_bytes: int | None
    generation: str | None
    dirty_blocks: int
    level: str | None = None
    inflight_bytes: int = 0
    resync_fraction: float | None = None
    resync_bytes_per_s: float | None = None
    resync_remaining_s: float | None = None
    scrub_fraction: float | None = None
    scrub_bytes_per_s: float | None = None
    scrub_remaining_s: float | None = None
    scrub_findings: int | None = None
    failed: str | None = None

    @classmethod
    def of_source(cls, name: str, source: VolumeSource, now_ns: int) -> Self:
        """The view of the active host."""
        block = source.standing.superblock
        progress = source.copier.progress(now_ns)
        scrub = source.scrubber.report if source.scrubber.running else None
        rate = scrub.bytes / max(scrub.seconds(now_ns), 1e-9) if scrub else 0.0
        return cls(
            name=name,
            state="failed" if source.failed else source.standing.phase.value,
            size_bytes=block.size_bytes,
            generation=block.lineage[0].describe() if block.lineage else None,
            dirty_blocks=source.tracker.dirty().count,
            level=source.options.level,
            inflight_bytes=source.inflight_bytes,
            resync_fraction=None if progress is None else progress.fraction,
            resync_bytes_per_s=None if progress is None else progress.bytes_per_s,
            resync_remaining_s=None if progress is None else progress.remaining_s,
            scrub_fraction=None if scrub is None else scrub.fraction,
            scrub_bytes_per_s=None if scrub is None else rate,
            scrub_remaining_s=None if scrub is None or not rate else (scrub.total_bytes - scrub.bytes) / rate,
            scrub_findings=None if scrub is None else scrub.findings,
            failed=source.failed,
        )

    @classmethod
    def of_target(cls, name: str, target: VolumeTarget) -> Self:
        """The view of the standby host."""
        block = target.superblock
        states = {Condition.BLANK: "blank", Condition.CONSISTENT: "consistent", Condition.SYNCING: "syncing"}
        return cls(
            name=name,
            state=states[block.condition],
            size_bytes=block.size_bytes,
            generation=block.lineage[0].describe() if block.lineage else None,
            dirty_blocks=target.own_dirty.count,
            failed=target.failed,
        )

    @classmethod
    def of_ill(cls, name: str, size_bytes: int | None) -> Self:
        """Of a standby whose disk has not been opened."""
        return cls(name=name, state="failed", size_bytes=size_bytes, generation=None, dirty_blocks=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStatistics:
    """A guest on this host."""

    name: str
    role: str
    term: int
    connected: bool
    in_sync: bool
    paused: bool
    """It serves nothing for the moment: its role changes, or nobody may run it."""
    refusal: str | None
    volumes: tuple[VolumeStatistics, ...]
    link: LinkStatistics | None


def statistics_of(guest: Guest) -> GuestStatistics:
    """The view of an open guest, at this moment."""
    session, now_ns, ailments = guest.session, guest.now_ns(), guest.ailments
    names = list(guest.volumes)
    volumes = [
        *(VolumeStatistics.of_source(*each, now_ns) for each in zip(names, session.sources, strict=False)),
        *(VolumeStatistics.of_target(*each) for each in zip(names, session.targets, strict=False)),
    ]
    if not volumes:  # a standby that has been ill from the first
        sizes = [each.size_bytes if each.known else None for each in guest.volumes.values()]
        volumes = [VolumeStatistics.of_ill(*each) for each in zip(names, sizes, strict=True)]
    volumes = [
        replace(each, state="failed", failed=ailments[each.name]) if each.name in ailments else each
        for each in volumes
    ]
    return GuestStatistics(
        name=guest.name,
        role=guest.role.name.lower(),
        term=session.term,
        connected=guest.link is not None and guest.link.session is not None,
        in_sync=guest.in_sync,
        paused=guest.paused,
        refusal=session.refusal,
        volumes=tuple(volumes),
        link=None if guest.link is None else guest.link.statistics(),
    )


def progress_of(sources: Sequence[VolumeSource], now_ns: int) -> Iterator[ProgressEvent]:
    """How far the resyncs are that run."""
    for source in sources:
        progress = source.copier.progress(now_ns)
        if progress is not None:
            yield ProgressEvent(
                source.standing.name,
                progress.fraction,
                progress.remaining_blocks * BLOCK_BYTES,
                progress.bytes_per_s,
                progress.remaining_s,
            )
