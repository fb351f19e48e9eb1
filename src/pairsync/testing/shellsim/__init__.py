"""A simulator of the whole shell: real guests, links and metadata over simulated disks and networks.

``python -m pairsync.testing.shellsim --seeds N`` runs many seeds; `simulate` runs one.
"""

from .profile import Profile, draw_profile
from .world import Outcome, simulate

__all__ = ["Outcome", "Profile", "draw_profile", "simulate"]
