"""The simulator of the pure core: two hosts, a link, disks, a guest and faults, all from one seed.

Everything of `pairsync.core` that a session is made of runs as it runs in production; everything around it
(``guest``, ``storage``, ``io``) is simulated: disks with page caches, metadata that a crash may tear, a link
that falls silent, processes that die at any moment.  There is no real time and no real randomness: the same
seed gives the same trace, in every process.

A seed draws its sizes, options, speeds and a random subset of the faults (`profile`); in the *safety phase*
the rules of the design are checked from outside after every step (`checker`, `history`); in the *liveness
phase* everything must become whole in bounded time (`world`).  A set of seeds must also have reached what
`coverage` names.

``python -m pairsync.testing.sim --seeds 1000`` runs many, ``--seed 17`` runs one and shows its trace.
"""

from __future__ import annotations

from .coverage import required
from .profile import FAULTS, Profile, Speeds, draw_profile
from .runner import Summary, run_seeds
from .world import Outcome, SimulationFailure, World, simulate

__all__ = [
    "FAULTS",
    "Outcome",
    "Profile",
    "SimulationFailure",
    "Speeds",
    "Summary",
    "World",
    "draw_profile",
    "required",
    "run_seeds",
    "simulate",
]
