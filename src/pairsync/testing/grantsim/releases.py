"""Releases: which protocol versions a host or a witness speaks, and whether two understand each other.

What two programs agree on is asked of the very `wire.hello.negotiate` of the link and of the built-in
witness, of both ends as they ask it; here it is only judged.
"""

from __future__ import annotations

from typing import TypeAlias

from pairsync.errors import RefusedError
from pairsync.wire import hello

__all__ = ["CURRENT", "RELEASES", "Release", "agreed", "overlap"]

Release: TypeAlias = tuple[int, int]
"""The oldest and the newest version that a program speaks."""

RELEASES: tuple[Release, ...] = ((1, 1), (1, 2), (2, 3), (3, 3))
"""Neighbours understand each other, but for the last but one and the first: those were skipped too far."""

CURRENT = RELEASES[1]


def overlap(one: Release, other: Release) -> bool:
    """Whether a version exists that both speak."""
    return one[0] <= other[1] and other[0] <= one[1]


def agreed(dialer: Release, listener: Release) -> int:
    """The version that they speak; `RefusedError` with the reason, which both ends log."""
    version = hello.negotiate(listener, dialer)
    if hello.negotiate(dialer, (version, version)) != version:
        raise RefusedError(f"asked for {version}, and understood something else")
    return version
