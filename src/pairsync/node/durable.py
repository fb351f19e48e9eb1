"""Small files that must outlive a power cut: what a host or a lab is.

A file of that kind is written aside, flushed, renamed over the old one, and the directory flushed.  So after
a power cut at any moment there is the old file or the new one, whole; and once the call returns, the new one.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_durably"]


def write_durably(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; `OSError` as the system gives it, with the old file kept."""
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
