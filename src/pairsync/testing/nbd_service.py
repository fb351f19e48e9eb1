"""`serving_nbd`: a real NBD server on a Unix socket for the length of a test.

It runs in the test's own trio loop, with real sockets, so outside programs (`trio.run_process`) can be
pointed at it and the test can look inside at the same time.
"""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from pairsync.nbd import (
    Export,
    NbdLimits,
    NbdListener,
    NbdServer,
    TlsMode,
    open_unix_listener,
    serve_nbd,
)

from .nbd_client import NbdClient

__all__ = ["NbdService", "serving_nbd"]

SOCKET_NAME = "nbd.sock"


@dataclasses.dataclass(frozen=True)
class NbdService:
    """A running server."""

    server: NbdServer
    path: Path
    nursery: trio.Nursery
    """The server's; cancelled at the end."""
    clients: list[NbdClient] = dataclasses.field(default_factory=list)
    """All that were made here; closed at the end."""

    def uri(self, name: str) -> str:
        """The export's URI for libnbd, fio and QEMU."""
        return f"nbd+unix:///{name}?socket={self.path}"

    async def connect(self) -> NbdClient:
        """A client that has said nothing yet."""
        client = await NbdClient.connect_unix(str(self.path))
        self.clients.append(client)
        return client

    async def client(
        self, name: str = "vda", *, structured: bool = True, contexts: Sequence[str] = ()
    ) -> NbdClient:
        """A client in transmission."""
        return await (await self.connect()).negotiate(name, structured=structured, contexts=contexts)


@asynccontextmanager
async def serving_nbd(
    directory: str | os.PathLike[str],
    exports: Sequence[Export],
    *,
    listeners: Sequence[NbdListener] = (),
    limits: NbdLimits | None = None,
    tls: ssl.SSLContext | None = None,
    tls_mode: TlsMode = TlsMode.OFF,
    default_export: str | None = None,
) -> AsyncIterator[NbdService]:
    """Serve the exports under their names on a Unix socket in ``directory``, and on further listeners."""
    path = Path(directory) / SOCKET_NAME
    run = partial(
        serve_nbd,
        [open_unix_listener(path), *listeners],
        {export.name: export for export in exports},
        tls=tls,
        tls_mode=tls_mode,
        limits=limits,
        default_export=default_export,
    )
    async with trio.open_nursery() as nursery:
        server: NbdServer = await nursery.start(run)
        service = NbdService(server, path, nursery)
        try:
            yield service
        finally:
            with trio.CancelScope(shield=True):
                for client in service.clients:
                    await client.aclose()
            nursery.cancel_scope.cancel()
