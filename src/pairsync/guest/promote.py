"""The explicit decision to use a standby that was left half overwritten: back to its last consistent point.

The source of a resync may be lost in the middle of it, for good.  What the standby's undo log holds
(``storage.undolog``) makes a whole replica of it again, older than what was lost: no machine decides that
(DESIGN rule 3), so this is never called by one.

The order, each step durable before the next, and all of it repeatable after a crash:

1. the superblock says SYNCING towards nothing: should the source return after all, it copies everything,
   because its dirty map knows nothing of what is put back;
2. what was overwritten is put back;
3. the superblock says CONSISTENT, with a generation of its own under a new term: the old source, should it
   return, has been written apart from this replica, and neither overwrites the other unasked;
4. the log goes.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import LINEAGE_GENERATIONS_MAX
from pairsync.errors import ArbitrationError, ConfigError
from pairsync.storage.undolog import UndoLog

from .config import VolumeConfig
from .disks import Opener
from .replica import Replica, open_replica

__all__ = ["Reversion", "look_at_replicas", "promote_replicas"]

TAG_BITS = 64


@dataclass(frozen=True, slots=True)
class Reversion:
    """What going back means for one volume."""

    volume: str
    reverts: bool
    """Whether it was left half overwritten; else it stays as it is."""
    generation: str
    """The newest that the replica lived through, whole."""
    resync_began_s: int | None
    """Unix time, of this host: the last consistent point is older."""
    blocks: int
    """Blocks that are put back."""
    term: int
    """At least the term under which the host may be active afterwards."""


def look_at_replicas(
    volumes: Sequence[VolumeConfig], pair_id: bytes, *, opener: Opener = open_replica
) -> list[Reversion]:
    """What `promote_replicas` would do; nothing is changed.

    Raises `ConfigError` where there is nothing to decide, `ArbitrationError` where there is no way back, and
    what the opener does: `BusyError` where the host runs.
    """
    with ExitStack() as stack:
        return [_describe(each, term) for each, term in _open(volumes, pair_id, opener, stack)]


def promote_replicas(
    volumes: Sequence[VolumeConfig], pair_id: bytes, *, opener: Opener = open_replica
) -> list[Reversion]:
    """Put every half overwritten replica back to its last consistent point; durable on return.

    Errors as `look_at_replicas`, before anything is changed, and `MetadataError` or `BackendError` where the
    old content cannot be read or put back; then it may be repeated.
    """
    with ExitStack() as stack:
        opened = _open(volumes, pair_id, opener, stack)
        described = [_describe(each, term) for each, term in opened]
        for replica, term in opened:
            undo = _undo_of(replica)
            if undo is not None:
                _revert(replica, undo, term)
    return described


def _open(
    volumes: Sequence[VolumeConfig], pair_id: bytes, opener: Opener, stack: ExitStack
) -> list[tuple[Replica, int]]:
    """All replicas, and the term that comes after those of all of them."""
    replicas: list[Replica] = []
    for volume in volumes:
        replica = opener(volume, pair_id)
        stack.callback(replica.close)
        replicas.append(replica)
    blocks = [replica.store.superblock for replica in replicas]
    if all(block.condition is Condition.CONSISTENT for block in blocks):
        names = ", ".join(block.name for block in blocks)
        raise ConfigError(
            f"nothing to decide: no resync was interrupted, {names} can be used as found "
            '(pairsync host override; without [register], role = "active" and a higher term in its file)'
        )
    for replica, block in zip(replicas, blocks, strict=True):
        if block.condition is Condition.BLANK:
            raise ArbitrationError(f"volume {block.name}: was never written: there is nothing to go back to")
        if block.condition is Condition.SYNCING:
            undo = _undo_of(replica)
            if undo is None or not undo.whole:
                raise ArbitrationError(
                    f"volume {block.name}: was half overwritten, and what was there before is not kept: "
                    "there is no way back"
                )
    term = max(block.term for block in blocks) + 1
    return [(replica, term) for replica in replicas]


def _undo_of(replica: Replica) -> UndoLog | None:
    return None if replica.keeper is None else replica.keeper.undo


def _describe(replica: Replica, term: int) -> Reversion:
    block, undo = replica.store.superblock, _undo_of(replica)
    reverts = block.condition is Condition.SYNCING and undo is not None
    return Reversion(
        volume=block.name,
        reverts=reverts,
        generation=block.lineage[0].describe() if block.lineage else "none",
        resync_began_s=undo.info.created_s if undo is not None and reverts else None,
        blocks=undo.kept.count if undo is not None and reverts else 0,
        term=term,
    )


def _revert(replica: Replica, undo: UndoLog, term: int) -> None:
    store, device = replica.store, replica.device
    store.write_superblock(replace(store.superblock, sync_target=None))
    device.begin_life(active=True)
    undo.revert(device)  # through the digests, which then belong to what is put back
    device.end_life()
    block = store.superblock
    apart = Generation(term, 1, secrets.randbits(TAG_BITS))
    store.write_superblock(
        replace(
            block,
            term=term,
            condition=Condition.CONSISTENT,
            lineage=(apart, *block.lineage)[:LINEAGE_GENERATIONS_MAX],
            peer_in_sync=False,
            map_base=None,
        )
    )
    undo.discard()
