"""Footing: whether the guest may run here, and whether to acknowledge alone, case by case."""

from __future__ import annotations

import pytest

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import WitnessView
from pairsync.core.footing import Footing
from pairsync.core.grants import Ballot, Grant, VoterId, genesis
from pairsync.core.outcomes import Guest

A, B = b"a" * 32, b"b" * 32
A1, B1, B2, W1 = VoterId(A, b"a1"), VoterId(B, b"b1"), VoterId(B, b"b2"), VoterId("w", b"w1")
FIRST = genesis(A1, b"fork")
BOTH = FIRST._replace(epoch=2, in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))
ALONE = BOTH._replace(epoch=3, in_sync=frozenset({A}), voters=frozenset({A1}))
TAKEN = Grant(2, 1, B, b"b1", frozenset({B}), frozenset({B1}), b"fork")


def _footing(base: Grant | None, incarnation: bytes = b"a1") -> Footing:
    footing = Footing(A, B, AcceptorState(incarnation, base), ("w",))
    footing.ready = True
    footing.unsure = False
    footing.known = base
    if base is not None:
        footing.wanted = base.in_sync
    return footing


def test_who_decides_alone_runs_without_a_lease() -> None:
    assert _footing(ALONE).may_run
    assert not _footing(None).may_run
    assert not _footing(TAKEN).may_run
    assert not _footing(ALONE, b"a2").may_run, "the grant is to a memory that was lost"
    assert not _footing(ALONE, b"a2").owns


@pytest.mark.parametrize(
    ("base", "own", "peer", "witness", "forgotten"),
    [
        (BOTH, b"a2", None, None, False),  # the others were not heard
        (BOTH, b"a2", B1, None, False),
        (BOTH, b"a2", B2, None, True),
        (BOTH, b"a1", B2, None, False),
        (BOTH, b"a1", B2, b"w1", False),
        (BOTH, b"a1", B2, b"w2", True),
        (ALONE, b"a2", None, None, True),
        (ALONE, b"a1", None, None, False),
        (None, b"a1", None, None, False),
    ],
)
def test_too_many_memories_are_lost(
    base: Grant | None, own: bytes, peer: VoterId | None, witness: bytes | None, forgotten: bool
) -> None:
    """Two of three, or the only one: no host will ever run the guest by itself, and that is said."""
    footing = _footing(base, own)
    footing.peer_id = peer
    footing.register.views = (None if witness is None else WitnessView(witness, 0, None),)
    assert footing.forgotten is forgotten


def test_others_may_decide() -> None:
    footing = _footing(BOTH)
    assert not footing.may_run
    assert "stands by" in footing.why_stopped()
    footing.leased_by = B2
    assert not footing.may_run, "the promise of a memory that the grant does not know"
    footing.leased_by = B1
    assert footing.may_run


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("ready", False, "volumes"), ("moving", True, "moves"), ("unsure", True, "newer")],
)
def test_what_stops_the_guest(name: str, value: object, reason: str) -> None:
    footing = _footing(ALONE)
    setattr(footing, name, value)
    assert not footing.may_run
    assert reason in footing.why_stopped()


def test_another_owner_may_have_been_agreed_on() -> None:
    for unsettled in ("possible", "accepted"):
        footing = _footing(ALONE)
        if unsettled == "possible":
            footing.register.possible = frozenset({TAKEN})
        else:
            ballot = Ballot(1, B, b"b1")
            footing.register.acceptor = AcceptorState(b"a1", ALONE, ballot, ballot, TAKEN)
        assert not footing.may_run
        assert "another owner" in footing.why_stopped()
    assert "owns" in _footing(TAKEN).why_stopped()


def test_a_change_of_the_owner_waits_for_the_guest_or_the_promise() -> None:
    assert _footing(ALONE).cedes
    stopping = _footing(ALONE)
    stopping.guest = Guest.STOPPING
    assert not stopping.cedes
    assert not _footing(TAKEN).cedes
    standby = _footing(TAKEN)
    standby.promise_out = True
    assert standby.cedes


def test_acknowledging_alone() -> None:
    assert _footing(ALONE).peer_excluded
    assert not _footing(BOTH).peer_excluded
    assert not _footing(None).peer_excluded
    assert not _footing(TAKEN).peer_excluded
    assert not _footing(ALONE._replace(voters=BOTH.voters)).peer_excluded, "others may decide"
    wanted = _footing(ALONE)
    wanted.wanted = frozenset({A, B})
    assert not wanted.peer_excluded
    asked = _footing(ALONE)
    asked.register.possible = frozenset({BOTH})
    assert not asked.peer_excluded
