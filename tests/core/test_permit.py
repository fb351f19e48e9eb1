"""Permit: asked for once, until the grant register has spoken."""

from __future__ import annotations

from pairsync.core.effects import AskAlone, Effect
from pairsync.core.permit import Permit


def test_it_is_asked_for_once_until_it_is_answered() -> None:
    out: list[Effect] = []
    permit = Permit(out, alone=False)
    permit.ask()
    permit.ask()
    assert out == [AskAlone()]
    permit.give(alone=False)  # the answer is no, for now
    permit.ask()
    assert out == [AskAlone(), AskAlone()]


def test_who_has_got_its_peer_back_and_loses_it_again_asks_again() -> None:
    """The first question had come to nothing when the peer was in sync, and the guest hung."""
    out: list[Effect] = []
    permit = Permit(out, alone=False)
    permit.ask()
    permit.renounce()
    permit.ask()
    permit.ask()
    assert out == [AskAlone(), AskAlone()]


def test_whoever_has_it_asks_nobody() -> None:
    out: list[Effect] = []
    permit = Permit(out, alone=True)
    permit.ask()
    permit.give(alone=True)
    permit.ask()
    assert not out
    assert permit.alone


def test_a_peer_that_has_what_was_forgotten_withholds_it_and_only_a_person_insists() -> None:
    out: list[Effect] = []
    permit = Permit(out, alone=False)
    permit.withheld = True
    said = []
    for alone, insisted in ((True, False), (True, True), (False, True), (False, False)):
        permit.give(alone=alone, insisted=insisted)
        said.append(permit.alone)
    assert said == [False, True, False, False]
    permit.ask()
    assert not out
    permit.withheld = False
    permit.ask()
    assert out == [AskAlone()]
