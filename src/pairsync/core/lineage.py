"""Lineage: what a replica has lived through, and what two lineages say about each other.

A lineage is the list of a replica's generations, newest first.  An owner opens a new generation, durably,
before it acknowledges a write that the peer does not have; a standby takes the owner's list over, durably,
once it holds everything the list stands for.  So of two replicas of one volume:

* equal newest generations: both lived through the same; what differs is in their dirty maps, never more;
* the newest of one stands further down in the other: that one is behind, by what the other's map holds;
* neither, but something in common: they were written apart, and neither may overwrite the other silently;
* nothing in common: they are not copies of each other.

**A disk that was put back** within one generation, labels and all, looks like what it was; its milestones
tell (``core.states``).  A standby that was given a higher one than its owner has reached, or had reached when
it went on alone from that generation, holds writes that the owner has forgotten: see `outlived`.  So does one
that was being brought to a generation of which the owner knows nothing: half a resync counts like a whole
replica here, for it can be put back to what it was before (``storage.kept``).  One that has forgotten and was
written alone since has a newer generation, and is not newer for that: the two are apart, whoever asks.

A label never makes a replica clean.  The relation decides the *direction*; how much is copied is decided by
the dirty map, and only if that map reaches back far enough (``map_base``), otherwise everything is copied.

**Size.**  The size of a volume is the largest that either host has recorded (``core.growth``): who has the
smaller one grows before anything else.  The active host's size is always believed.  The standby's is believed
where it is a copy of this volume, or is becoming one: then it has recorded what it was told to, and the
active host was cut off before it could do the same.  A larger replica without any past may be a mistake, and
is refused.

`compare` and `plan_volume` are pure and total: they return what is so and the name of the rule that said it;
they never change anything (the place where today's systems lose data: see ``tests/core/test_lineage.py`` for
all pairs of histories up to length four).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from .messages import Condition, Generation, Introduce, Role, SyncMode, VolumePlan, VolumeState

__all__ = [
    "NO_OWNER",
    "ROLLED_BACK",
    "ROLLED_BACK_APART",
    "SAME_GENERATION",
    "WHAT_NOW",
    "Comparison",
    "Decision",
    "Relation",
    "Verdict",
    "compare",
    "has_all",
    "map_reaches",
    "outdated_by",
    "outlived",
    "plan_session",
    "plan_volume",
]

Lineage = tuple[Generation, ...]

NO_OWNER = "no-owner"
"""The rule by which two standbys do nothing."""

ROLLED_BACK = "active-rolled-back"
"""The rule by which the active host's replica is older than the standby's, within one generation."""

ROLLED_BACK_APART = "rolled-back-apart"
"""Likewise, and it was written alone since: each host has what the other one lacks."""

SAME_GENERATION = "newest-generations-equal"
"""The rule by which both replicas have lived through the same."""

_OUTDATED = frozenset({"active-behind", ROLLED_BACK})
"""The rules by which the standby has all that the active host has, and more."""

WHAT_NOW = "the other host takes over, or a person picks a side (pairsync host truths, pairsync lab truths)"


class Relation(enum.Enum):
    """How a local lineage stands to the peer's."""

    SAME = "same"
    AHEAD = "ahead"
    BEHIND = "behind"
    DIVERGED = "diverged"
    UNRELATED = "unrelated"
    LOCAL_EMPTY = "local-empty"
    PEER_EMPTY = "peer-empty"
    BOTH_EMPTY = "both-empty"


class Comparison(NamedTuple):
    """``common`` is the newest generation that both lived through, if any."""

    relation: Relation
    rule: str
    common: Generation | None


