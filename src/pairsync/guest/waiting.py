"""Waiting for the end of what a session machine was asked: the owner of a request, as a task sees it."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from pairsync.core.trouble import errno_name
from pairsync.errors import BackendError

__all__ = ["Waiter"]


class Waiter:
    """The owner of a request whose caller waits for it in a task."""

    __slots__ = ("_ended", "errnos")

    def __init__(self) -> None:
        self._ended = trio.Event()
        self.errnos: Sequence[int] | None = None

    def __call__(self, errnos: Sequence[int] | None) -> None:
        """It has ended: an errno for each op, or None."""
        self.errnos = errnos
        self._ended.set()

    async def wait(self, doing: str) -> None:
        """Return when it has ended well; `BackendError` that says what was being done if it has not."""
        await self._ended.wait()
        if self.errnos is not None:
            error = next(e for e in self.errnos if e)
            raise BackendError(f"{doing}: {errno_name(error)}", error)
