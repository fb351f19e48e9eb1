"""The model of a witness: one register with a version, and its ways of forgetting.

As the built-in server it begins a new incarnation where its file was lost or put back from a backup, and
where a host tells it that it has seen more than the store holds (`core.witness.Snapshot.is_behind`).
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import WitnessView
from pairsync.core.witness import INCARNATION_BYTES, first_version

from .releases import CURRENT

__all__ = ["Seen", "Witness"]


class Seen(NamedTuple):
    """What a host remembers of a store; it tells with each question."""

    incarnation: bytes
    version: int


class Witness:
    """See the module."""

    def __init__(self, name: str, random: Random) -> None:
        self.name = name
        self.up = True
        self.release = CURRENT
        self._random = random
        self.view = self._fresh()
        self._backup = self.view

    def _fresh(self) -> WitnessView:
        incarnation = self._random.randbytes(INCARNATION_BYTES)
        return WitnessView(incarnation, first_version(self._random.randbytes(8)), None)

    def ask(self, seen: Seen | None, version: int | None, state: AcceptorState | None) -> WitnessView:
        """Swap ``state`` in at ``version``, or only look; what the store holds afterwards."""
        view = self.view
        if seen is not None and seen.incarnation == view.incarnation and view.version < seen.version:
            view = self.view = self._fresh()
        if version is not None and version == view.version:
            view = self.view = WitnessView(view.incarnation, view.version + 1, state)
        if view.state is not None and view.state.incarnation != view.incarnation:
            return view._replace(state=None)
        return view

    def back_up(self) -> None:
        """Somebody copies the file."""
        self._backup = self.view

    def lose(self) -> None:
        """The store is made anew, or its file was put back from a copy: what it says was said by another."""
        self.view = self._fresh()

    def roll_back(self) -> bool:
        """The machine is put back to a snapshot, file and all; False: there is nothing to go back to."""
        if self._backup.version == self.view.version or self._backup.incarnation != self.view.incarnation:
            return False
        self.view = self._backup
        return True