def compare(local: Lineage, peer: Lineage) -> Comparison:
    """How ``local`` stands to ``peer`` (both newest first, without repetition)."""
    if not local or not peer:
        if not local and not peer:
            return Comparison(Relation.BOTH_EMPTY, "both-never-written", None)
        if not local:
            return Comparison(Relation.LOCAL_EMPTY, "local-never-written", None)
        return Comparison(Relation.PEER_EMPTY, "peer-never-written", None)
    if local[0] == peer[0]:
        return Comparison(Relation.SAME, SAME_GENERATION, local[0])
    if peer[0] in local and local[0] in peer:
        return Comparison(Relation.DIVERGED, "histories-contradict", None)  # no two real histories do
    if peer[0] in local:
        return Comparison(Relation.AHEAD, "peer-newest-in-local-history", peer[0])
    if local[0] in peer:
        return Comparison(Relation.BEHIND, "local-newest-in-peer-history", local[0])
    peers = set(peer)
    for generation in local:
        if generation in peers:
            return Comparison(Relation.DIVERGED, "written-apart-since-common-generation", generation)
    return Comparison(Relation.UNRELATED, "no-generation-in-common", None)


class Verdict(enum.Enum):
    """Whether a session may go on."""

    PROCEED = "proceed"
    GROW = "grow"
    """Not yet: whoever has a smaller volume than the other grows first."""
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, by which rule, with the sentence that is told to people."""

    verdict: Verdict
    rule: str
    evidence: str
    plans: tuple[VolumePlan, ...] = ()
    sizes: tuple[int, ...] = ()
    """With `Verdict.GROW`: what each volume has to have on both hosts, bytes."""


def _refuse(rule: str, evidence: str) -> Decision:
    return Decision(Verdict.REFUSE, rule, evidence)


def _proceed(mode: SyncMode, rule: str, target: Generation, evidence: str) -> Decision:
    return Decision(Verdict.PROCEED, rule, evidence, (VolumePlan(mode, rule, target),))


def plan_volume(active: VolumeState, standby: VolumeState) -> Decision:
    """How ``standby``'s replica is brought to the state of ``active``'s; the same on both hosts.

    The active's replica is never the target: where it is behind, apart or half overwritten, the session is
    refused and a person, or the grant register, has to speak first (DESIGN rules 3 and 9).
    """
    name = active.name
    if active.volume_id != standby.volume_id or active.name != standby.name:
        return _refuse("another-volume", f"volume {name!r} is not the same volume on both hosts")
    decision = _plan_content(active, standby)
    if active.size_bytes == standby.size_bytes or decision.verdict is Verdict.REFUSE:
        return decision
    return _plan_size(active, standby)


def _plan_size(active: VolumeState, standby: VolumeState) -> Decision:
    """The two are copies of one volume, or the standby's is worthless, and their sizes are not the same."""
    sizes = f"{active.size_bytes} bytes on the active host, {standby.size_bytes} on the standby"
    if active.size_bytes > standby.size_bytes:
        rule, larger = "standby-smaller", active.size_bytes
    elif standby.lineage or standby.sync_target in active.lineage:
        rule, larger = "active-smaller", standby.size_bytes
    else:
        return _refuse("size-differs", f"volume {active.name!r} has {sizes}, which has no past of its own")
    return Decision(Verdict.GROW, rule, f"it has {sizes}", sizes=(larger,))


def _plan_content(active: VolumeState, standby: VolumeState) -> Decision:
    """As if the two had the same size."""
    name = active.name
    if active.condition is not Condition.CONSISTENT or not active.lineage:
        return _refuse(
            "active-not-consistent",
            f"the active host's replica of {name!r} is {active.condition.name.lower()}"
            + ("" if active.lineage else " and has no lineage"),
        )
    newest = active.lineage[0]
    if standby.condition is Condition.BLANK:
        return _proceed(SyncMode.FULL, "standby-blank", newest, "the standby was never written")
    relation, rule, common = compare(active.lineage, standby.lineage)
    if common is not None and outlived(active, standby):
        return _refuse_rolled_back(active, standby, relation)
    if relation is Relation.BEHIND and outlived(standby, active):  # the newer name of older content
        return _refuse_apart(name, "the standby's", "the active host")
    if standby.condition is Condition.SYNCING:
        return _plan_interrupted(active, standby, relation, rule)
    if relation is Relation.SAME or relation is Relation.AHEAD:
        if common is not None and _map_reaches(active, common):
            if relation is Relation.SAME and active.dirty_blocks == 0 and standby.dirty_blocks == 0:
                return _proceed(SyncMode.NOTHING, rule, newest, "same generation, both dirty maps empty")
            return _proceed(SyncMode.INCREMENTAL, rule, newest, _dirty_of_both(active, standby))
        return _proceed(
            SyncMode.FULL, "map-does-not-reach-back", newest, "the dirty map begins after the standby left"
        )
    if relation is Relation.BEHIND:
        return _refuse(
            "active-behind", f"the standby's replica of {name!r} is newer than the active host's: {rule}"
        )
    if relation is Relation.DIVERGED:
        at = "?" if common is None else common.describe()
        return _refuse("diverged", f"both hosts wrote {name!r} apart since generation {at}")
    return _refuse("unrelated", f"the replicas of {name!r} have no generation in common")


