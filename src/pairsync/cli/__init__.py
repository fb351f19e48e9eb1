"""The ``pairsync`` command; imports lazily, so that ``--help`` is quick."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the command."""
    try:
        from .app import run
    except KeyboardInterrupt:  # it takes a moment, and a person may have thought better of it
        sys.exit(130)
    run()
