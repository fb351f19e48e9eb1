"""Truths: what each of two replicas has that the other lacks, and how one of them gives way.

Two replicas that were written apart are refused (`core.lineage`) until a person says whose history is to go
on.  The other one *concedes*: it does not claim any more to have lived through what the two do not share.
Its superblock goes back to the newest generation that both lived through, and all that was written on this
side since is in its own dirty map.  That is the state of an owner of an earlier time that comes back: the
ordinary resync copies the union of both maps over it, and the ordinary keeper (``storage.kept``) keeps what
it overwrites of the own blocks as an overlay.  Nothing is overwritten by conceding, and nothing is merged.

Where the own map does not reach back that far, every block counts as written on this side.  Where nothing is
shared, or the replica is half overwritten already, it becomes what an interrupted resync leaves: a target.
So does one that gives way to a disk that was put back to an older state: no map knows what it has more.

Pure functions of values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from pairsync.errors import ArbitrationError, ConfigError, InternalError, MismatchError

from .lineage import (
    ROLLED_BACK,
    ROLLED_BACK_APART,
    Relation,
    Verdict,
    compare,
    map_reaches,
    outlived,
    plan_volume,
)
from .messages import Condition, Generation, VolumeState
from .superblock import Superblock

__all__ = ["Concession", "Truth", "concession", "concession_since", "truth_of"]


class Truth(NamedTuple):
    """What one side's replica of a volume has that the other's lacks, as far as labels and maps tell."""

    volume: str
    relation: Relation | None
    """How it stands to the other's; None: the other's is not known."""
    common: Generation | None
    """The newest generation that both lived through."""
    own: tuple[Generation, ...]
    """Its generations since then, the newest first; all of them if nothing is shared, or known of it."""
    blocks: int | None
    """Blocks written here since then; None: not known, any may be."""


def truth_of(mine: VolumeState, theirs: VolumeState | None) -> Truth:
    """This side's truth."""
    if theirs is None:
        return Truth(mine.name, None, None, mine.lineage, mine.dirty_blocks or None)
    relation, _, common = compare(mine.lineage, theirs.lineage)
    more, less = outlived(theirs, mine), outlived(mine, theirs)
    if more or less:  # one of the two was put back to an older state, within one generation
        of_same = Relation.AHEAD if more else Relation.BEHIND
        relation = of_same if relation is Relation.SAME else Relation.DIVERGED
    if common is None:
        blocks = None if mine.lineage or mine.condition is not Condition.BLANK else 0
        return Truth(mine.name, relation, None, mine.lineage, blocks)
    own = mine.lineage[: mine.lineage.index(common)]
    if relation is Relation.SAME or relation is Relation.BEHIND:
        return Truth(mine.name, relation, common, (), mine.dirty_blocks)
    reaches = map_reaches(mine.lineage, mine.map_base, common) and not more
    return Truth(mine.name, relation, common, own, mine.dirty_blocks if reaches else None)


class Concession(NamedTuple):
    """What becomes of a replica that gives way."""

    after: Superblock
    common: Generation | None
    """The generation that it goes back to; None: it becomes the target of a full resync."""
    given_up: tuple[Generation, ...]
    """What it does not claim any more, the newest first."""
    everything: bool
    """All its blocks count as written on its own: they have to be in its dirty map first."""


def concession(block: Superblock, theirs: VolumeState, given: int = 0) -> Concession | None:
    """How ``block`` gives way to ``theirs``; None: nothing stands between them, it may stay as it is.

    ``given``: the last milestone that this side was given.

    Raises `MismatchError` where the other one is no replica of the same volume (a foreign disk),
    `ArbitrationError` where it is not whole, so that there is nothing to give way to.
    """
    decision = plan_volume(theirs, _state(block, given))
    if decision.verdict is not Verdict.REFUSE:
        return None
    if decision.rule in {"another-volume", "size-differs"}:
        raise MismatchError(f"{decision.evidence}: it is no replica of this one; nothing was changed")
    if decision.rule == "active-not-consistent":
        raise ArbitrationError(
            f"volume {block.name}: the other host's replica is {theirs.condition.name.lower()}: "
            "it cannot be the one to keep; nothing was changed"
        )
    common = None
    if block.condition is Condition.CONSISTENT and decision.rule not in {ROLLED_BACK, ROLLED_BACK_APART}:
        common = compare(block.lineage, theirs.lineage).common
    made = _back_to(block, common)
    if plan_volume(theirs, _state(made.after, given)).verdict is Verdict.REFUSE:
        raise InternalError(f"volume {block.name}: conceded, and refused all the same")
    return made


def concession_since(block: Superblock, common: str) -> Concession | None:
    """How ``block`` gives way to a replica that is known by their newest common generation, as described.

    If that is its newest one, it gives way to a disk that was put back to an older state.  None: it is
    nothing but a target already.  `ConfigError` if it has not exactly one generation of that name.
    """
    if block.condition is not Condition.CONSISTENT and not block.lineage:
        return None
    named = [each for each in block.lineage if each.describe() == common]
    if len(named) != 1:
        known = ", ".join(each.describe() for each in block.lineage) or "none"
        raise ConfigError(
            f"volume {block.name}: {common!r} does not name one generation of its; there are {known}"
        )
    if block.condition is not Condition.CONSISTENT or named[0] == block.lineage[0]:
        return _back_to(block, None)
    return _back_to(block, named[0])


def _back_to(block: Superblock, common: Generation | None) -> Concession:
    if common is None:
        after = replace(
            block,
            condition=Condition.SYNCING,
            lineage=(),
            sync_target=None,
            peer_in_sync=False,
            map_base=None,
        )
        return Concession(after, None, block.lineage, everything=True)
    at = block.lineage.index(common)
    # If it should become active nevertheless, it opens a generation of its own before it acknowledges
    # anything: that is what `peer_in_sync` asks for.
    after = replace(block, lineage=block.lineage[at:], peer_in_sync=True, map_base=common)
    everything = not map_reaches(block.lineage, block.map_base, common)
    return Concession(after, common, block.lineage[:at], everything)


def _state(block: Superblock, given: int) -> VolumeState:
    return VolumeState(
        block.name,
        block.volume_id,
        block.size_bytes,
        block.condition,
        block.lineage,
        block.sync_target,
        block.map_base,
        given=given,
    )
