"""Standing: whether a volume's owner may acknowledge without its peer, and how that came to be durable.

The peer's way into the in-sync set and out of it, seen from the active host::

    ABSENT ──session──▶ PREPARING ──Begun──▶ SYNCING ──nothing missing──▶ ADOPTING ──Adopted──▶ CONFIRMING
       ▲                                        ▲                                                   │
       │ session lost (from any state)          └──────── BEHIND ◀── async bound passed ─┐      durable
       └──────────────────────────────────────────────────────────────────────────────── IN_SYNC ◀──┘

From ADOPTING on every acknowledgement needs the peer (sync level); a peer that lacked nothing is there while
its digests are compared, and goes back through BEHIND if they differ.  On the way out the rule is DESIGN rule
2: **no write is acknowledged without a peer that was in sync before a new generation is durable here.**
Where grants are arbitrated, that takes a permit first (`core.permit`).
That generation is opened at once if anything is in flight or unflushed, otherwise with the first write: a
link that flaps over an idle guest leaves no trace.  Its epoch is above every milestone that the peer may have
been given until then (``core.states``).

The superblock is kept three times: *desired*, the one *being written*, and the *durable* one.  Questions are
answered from the worst of them, so a crash at any point finds a superblock that promises no more than what
was kept.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace

from pairsync.errors import ArbitrationError, InternalError

from .effects import Effect, Emit, Persist
from .events import AloneEvent, InSyncEvent
from .messages import Condition, Generation
from .permit import Permit
from .superblock import LINEAGE_GENERATIONS_MAX, Superblock

__all__ = ["Phase", "Standing", "SuperblockWriter"]


class Phase(enum.Enum):
    """Where the peer stands with one volume (see the module's drawing)."""

    ABSENT = "absent"
    PREPARING = "preparing"
    SYNCING = "syncing"
    BEHIND = "behind"
    ADOPTING = "adopting"
    CONFIRMING = "confirming"
    IN_SYNC = "in-sync"


_STEPS: dict[Phase, frozenset[Phase]] = {
    Phase.ABSENT: frozenset({Phase.PREPARING}),
    Phase.PREPARING: frozenset({Phase.SYNCING, Phase.ABSENT}),
    Phase.SYNCING: frozenset({Phase.ADOPTING, Phase.BEHIND, Phase.ABSENT}),
    Phase.BEHIND: frozenset({Phase.PREPARING, Phase.ABSENT}),
    Phase.ADOPTING: frozenset({Phase.CONFIRMING, Phase.BEHIND, Phase.ABSENT}),
    Phase.CONFIRMING: frozenset({Phase.IN_SYNC, Phase.BEHIND, Phase.ABSENT}),
    Phase.IN_SYNC: frozenset({Phase.BEHIND, Phase.ABSENT}),
}

_JOINED = frozenset({Phase.ADOPTING, Phase.CONFIRMING, Phase.IN_SYNC})
_MIRRORED = frozenset({Phase.SYNCING, *_JOINED})


class SuperblockWriter:
    """Brings the durable superblock to the desired one, one write at a time."""

    def __init__(self, volume: int, durable: Superblock, out: list[Effect]) -> None:
        self.desired = durable  # what should be on disk
        self.durable = durable  # what certainly is, unless `writing` has replaced it
        self.writing: Superblock | None = None  # what may be on disk at any moment
        self.stuck = False  # `writing` could not be written
        self._volume = volume
        self._out = out

    def want(self, superblock: Superblock) -> None:
        """Make ``superblock`` durable; `persisted` follows."""
        self.desired = superblock
        self._advance()

    def _advance(self) -> None:
        if self.writing is None and self.desired != self.durable:
            self.writing = self.desired
            self._out.append(Persist(self._volume, self.writing, self.writing))

    def persisted(self, token: object) -> Superblock:
        """The write has ended well; the superblock that is durable now."""
        if self.writing is None or token is not self.writing:
            raise InternalError("a superblock was reported durable that was not being written")
        self.durable, self.writing = self.writing, None
        self._advance()
        return self.durable

    def gave_up(self, token: object) -> None:
        """The write has failed: either superblock may be on disk, and nothing is written until `retry`."""
        if self.writing is None or token is not self.writing:
            raise InternalError("a superblock could not be written that was not being written")
        self.stuck = True

    def forget_wishes(self) -> None:
        """Nothing is wanted any more beyond what is durable, or on its way to the disk.

        Of a write that has failed the term and the size remain: they may be on disk, and they only grow.
        """
        if self.writing is None:
            self.desired = self.durable
        elif self.stuck:
            self.desired = replace(
                self.durable,
                term=max(self.durable.term, self.writing.term),
                size_bytes=max(self.durable.size_bytes, self.writing.size_bytes),
            )
        else:
            self.desired = self.writing

    def retry(self) -> None:
        """If the last write failed, write what is desired now, whatever is on disk."""
        if self.stuck:
            self.stuck = False
            self.writing = self.desired
            self._out.append(Persist(self._volume, self.writing, self.writing))

    @property
    def settled(self) -> bool:
        """Whether the durable superblock is the desired one."""
        return self.writing is None and self.durable == self.desired


class Standing:
    """Membership of the peer for one volume of which this host is active."""

    def __init__(
        self,
        volume: int,
        superblock: Superblock,
        draw_tag: Callable[[], int],
        out: list[Effect],
        permit: Permit | None = None,
        milestone: int = 1,
    ) -> None:
        """``permit`` is shared by the volumes of the guest; None: nobody has to be asked.

        ``milestone``: the highest that was reached here, or given by the peer, before.
        """
        if superblock.condition is Condition.SYNCING:
            raise ArbitrationError(
                f"volume {superblock.name!r} was being overwritten by a resync: it cannot be active"
            )
        self.phase = Phase.ABSENT  # changed by `_become` only, and with it the next two
        self.mirrored = False
        """Whether writes are sent to the peer."""
        self.joined = False
        """Whether acknowledgements need the peer (at level ``sync``)."""
        self.name = superblock.name
        self._volume = volume
        self._draw_tag = draw_tag
        self._out = out
        self._writer = SuperblockWriter(volume, superblock, out)
        # A peer that was in sync is owed a new generation before anything is acknowledged without it.
        self._renewal_due = superblock.peer_in_sync
        self._permit = Permit(out, alone=True) if permit is None else permit
        self._renewal_asked = False  # it is wanted at once, and waits for the permit
        self._had = False  # the peer was in sync in this life
        self._reached = milestone  # durable here
        self.given = milestone
        """The highest milestone that the peer may know; at most the one that is reached."""

    # ------------------------------------------------------------------ questions

    @property
    def superblock(self) -> Superblock:
        """The desired superblock: what the replica is, as far as this host has decided."""
        return self._writer.desired

    @property
    def newest(self) -> Generation:
        """The generation that writes belong to now."""
        return self._writer.desired.lineage[0]

    @property
    def may_acknowledge_alone(self) -> bool:
        """Whether no superblock that may be on disk counts the peer as in sync."""
        writer = self._writer
        if self._renewal_due or writer.durable.peer_in_sync or not self._permit.alone:
            return False
        if writer.writing is not None and writer.writing.peer_in_sync:
            return False
        return bool(writer.durable.lineage) and writer.durable.lineage[0] == writer.desired.lineage[0]

    @property
    def still_counts(self) -> bool:
        """Whether a peer that was in sync in this life is still needed: nothing was acknowledged without it,
        and nothing will be before a permit has come."""
        return self._had and self._writer.desired.peer_in_sync and not self._permit.alone

    @property
    def settled(self) -> bool:
        """Whether nothing is on its way to the disk."""
        return self._writer.settled

    # ------------------------------------------------------------------ changes

    def activate(self, term: int, boot_id: str) -> None:
        """Become the owner under ``term``: recorded before the first write is served."""
        block = self.superblock
        if term < block.term:
            raise ArbitrationError(f"term {term} is older than {block.term}, recorded for {self.name!r}")
        block = replace(block, term=term, boot_id=boot_id, clean=False, sync_target=None, parted=self.given)
        block = replace(block, outdated=False)  # else nobody but a person makes it the owner
        if not block.lineage:
            first = Generation(term, 1, self._draw_tag())
            # A blank replica is empty on purpose: its (empty) dirty map speaks for its whole life.
            base = first if block.condition is Condition.BLANK else None
            block = replace(block, lineage=(first,), map_base=base)
        self._writer.want(replace(block, condition=Condition.CONSISTENT))

    def deactivate(self) -> None:
        """The volume is closed in order; its dirty map is exact."""
        self._writer.want(replace(self.superblock, clean=True))

    def persisted(self, token: object) -> None:
        """A superblock is durable."""
        before = self._writer.durable
        now = self._writer.persisted(token)
        if before.lineage and now.lineage[0] != before.lineage[0] and not now.peer_in_sync:
            self._out.append(Emit(AloneEvent(self.name, now.lineage[0].describe())))
        if self.phase is Phase.CONFIRMING and now.peer_in_sync and now.parted is None:
            self._become(Phase.IN_SYNC)
            self._out.append(Emit(InSyncEvent(self.name, now.lineage[0].describe())))

    def request_alone(self) -> None:
        """An acknowledgement wants to leave without the peer: open the generation that allows it."""
        if self.joined:
            return
        if self._renewal_due:
            self._renew()
        else:
            self._permit.ask()

    def permitted(self) -> None:
        """The permit was given: open the generation that has been waiting for it."""
        if self._renewal_asked and self._renewal_due and not self.joined:
            self._renew()

    def _renew(self) -> None:
        if not self._permit.alone:
            self._renewal_asked = True
            self._permit.ask()
            return
        self._renewal_due = self._renewal_asked = False
        block = self.superblock
        newest = block.lineage[0]
        epoch = newest.epoch if newest.term == block.term else 0
        fresh = Generation(block.term, max(epoch, self.given) + 1, self._draw_tag())
        lineage = (fresh, *block.lineage)[:LINEAGE_GENERATIONS_MAX]
        self._writer.want(replace(block, lineage=lineage, peer_in_sync=False))

    def map_begins(self) -> None:
        """The dirty map now holds, durably, all that the peer may lack: a full resync starts from it."""
        self._writer.want(replace(self.superblock, map_base=self.newest))

    def recorded(self, write_intents: int) -> None:
        """The write-intent log has, durably, a record of that generation of its."""
        self._reached = max(self._reached, write_intents + 1)  # 1 is that of a log without any

    def give(self) -> int:
        """The milestone that the peer is told now: nothing that a crash could make this host deny."""
        if self.phase is Phase.IN_SYNC:
            self.given = self._reached
        return self.given

    def outdated(self, known: bool) -> None:
        """Whether the peer has a newer replica than this one, as it was met now."""
        self._writer.want(replace(self.superblock, outdated=known))

    def grow(self, size_bytes: int) -> None:
        """The volume is to have that size; there is room for it."""
        self._writer.want(replace(self.superblock, size_bytes=size_bytes))

    @property
    def durable_size_bytes(self) -> int:
        """The size that is recorded."""
        return self._writer.durable.size_bytes

    def _become(self, phase: Phase) -> None:
        if phase not in _STEPS[self.phase]:
            raise InternalError(f"{self.name}: peer from {self.phase.value} to {phase.value}")
        self.phase = phase
        self.mirrored = phase in _MIRRORED
        self.joined = phase in _JOINED

    def prepare(self) -> None:
        """A session has begun, or begins again after the peer fell behind."""
        self._become(Phase.PREPARING)

    def begun(self) -> None:
        """The peer has recorded that it is being brought up to date."""
        self._become(Phase.SYNCING)

    def adopt(self) -> None:
        """The peer is asked to take the lineage over: from here on it is needed."""
        self._become(Phase.ADOPTING)

    def adopted(self, generation: Generation) -> bool:
        """The peer has taken the lineage over; False if it is not the one that is in force."""
        if self.phase is not Phase.ADOPTING or generation != self.newest:
            return False
        self._become(Phase.CONFIRMING)
        self._had = True
        self._renewal_due = self._renewal_asked = False
        self._permit.renounce()
        block = replace(self.superblock, peer_in_sync=True, map_base=self.newest, parted=None, outdated=False)
        if block == self._writer.durable and self._writer.settled:  # it never left (the link flapped)
            self._become(Phase.IN_SYNC)
            self._out.append(Emit(InSyncEvent(self.name, self.newest.describe())))
        else:
            self._writer.want(block)
        return True

    def leave(self, phase: Phase, *, at_once: bool) -> None:
        """The peer is out (``ABSENT``) or too slow (``BEHIND``).

        ``at_once``: something is in flight or unflushed, so the new generation is opened now.
        """
        joined = self.joined or self.superblock.peer_in_sync
        self._become(phase)
        if joined:
            self._renewal_due = True
            if at_once or phase is Phase.BEHIND:
                self._renew()
