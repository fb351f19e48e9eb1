"""The gate through which all bytes of a link pass, so that it can be cut as if a cable were pulled.

While it is shut nothing is read, sent, accepted or dialled, and no socket is closed: the peer hears nothing,
not even a hang-up, and both sides find out by their heartbeats.  Sockets that are given up meanwhile wait in
the gate and are closed when it opens.
"""

from __future__ import annotations

import trio

from .network import Connection

__all__ = ["Gate"]


class Gate:
    """Open or shut; ``shut`` is read directly where a call for each record would cost."""

    def __init__(self) -> None:
        # Invariant: connections are retired only while shut (a cut retires at most those that were open).
        self.shut = False
        self._opened = trio.Event()
        self._opened.set()
        self._retired: list[Connection] = []

    def close(self) -> None:
        """Cut."""
        if not self.shut:
            self.shut = True
            self._opened = trio.Event()

    def open(self) -> None:
        """Heal; what was given up in the meantime is closed now."""
        self.shut = False
        self._opened.set()
        self.hang_up()

    def hang_up(self) -> None:
        """Close what was given up, whether cut or not."""
        retired, self._retired = self._retired, []
        for connection in retired:
            connection.close()

    def retire(self, connection: Connection) -> None:
        """The connection is of no use any more: close it, now or when the gate opens."""
        if self.shut:
            self._retired.append(connection)
        else:
            connection.close()

    async def wait_open(self) -> None:
        """Wait until the gate is open; at once if it is."""
        while self.shut:
            await self._opened.wait()