def outlived(active: VolumeState, standby: VolumeState) -> bool:
    """Whether ``standby`` has lived through more of its newest generation than ``active`` has a memory of.

    False where that generation is none of the active's, or the active does not say what it has reached.  Half
    a resync counts for what it was before; all of that is there if the active knows the target, which is
    durable before anything is brought to it.
    """
    if not standby.lineage or standby.lineage[0] not in active.lineage:
        return False
    target = standby.sync_target
    if standby.condition is Condition.SYNCING and target != standby.lineage[0]:
        return target is not None and target not in active.lineage  # milestones may be those of the target
    if active.reached is None:
        return False
    at = active.lineage.index(standby.lineage[0])
    # All that the peer was given before it was left is below the epoch of the generation that came next.
    return standby.given > (active.lineage[at - 1].epoch - 1 if at else active.reached)


def _refuse_rolled_back(active: VolumeState, standby: VolumeState, relation: Relation) -> Decision:
    if relation is Relation.SAME:
        target = standby.sync_target
        told = f"remembers milestone {active.reached}, the standby was given {standby.given}"
        if target is not None and target not in active.lineage:
            told = f"does not know {target.describe()}, which the standby was being brought to"
        return _refuse(
            ROLLED_BACK,
            f"the standby's replica of {active.name!r} is newer than the active host's, which was put back "
            f"to an older state (it {told})",
        )
    return _refuse_apart(active.name, "the active host's", "the standby")


def _refuse_apart(name: str, whose: str, other: str) -> Decision:
    return _refuse(
        ROLLED_BACK_APART,
        f"{whose} replica of {name!r} was put back to an older state, and written since: {other} has what "
        "was forgotten",
    )


def outdated_by(mine: Introduce, theirs: Introduce) -> str | None:
    """Why the replicas of ``theirs`` are newer than this host's; empty if they may be brought to its state.

    None: that is not to be told by them.  They are those of an active host, which is never behind, were never
    written, which says nothing of what was there before, are not of the same volumes, or stand otherwise to
    this host's.
    """
    decisions = _as_standby(theirs, mine)
    if decisions is None:
        return None
    for decision in decisions:
        if decision.rule in _OUTDATED:
            return f"{decision.rule}: {decision.evidence}; {WHAT_NOW}"
    if any(decision.verdict is Verdict.REFUSE for decision in decisions):
        return None
    return None if any(each.condition is Condition.BLANK for each in theirs.volumes) else ""


def has_all(theirs: Introduce, mine: Introduce) -> bool:
    """Whether the replicas of ``theirs``, a standby, have all that this host's have, of every volume."""
    decisions = _as_standby(theirs, mine)
    return decisions is not None and {each.rule for each in decisions} <= {*_OUTDATED, SAME_GENERATION}


def _as_standby(theirs: Introduce, mine: Introduce) -> list[Decision] | None:
    """What is so of each volume, were this host active; None if ``theirs`` is, or has other volumes."""
    if theirs.role is Role.ACTIVE or not _same_volumes(mine, theirs):
        return None
    return [plan_volume(*each) for each in zip(mine.volumes, theirs.volumes, strict=True)]


