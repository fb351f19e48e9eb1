"""The directory that a lab or a witness runs in: who has it for himself, and where its sockets lie."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Self

from pairsync.errors import BusyError, ConfigError

__all__ = ["DirectoryLock", "make_sockets", "sockets_of"]

SOCKET_PATH_BYTES_MAX = 80
"""Beyond this a directory is too deep for Unix sockets (108 bytes with the name and a temporary suffix)."""


class DirectoryLock:
    """At most one supervisor, and no offline command beside it; ``who`` would hold it."""

    def __init__(self, directory: Path, who: str = "lab") -> None:
        self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise BusyError(f"the {who} in {directory} is up") from error

    def close(self) -> None:
        """Give it back."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sockets_of(directory: Path) -> Path:
    """Where the sockets lie: in the directory, or, if its name is too long for that, in a short one."""
    here = directory.absolute() / "sockets"
    if len(str(here).encode()) <= SOCKET_PATH_BYTES_MAX:
        return here
    digest = hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"pairsync-{os.getuid()}-{digest}"
    return short if len(str(short).encode()) <= SOCKET_PATH_BYTES_MAX else Path("/tmp", short.name)  # noqa: S108


def make_sockets(directory: Path) -> None:
    """Make that place; `ConfigError` if somebody else was there first, as anybody may be in ``/tmp``."""
    place = sockets_of(directory)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.lstat().st_uid != os.getuid():
        raise ConfigError(f"{place} belongs to somebody else")
