"""The simulator of arbitration: hosts, witnesses, paths, clocks, disks and clients, all from one seed.

The very `core.arbiter.Arbiter` and the very `core.session.Session` of both hosts run together in simulated
time, put together as ``guest.arbitration`` and ``guest.roles`` do it.  `pairsync.testing.explore` goes
through all orders of events of the register alone, without time; this goes through few, with everything.

``python -m pairsync.testing.grantsim --seeds 2000`` runs many, ``--seed 17`` runs one and shows its trace.
"""

from __future__ import annotations

from .coverage import required
from .profile import BEYOND, FAULTS, GrantProfile, draw_profile
from .registers import Floors, Operation, Registers, first_nonlinear
from .world import GrantWorld, simulate

__all__ = [
    "BEYOND",
    "FAULTS",
    "Floors",
    "GrantProfile",
    "GrantWorld",
    "Operation",
    "Registers",
    "draw_profile",
    "first_nonlinear",
    "required",
    "simulate",
]
