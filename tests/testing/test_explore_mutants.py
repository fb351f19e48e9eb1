"""The explorer is tested: bugs planted in arbitration, each found, and by a rule that makes sense.

Every mutant makes the core forget one thing.  The bounds are as small as the bug allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pairsync.core import acceptor, policy, register
from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import PersistAcceptor
from pairsync.core.decider import Decider
from pairsync.core.footing import Footing
from pairsync.core.proposer import Round
from pairsync.core.register import Register
from pairsync.testing.explore import Bounds, explore

STATES_MAX = 200_000

Mutant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, tuple[Mutant, set[str], Bounds]] = {}
SMALL = Bounds(terms=2, epochs=3, crashes=0, amnesias=0, alarms=3, moves=0)


def mutant(*rules: str, **bounds: Any) -> Callable[[Mutant], Mutant]:
    """Has to be found, by one of these rules, within these bounds."""

    def plant(change: Mutant) -> Mutant:
        MUTANTS[change.__name__] = (change, set(rules), SMALL._replace(**bounds))
        return change

    return plant


# -- rule 1: one grant of each place, one owner --------------------------------------------------------------


@mutant("one-grant", "two-guests", "lost-write", alarms=4)
def propose_what_is_wanted_whatever_was_found(patch: pytest.MonkeyPatch) -> None:
    right = Round.fixes
    patch.setattr(Round, "fixes", lambda self, value: right(self, value)._replace(value=value))


@mutant("one-grant", "two-guests", "lost-write")
def take_the_witness_for_won_before_its_swap(patch: pytest.MonkeyPatch) -> None:
    """As if what was read from it were a promise already: others are asked while its swap is under way."""
    right = Register._by_witness

    def by_witness(self: Register, out: list[Any], *, cedes: bool) -> bool:
        found = right(self, out, cedes=cedes)
        if found and self.round is not None and self.wish is not None:
            self._take(acceptor.learn(self.acceptor, self.wish), out)
        return found

    patch.setattr(Register, "_by_witness", by_witness)


@mutant("durable")
def say_it_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    def holds(self: Register, state: AcceptorState, out: list[Any]) -> None:
        self.acceptor = state

    patch.setattr(Register, "_holds", holds)


# -- rules 1 and 10: one guest -------------------------------------------------------------------------------


@mutant("two-guests")
def run_without_a_lease(patch: pytest.MonkeyPatch) -> None:
    def may_run(self: Footing) -> bool:
        return self.owns and self.ready and not self.moving and not self.ceding

    patch.setattr(Footing, "may_run", property(may_run))


@mutant("two-guests")
def take_over_before_the_promise_has_run_out(patch: pytest.MonkeyPatch) -> None:
    right = policy._take_over
    patch.setattr(policy, "_take_over", lambda now: right(now._replace(promise_out=True)))
    patch.setattr(Footing, "cedes", property(lambda self: True))


@mutant("two-guests", alarms=4)
def promise_while_a_take_over_is_being_decided(patch: pytest.MonkeyPatch) -> None:
    right = Decider._hears_beat

    def hears_beat(self: Decider, message: Any, out: list[Any]) -> None:
        current, self.register.round = self.register.round, None
        right(self, message, out)
        self.register.round = current

    patch.setattr(Decider, "_hears_beat", hears_beat)


@mutant("two-guests", moves=1, alarms=2)
def hand_over_while_the_guest_is_up(patch: pytest.MonkeyPatch) -> None:
    right = policy._of_owner
    patch.setattr(policy, "_of_owner", lambda now: right(now._replace(guest_down=True)))
    patch.setattr(Footing, "cedes", property(lambda self: True))


# -- rules 2 and 3: nothing acknowledged is lost -------------------------------------------------------------


@mutant("lost-write")
def acknowledge_alone_when_the_peer_is_wanted_out(patch: pytest.MonkeyPatch) -> None:
    def peer_excluded(self: Footing) -> bool:
        return self.owns and self.register.peer not in self.wanted

    patch.setattr(Footing, "peer_excluded", property(peer_excluded))


@mutant("lost-write", "two-guests", epochs=2, ballots=1, crashes=1, amnesias=1, alarms=2)
def rely_on_a_promise_of_a_memory_that_was_lost(patch: pytest.MonkeyPatch) -> None:
    right = Footing.__dict__["may_run"].fget

    def may_run(self: Footing) -> bool:
        leased_by = self.leased_by
        if leased_by is not None:
            self.leased_by = self.register.voting_peer()
        found: bool = right(self)
        self.leased_by = leased_by
        return found

    patch.setattr(Footing, "may_run", property(may_run))


@mutant("one-grant", "two-guests", "lost-write", epochs=2, ballots=2, crashes=1, amnesias=0, alarms=3)
def commit_what_was_overtaken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(register, "commit", lambda state, ballot, grant: acceptor.learn(state, grant))
    patch.setattr(Register, "_holds", _hold)


def _hold(self: Register, state: AcceptorState, out: list[Any]) -> None:
    """As the right one, but the round goes on."""
    if state != self.acceptor:
        self.acceptor = state
        out.append(PersistAcceptor(state))


@mutant("lost-write", witness=False, crashes=2, amnesias=1, alarms=2, moves=1)
def move_to_a_memory_that_nobody_vouched_for(patch: pytest.MonkeyPatch) -> None:
    """Was a bug indeed, until the explorer found it."""

    def peer_proven(self: Footing) -> bool:
        return self.base is not None and self.register.peer in self.base.in_sync & self.wanted

    right = policy._moved
    patch.setattr(Footing, "peer_proven", property(peer_proven))
    patch.setattr(policy, "_moved", lambda now: right(now._replace(vouched=True)))


@mutant("lost-write", witness=False, ballots=1, crashes=1, alarms=1, overrides=2, terms=3)
def keep_what_was_vouched_for_through_an_override(patch: pytest.MonkeyPatch) -> None:
    """Was a bug indeed, until the explorer found it."""
    right = Decider.override

    def override(self: Decider, operator: str, fork: bytes, term_seen: int = 0) -> list[Any]:
        with pytest.MonkeyPatch.context() as within:
            within.setattr(Decider, "_excludes_peer", lambda self: None)
            return right(self, operator, fork, term_seen)

    patch.setattr(Decider, "override", override)


# -- rule 4: the grant outlives its witness ------------------------------------------------------------------


@mutant("alone")
def stay_with_the_voters_of_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "_voters", lambda now, in_sync: now.base.voters)


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, rules, bounds = MUTANTS[name]
    change(monkeypatch)
    result = explore(bounds, states_max=STATES_MAX)
    assert result.violation is not None, f"not found in {result.states} states"
    print(f"{result.states} states: {result.violation[:150]}", *result.way, sep="\n  ")
    assert result.violation.partition(":")[0] in rules, result.violation


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 8
