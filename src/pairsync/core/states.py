"""What a host says of itself and of its replicas when a session begins, and the values that are part of it.

**Milestones** are numbers of a volume that only rise, with its writes, on whichever host it is active.  The
owner *reaches* one when its write-intent log has, durably, the first record of a generation of that log
(``core.tracker``), and *gives* it to the standby only then, with the next barrier that closes one.  The
standby records what it was given with the digests that such a barrier makes durable anyway.  So no crash and
no power cut of the owner makes it forget a milestone that its standby knows: a standby that was given a
higher one than its owner says it has reached has lived through more of the same generation; the owner's disk
was put back to an older state (`core.lineage`).  A host that becomes active goes on above all that it knows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["Condition", "Generation", "Introduce", "Role", "VolumeState"]


class Role(enum.IntEnum):
    """Who runs the guest."""

    STANDBY = 0
    ACTIVE = 1


class Condition(enum.IntEnum):
    """What the content of a replica is worth."""

    BLANK = 0
    """Made by pairsync and never written: every block reads as zero; it has no lineage yet."""
    CONSISTENT = 1
    """The content is exactly what its lineage says."""
    SYNCING = 2
    """A resync has begun to overwrite it and has not ended: a mixture, of use only as a resync target."""


class Generation(NamedTuple):
    """One stretch of a replica's life: the writes made under one owner with one set of in-sync replicas.

    ``term`` only grows (the grant's number), ``epoch`` grows with every change of the in-sync set within a
    term and is above every milestone that was given under the generation before, and ``tag`` is 64 random
    bits drawn by the owner that opened it, so that two histories that were written apart are told apart even
    where both numbers agree (two restored backups, an override).
    """

    term: int
    epoch: int
    tag: int

    def describe(self) -> str:
        """Terse form for logs and transcripts, such as ``1.4/9f``."""
        return f"{self.term}.{self.epoch}/{self.tag & 0xFF:02x}"


@dataclass(frozen=True, slots=True)
class VolumeState:
    """What a host says of its replica of one volume when a session begins."""

    name: str
    volume_id: bytes  # 16 bytes, the same on both hosts
    size_bytes: int
    condition: Condition
    lineage: tuple[Generation, ...]  # newest first; empty only when blank
    sync_target: Generation | None = None  # SYNCING only: the generation it was being brought to
    map_base: Generation | None = None  # the dirty map holds all that was written since this one began
    dirty_blocks: int = 0  # blocks in the dirty map
    proves: bool = False  # it keeps digests of its blocks
    points: tuple[int, ...] = ()  # tags of the points that it has
    reached: int | None = None  # the highest milestone that it may have given out; None: it does not say
    given: int = 0  # the last that it was given while it was a standby

    def adopted(self, lineage: tuple[Generation, ...]) -> VolumeState:
        """What a standby's replica is once it has taken that lineage over."""
        return replace(
            self,
            condition=Condition.CONSISTENT,
            lineage=lineage,
            sync_target=None,
            map_base=None,
            dirty_blocks=0,
        )


@dataclass(frozen=True, slots=True)
class Introduce:
    """The first message of either side."""

    pair_id: bytes  # 16 bytes
    guest: str
    role: Role
    term: int
    volumes: tuple[VolumeState, ...]
