"""Footing: what a host knows of a guest's grants, its peer and its witness, and what follows from that.

The state of `core.decider`, and the questions that it answers; nothing here changes anything.

**May the guest run here?**  Yes, if the newest grant known names this memory as the owner, and nobody can
have decided another one: no majority does without us, or the peer has promised not to take over (the lease),
and is the voter that the grant means.  A peer that promises knows of no newer grant and works at none.  And
if our own acceptor has accepted something for the next grant, that is brought to an end first.  Who decides
alone asks around first when it has come up (`Footing.unsure`): there may have been an override, or its disk
may have been restored from a backup.  No vote can rule that out, so it waits no longer than for a silent
peer.

**Acknowledging alone** (`peer_excluded`): the newest grant known excludes the peer and no majority decides
without us; and neither is the peer wanted in nor is a grant that includes it possible.

State is made of immutable values, so that it can be copied and compared.
"""

from __future__ import annotations

from .acceptor import AcceptorState
from .grants import Grant, HostId, VoterId, majority
from .outcomes import Guest, Wait
from .policy import Situation
from .register import Register

__all__ = ["Footing"]


class Footing:
    """See the module."""

    __slots__ = (
        "current",
        "guest",
        "known",
        "leased_by",
        "moving",
        "peer_alive",
        "peer_behind",
        "peer_id",
        "peer_newer",
        "peer_ready",
        "promise_out",
        "ready",
        "register",
        "unsure",
        "vouched",
        "waits",
        "wanted",
        "witness_lost",
    )

    def __init__(
        self, host: HostId, peer: HostId, acceptor: AcceptorState, witnesses: tuple[str, ...] = ()
    ) -> None:
        self.register = Register(host, peer, acceptor, witnesses)
        self.known: Grant | None = None
        """The base that the rest of the state has been adapted to."""
        self.guest = Guest.DOWN
        self.unsure = True
        """The grant is that of the disk, and nobody was heard yet who may know a newer one."""
        self.ready = False
        """The data plane could serve the guest with what this host has."""
        self.peer_newer = False  # it could not, for the peer, as met now, has that and more
        self.wanted: frozenset[HostId] = frozenset()
        """The in-sync set that the data plane wants.  Invariant: beyond that of the base it holds at most the
        peer, and that only if it was vouched for since."""
        self.vouched = False  # the replica of the peer's memory ``peer_id`` was proven in this life
        self.moving = False  # an operator wants the peer to own the guest
        self.peer_id: VoterId | None = None  # the peer's memory, as last heard
        self.peer_alive = False  # heard since the last silence
        self.peer_ready = False
        self.peer_behind = False  # the peer may not know our base
        self.leased_by: VoterId | None = (
            None  # who has promised not to take over, while that can be relied on
        )
        self.promise_out = False  # standby: what was promised to the owner has run out
        self.current = 0  # index of the witness that is used for new grants
        self.witness_lost = not witnesses  # none has answered for long enough
        self.waits: frozenset[Wait] = frozenset()

    # ------------------------------------------------------------------ questions

    @property
    def own(self) -> VoterId:
        """This host as a voter."""
        return self.register.own

    @property
    def base(self) -> Grant | None:
        """The newest grant known to be decided."""
        return self.register.base

    @property
    def owns(self) -> bool:
        """Whether that grant is to this memory."""
        acceptor = self.register.acceptor
        base = acceptor.base  # asked with every input: no voters are made to be compared
        return base is not None and base.owner == self.register.name and base.holder == acceptor.incarnation

    @property
    def peer_proven(self) -> bool:
        """Whether the peer's replica is in sync with the memory that the peer has now.

        A grant calls hosts in sync, not memories.  One that is among the voters is the one that was meant;
        another one has to have been vouched for in this life.
        """
        base = self.base
        if base is None or self.peer_id is None or self.register.peer not in base.in_sync & self.wanted:
            return False
        return self.vouched or self.peer_id in base.voters

    @property
    def peer_could_own(self) -> bool:
        """Whether the peer would take the guest over, or could be given it, by what it has said last."""
        return self.peer_proven and self.peer_alive and self.peer_ready

    @property
    def peer_excluded(self) -> bool:
        """Whether writes may be acknowledged without the peer: see the module."""
        base, own = self.base, frozenset({self.register.name})
        if base is None or not self.owns or base.in_sync - own or self.wanted - own:
            return False
        if base.decides_without(self.own):
            return False
        return not any(grant.in_sync - own for grant in self.register.possible)

    @property
    def may_run(self) -> bool:
        """Whether the guest may run here: see the module."""
        base = self.base
        if base is None or not self.owns or not self.ready or self.moving or self.ceding:
            return False
        if base.decides_without(self.own):
            return self.leased_by in base.voters
        return not self.unsure

    @property
    def ceding(self) -> bool:
        """Whether a grant to another owner may be decided as far as this host knows."""
        register = self.register
        return register.acceptor.accepted is not None or any(map(register.changes_owner, register.possible))

    @property
    def cedes(self) -> bool:
        """Whether a grant that changes the owner may be decided: the old owner's guest is down for sure."""
        return self.guest is Guest.DOWN if self.owns else self.promise_out

    @property
    def forgotten(self) -> bool:
        """Whether so many voters have lost their memory, as heard, that they decide nothing any more."""
        register, base = self.register, self.base
        views = zip(register.witnesses, register.views, strict=True)
        heard = {VoterId(name, view.incarnation) for name, view in views if view is not None}
        heard |= {self.own} if self.peer_id is None else {self.own, self.peer_id}
        names = {voter.name for voter in heard}
        voters = frozenset() if base is None else base.voters
        left = [voter for voter in voters if voter in heard or voter.name not in names]
        return base is not None and len(left) < majority(voters)

    def why_stopped(self) -> str:
        """Why the guest may not run here, for people."""
        if not self.owns:
            return "the other host owns the guest"
        if not self.ready:
            return "the volumes cannot be served"
        if self.moving:
            return "the guest moves to the other host"
        if self.ceding:
            return "another owner may have been agreed on"
        if self.unsure:
            return "the other host may know of a newer grant"
        return "the other host does not confirm that it stands by"

    def situation(self, base: Grant) -> Situation:
        """What the policy looks at."""
        register = self.register
        witness: VoterId | None = None
        if register.witnesses and not self.witness_lost:
            name = register.witnesses[self.current]
            view = register.view(name)
            witness = VoterId(name, view.incarnation) if view is not None else None
        leased = self.leased_by is not None and self.leased_by == self.peer_id
        return Situation(
            own=self.own,
            peer=register.peer,
            base=base,
            ready=self.ready,
            wanted=self.wanted,
            peer_id=self.peer_id,
            vouched=self.vouched,
            leased=leased,
            peer_ready=self.peer_alive and self.peer_ready,
            peer_newer=self.peer_newer,
            witness=witness,
            witness_lost=self.witness_lost,
            moving=self.moving,
            guest_down=self.guest is Guest.DOWN,
            promise_out=self.promise_out,
            leftover=self.ceding or (leased and register.leftover()),
        )
