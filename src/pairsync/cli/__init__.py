"""The ``pairsync`` command; imports lazily, so that ``--help`` is quick."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the command."""
    from .app import run

    run()
