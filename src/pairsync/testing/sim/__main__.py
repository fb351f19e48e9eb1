"""``python -m pairsync.testing.sim``: the simulator of the pure core."""

from __future__ import annotations

import sys

from .command import SimulatorCommand
from .coverage import required
from .world import simulate

__all__ = ["COMMAND"]

COMMAND = SimulatorCommand("pairsync.testing.sim", simulate, required, coverage_seeds=500)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
