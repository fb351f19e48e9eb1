"""What a host records durably of its replica of a volume, apart from the dirty map.

A value: it is replaced as a whole (``dataclasses.replace``), written by ``storage.metadata`` into the older
of two slots, and durable before anything that relies on it happens.
"""

from __future__ import annotations

from dataclasses import dataclass

from .messages import Begin, Condition, Generation

__all__ = ["LINEAGE_GENERATIONS_MAX", "STILL_COUNTS", "Superblock", "new_superblock"]

LINEAGE_GENERATIONS_MAX = 64
"""Generations kept a replica, newest first.  A peer that was away for longer gets a full resync: 64 losses
of the peer with writes in between are months of an ordinary pair, and 64 x 24 bytes fit any slot."""

STILL_COUNTS = "standby-still-counts"
"""The rule by which a standby stays whole while it is copied to: nothing was acknowledged without it since it
left, and the active host plans anew before it does so.  See `core.copier`."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """Durable state of one replica.

    ``sync_target``: with `Condition.SYNCING`, the generation towards which it is being overwritten.
    ``peer_in_sync``: the newest generation counts the peer as in sync: no write may be acknowledged
    without it before a new generation is recorded.  ``map_base``: the dirty map holds every block written
    here since that generation began that the peer is not known to hold durably; ``None`` while the map
    proves nothing (then only a full resync is right).  ``clean``: the volume was closed in order and its
    dirty map is exact; ``boot_id`` tells a process crash (page cache kept) from a crash of the machine.
    ``parted``: the highest milestone (``core.states``) that the peer can have been given, while an active
    host has not had it in sync in the life that recorded this; ``None``: any that the write-intent log has.
    ``outdated``: the peer was met with a newer replica, and this one has not been brought up to date since:
    it is not served from, unless a person insists (`core.claims`).
    """

    pair_id: bytes  # 16 bytes
    volume_id: bytes  # 16 bytes
    name: str
    size_bytes: int
    term: int
    condition: Condition
    lineage: tuple[Generation, ...]
    sync_target: Generation | None
    peer_in_sync: bool
    map_base: Generation | None
    clean: bool
    boot_id: str
    parted: int | None = None
    outdated: bool = False

    def stays_whole(self, begin: Begin) -> bool:
        """Whether a standby's replica passes for a whole one while that plan is carried out (`core.copier`):
        it was proven under this term of its owner, and lacks what nobody was told is there."""
        plan, newest = begin.plan, self.lineage[:1]
        counts = plan.rule == STILL_COUNTS and newest == (plan.target,) and begin.term == self.term
        return counts and self.condition is Condition.CONSISTENT


def new_superblock(
    *,
    pair_id: bytes,
    volume_id: bytes,
    name: str,
    size_bytes: int,
    condition: Condition = Condition.BLANK,
) -> Superblock:
    """Of a replica that has just been made: it has lived through nothing, and was never open."""
    return Superblock(
        pair_id=pair_id,
        volume_id=volume_id,
        name=name,
        size_bytes=size_bytes,
        term=0,
        condition=condition,
        lineage=(),
        sync_target=None,
        peer_in_sync=False,
        map_base=None,
        clean=True,
        boot_id="",
    )
