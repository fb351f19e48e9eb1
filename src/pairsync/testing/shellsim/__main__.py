"""``python -m pairsync.testing.shellsim``: the simulator of the shell."""

from __future__ import annotations

import logging
import sys

from pairsync.testing.sim.command import SimulatorCommand
from pairsync.testing.sim.world import Outcome

from .coverage import required
from .world import simulate, simulate_quietly

__all__ = ["COMMAND"]


def _replay(seed: int) -> Outcome:
    """With its whole trace."""
    logging.getLogger("pairsync").setLevel(logging.CRITICAL + 1)
    return simulate(seed, echo=print)


COMMAND = SimulatorCommand(
    "pairsync.testing.shellsim", simulate_quietly, required, coverage_seeds=64, seeds=64, replay=_replay
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