def _same_volumes(mine: Introduce, theirs: Introduce) -> bool:
    return [each.name for each in mine.volumes] == [each.name for each in theirs.volumes]


def _plan_interrupted(active: VolumeState, standby: VolumeState, relation: Relation, rule: str) -> Decision:
    """A resync of the standby had begun and not ended.

    What it still lacks is in the active's map if that map was begun no later than the generation towards
    which the standby was being synced: blocks leave the map only when the standby holds them durably.
    """
    target = standby.sync_target
    if target is None or target not in active.lineage:
        # What it was before says whether it may be overwritten at all.
        if relation in (Relation.SAME, Relation.AHEAD, Relation.PEER_EMPTY):
            return _proceed(SyncMode.FULL, "interrupted-for-another", active.lineage[0], rule)
        return _refuse(
            "interrupted-unrelated",
            f"the standby's replica of {active.name!r} was being synced from elsewhere",
        )
    if _map_reaches(active, target):
        return _proceed(
            SyncMode.INCREMENTAL,
            "resume-interrupted",
            active.lineage[0],
            _dirty_of_both(active, standby),
        )
    return _proceed(SyncMode.FULL, "interrupted-map-lost", active.lineage[0], "the dirty map was begun anew")


def _dirty_of_both(active: VolumeState, standby: VolumeState) -> str:
    """The standby's own map counts too: it may have been active when it left (DESIGN section 4)."""
    both = f"the dirty map holds {active.dirty_blocks} blocks"
    return f"{both}, the standby's own {standby.dirty_blocks}" if standby.dirty_blocks else both


def map_reaches(lineage: Lineage, map_base: Generation | None, since: Generation) -> bool:
    """Whether a dirty map begun at ``map_base`` holds all that was written since ``since`` began.

    ``since`` is in ``lineage``.
    """
    if map_base is None or map_base not in lineage:
        return False
    return lineage.index(map_base) >= lineage.index(since)


def _map_reaches(active: VolumeState, since: Generation) -> bool:
    return map_reaches(active.lineage, active.map_base, since)


def plan_session(local: Introduce, peer: Introduce) -> Decision:
    """Whether two hosts that introduced themselves may form a session, and what each volume needs."""
    if local.pair_id != peer.pair_id:
        return _refuse("another-pair", "the peer belongs to another pair")
    if local.guest != peer.guest:
        return _refuse("another-guest", f"the peer speaks for guest {peer.guest!r}, this is {local.guest!r}")
    if local.role is peer.role:
        both = "both hosts are active" if local.role is Role.ACTIVE else "neither host is active"
        return _refuse("two-owners" if local.role is Role.ACTIVE else NO_OWNER, both)
    active, standby = (local, peer) if local.role is Role.ACTIVE else (peer, local)
    if active.term < standby.term:
        return _refuse("stale-term", f"the active host's term {active.term} is older than {standby.term}")
    if not _same_volumes(active, standby):
        return _refuse("volumes-differ", "the two hosts do not have the same list of volumes")
    plans: list[VolumePlan] = []
    rules: list[str] = []
    evidence: list[str] = []
    grows = False
    for mine, theirs in zip(active.volumes, standby.volumes, strict=True):
        decision = plan_volume(mine, theirs)
        if decision.verdict is Verdict.REFUSE:
            return decision
        grows = grows or decision.verdict is Verdict.GROW
        plans.extend(decision.plans)
        rules.append(decision.rule)
        evidence.append(f"{mine.name}: {decision.evidence}")
    if grows:
        pairs = zip(active.volumes, standby.volumes, strict=True)
        sizes = tuple(max(mine.size_bytes, theirs.size_bytes) for mine, theirs in pairs)
        return Decision(Verdict.GROW, ",".join(rules), "; ".join(evidence), sizes=sizes)
    return Decision(Verdict.PROCEED, ",".join(rules), "; ".join(evidence), tuple(plans))
