"""Values that people type: sizes such as ``256M``, volumes such as ``vda=1G``."""

from __future__ import annotations

import re

from pairsync.errors import ConfigError

__all__ = ["parse_size", "parse_volumes", "show_bytes"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_size(text: str) -> int:
    """Bytes from ``4096``, ``256M``, ``1.5GiB``: powers of 1024; `ConfigError` otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size such as 256M or 1G")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if size != int(size) or not 1 <= size < 1 << 62:
        raise ConfigError(f"{text!r} is not a possible size")
    return int(size)


def parse_volumes(texts: list[str]) -> dict[str, int]:
    """Name to bytes from ``NAME=SIZE``."""
    volumes: dict[str, int] = {}
    for text in texts:
        name, equals, size = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: a volume is given as NAME=SIZE, such as vda=256M")
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is not a name for a volume (letters, digits, dot, dash; at most 64)")
        if name in volumes:
            raise ConfigError(f"volume {name!r} is given twice")
        volumes[name] = parse_size(size)
    return volumes


def show_bytes(count: float) -> str:
    """Three significant figures and a unit."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return ""
