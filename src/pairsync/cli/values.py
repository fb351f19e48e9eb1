"""Values that people type: sizes such as ``256M``, volumes such as ``vda=1G``, and who they are."""

from __future__ import annotations

import getpass
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pairsync.errors import ConfigError

__all__ = [
    "LabDirectory",
    "checked_timeout",
    "operator_name",
    "parse_places",
    "parse_size",
    "parse_volumes",
    "show_bytes",
]

LabDirectory = Annotated[Path, Parameter(help="The lab's directory, as `lab up` was given it.")]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIZE_BYTES_MAX = 1 << 62
"""More than a file offset can say is a mistake in typing."""


def parse_size(text: str) -> int:
    """Bytes from ``4096``, ``256M``, ``1.5GiB``: powers of 1024; `ConfigError` otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size such as 256M or 1G")
    size = Fraction(match[1]) * _UNITS[match[2].upper()]
    if size.denominator != 1 or size < 1:
        raise ConfigError(f"{text!r} is not a possible size: a whole number of bytes, at least 1")
    if size >= _SIZE_BYTES_MAX:
        raise ConfigError(f"{text!r} is not a possible size: more than any file can have")
    return int(size)


def checked_timeout(seconds: float) -> float:
    """What was given as ``--timeout``; `ConfigError` where nobody can wait that long."""
    if not seconds > 0:  # nor is it, where it is no number
        raise ConfigError("--timeout must be positive")
    return seconds


def operator_name(given: str | None) -> str:
    """Who decides it: as given, or else the user; `ConfigError` where the system does not know that name."""
    if given:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise ConfigError("who decides it is not known to this system: say --operator NAME") from error


def _split(texts: list[str]) -> dict[str, str]:
    """Name to what stands behind the ``=``."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: a volume is given as NAME=SIZE, such as vda=256M")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is not a name for a volume: 1 to 64 letters, digits, '.', '_' and '-', "
                "the first of them a letter or digit"
            )
        if name in found:
            raise ConfigError(f"volume {name!r} is given twice")
        found[name] = rest
    return found


def parse_volumes(texts: list[str]) -> dict[str, int]:
    """Name to bytes from ``NAME=SIZE``."""
    return {name: parse_size(size) for name, size in _split(texts).items()}


def parse_places(texts: list[str]) -> dict[str, int | Path]:
    """Name to bytes from ``NAME=SIZE``, or to a path from ``NAME=/dev/...`` (anything with a slash)."""
    return {name: Path(rest) if "/" in rest else parse_size(rest) for name, rest in _split(texts).items()}


def show_bytes(count: float) -> str:
    """At least three significant figures and a unit."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.0f} {units[0]}" if units[0] == "B" or count >= 100 else f"{count:.3g} {units[0]}"
