"""The vocabulary of points (``core.points``), part of that of two hosts (``core.messages``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["KeepOnly", "PointMark", "Remember", "Remembered", "is_point_name"]


class PointMark(NamedTuple):
    """A name for what a volume held at one moment in its write order (``core.points``).

    ``tag`` is 64 random bits: a point that was dropped and made again under its name is another one.
    """

    name: str  # see `is_point_name`
    tag: int
    created_s: int  # Unix time of the host that was active


_POINT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_point_name(name: str) -> bool:
    """Whether a point may be called so: 1 to 64 ASCII letters, digits, ``.``, ``_`` and ``-``, the first of
    them a letter or digit.  It becomes part of a file's name and of an NBD meta context's."""
    return _POINT_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep what the volume holds after all that came before this message under this mark, durably.

    In place of one of the same name.
    """

    term: int
    volume: int
    mark: PointMark


@dataclass(frozen=True, slots=True)
class Remembered:
    """The standby has that point, durably; or, with an ``errno``, has not."""

    volume: int
    tag: int
    errno: int = 0


@dataclass(frozen=True, slots=True)
class KeepOnly:
    """The points that there are; the standby drops all others."""

    term: int
    volume: int
    tags: tuple[int, ...]
