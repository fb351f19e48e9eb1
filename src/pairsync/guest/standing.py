"""What a host can say of its guest's grant: who owns it, and what would survive now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pairsync.core.arbiter import Arbiter
from pairsync.core.claims import claim_of
from pairsync.core.grants import HostId
from pairsync.core.messages import Role
from pairsync.core.outlook import Outlook, outlook, state_of

from .roles import obstacle

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["Standing", "called", "obstacle_of", "outlook_of", "standing_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the register says of a guest now, for status; hosts are named ``here`` and ``peer``."""

    term: int
    epoch: int
    owner: str
    in_sync: tuple[str, ...]
    sole: bool
    override: str
    """The operator who forced it; empty if it was voted."""
    witness: str | None
    """The witness that is asked now; None: none answers."""
    waits: str
    """Why this host, which owns the guest, may not run it now; empty if it may, or is not the owner."""
    forgotten: bool
    """So many of those who decide have lost their memory that only a person can."""


def called(host: HostId, who: HostId) -> str:
    """``who`` as seen from ``host``."""
    return "here" if who == host else "peer"


def obstacle_of(arbiter: Arbiter, guest: Guest) -> str:
    """Why what this host has cannot serve the guest under the grant in force; empty if it can."""
    return obstacle(guest, claim_of(arbiter))


def standing_of(arbiter: Arbiter, host: HostId, guest: Guest) -> Standing | None:
    """What is agreed; None before anything is."""
    grant, decider = arbiter.grant, arbiter.decider
    if grant is None:
        return None
    waits = ""
    if decider.owns and not decider.may_run:
        waits = obstacle_of(arbiter, guest) or decider.why_stopped()
    return Standing(
        term=grant.term,
        epoch=grant.epoch,
        owner=called(host, grant.owner),
        in_sync=tuple(sorted(called(host, each) for each in grant.in_sync)),
        sole=grant.sole is not None,
        override=grant.override,
        witness=None if decider.witness_lost else decider.register.witnesses[decider.current],
        waits=waits,
        forgotten=decider.forgotten,
    )


def outlook_of(arbiter: Arbiter, guest: Guest) -> Outlook | None:
    """What would survive now, as far as this host can see; None for a guest that does not run here."""
    if guest.role is not Role.ACTIVE or guest.paused:
        return None
    linked = guest.link is not None and guest.link.session is not None
    state = state_of(arbiter, guest.session.sources, linked=linked)
    return None if state is None else outlook(state, failover_ns=arbiter.timing.failover_ns)
