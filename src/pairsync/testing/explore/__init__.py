"""Exhaustive exploration of arbitration: `explore`, ``python -m pairsync.testing.explore``, and ``world``."""

from .search import Result, explore, walk
from .world import Bounds

__all__ = ["Bounds", "Result", "explore", "walk"]
