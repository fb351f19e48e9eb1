"""Programs of others as clients."""

from __future__ import annotations

from pathlib import Path

from pairsync.testing.programs import run_program

__all__ = ["run"]


async def run(*command: str | Path, check: bool = True) -> str:
    """What the program prints, both outputs; it must succeed unless told otherwise."""
    done = await run_program(*command, status=0 if check else None)
    return (done.stdout + done.stderr).decode()
