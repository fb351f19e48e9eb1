"""Permit: whether the owner of a guest may acknowledge without its peer (DESIGN rules 2 and 4).

A replica leaves the in-sync set by a new grant only, agreed before the next acknowledgement.  Who agrees is
not known here (`core.arbitration`, and where there is no arbitration nobody): a volume that wants to go on
alone asks, once, and waits until the permit is given, or until its peer is back: then nobody may be asked any
more to do without it, and the next who has to asks anew.

The peer itself may object: it was met, and has what this host has forgotten (`core.claims`).  Then no permit
is good any more, but that of a person who insists, until the peer has given way.

One a guest, shared by its volumes, whose memberships make one grant.
"""

from __future__ import annotations

from .effects import AskAlone, Effect

__all__ = ["Permit"]


class Permit:
    """See the module."""

    __slots__ = ("_asked", "_given", "_insisted", "_out", "withheld")

    def __init__(self, out: list[Effect], *, alone: bool) -> None:
        self._given = alone  # the grant in force does not count the peer, and none that does can be chosen
        self._insisted = False  # by the word of a person
        self.withheld = False
        """Nobody is asked: the peer, as met last, has what this host has forgotten, and stays in."""
        self._asked = False  # since it was given or withdrawn, or a volume had its peer back
        self._out = out

    @property
    def alone(self) -> bool:
        """Whether a volume may acknowledge without the peer now."""
        return self._given and (self._insisted or not self.withheld)

    def ask(self) -> None:
        """A volume has to go on without the peer."""
        if not (self._given or self._asked or self.withheld):
            self._asked = True
            self._out.append(AskAlone())

    def renounce(self) -> None:
        """A volume has its peer back."""
        self._asked = False

    def give(self, *, alone: bool, insisted: bool = False) -> None:
        """The grant register has spoken; ``insisted``: by the word of a person, whatever the peer has."""
        self._given, self._insisted = alone, insisted
        self._asked = False
