"""What a host can say of its guest's grant: who owns it, and what would survive now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pairsync.core.arbiter import Arbiter
from pairsync.core.grants import HostId
from pairsync.core.messages import Role
from pairsync.core.outlook import Outlook, State, outlook

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["Standing", "called", "outlook_of", "standing_of"]


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


def called(host: HostId, who: HostId) -> str:
    """``who`` as seen from ``host``."""
    return "here" if who == host else "peer"


def standing_of(arbiter: Arbiter, host: HostId) -> Standing | None:
    """What is agreed; None before anything is."""
    grant, decider = arbiter.grant, arbiter.decider
    if grant is None:
        return None
    return Standing(
        term=grant.term,
        epoch=grant.epoch,
        owner=called(host, grant.owner),
        in_sync=tuple(sorted(called(host, each) for each in grant.in_sync)),
        sole=grant.sole is not None,
        override=grant.override,
        witness=None if decider.witness_lost else decider.register.witnesses[decider.current],
    )


def outlook_of(arbiter: Arbiter, guest: Guest, host: HostId) -> Outlook | None:
    """What would survive now, as far as this host can see; None for a guest that does not run here.

    A peer that was called in sync a moment ago, and has not said yet that it could serve, is taken not to be.
    """
    grant = arbiter.grant
    if grant is None or guest.role is not Role.ACTIVE or guest.paused:
        return None
    linked = guest.link is not None and guest.link.session is not None
    sources = guest.session.sources
    state = State(
        in_sync=host in grant.in_sync and len(grant.in_sync) > 1 and linked and arbiter.decider.peer_ready,
        sole=grant.sole == arbiter.decider.own,
        link=linked,
        owner_asks=arbiter.owner_asks,
        standby_asks=arbiter.standby_asks,
        owner_disk=all(each.failed is None for each in sources),
        lag_bytes=sum(each.inflight_bytes for each in sources if each.options.level == "async"),
    )
    return outlook(state, failover_ns=arbiter.timing.failover_ns)
