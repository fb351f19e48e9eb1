"""``python -m pairsync.node.etcdmain DIRECTORY PEER_PORT ADDRESS:PORT ...``: a lab's etcd, of one member.

For labs only: who uses etcd in earnest has a cluster.  It runs Debian's ``etcd`` with its data in the
directory, which serves clients at these addresses, and says ``ready`` as the built-in witness does, once it
answers at the first.  etcd dies with this process, however that ends.  ``--follow-stdin``: end when standard
input ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from pairsync.core.witness import WitnessKey
from pairsync.errors import BackendError, ConfigError, PeerError
from pairsync.io.etcd import EtcdConfig, open_etcd

from .ending import await_signal, follow_stdin
from .lines import LineWriter
from .process import run_process

__all__ = ["etcd_endpoint", "main"]

READY_S = 25.0
"""How long one member may take to elect itself."""

LOOK_S = 0.05

FLAG = "--follow-stdin"

DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""Of util-linux, which every Debian has."""


def etcd_endpoint(address: str) -> str:
    """Where a lab's etcd answers its clients, at ``ADDRESS:PORT``."""
    return f"http://{address}"


def _command(directory: Path, clients: Sequence[str], peer: str) -> list[str]:
    program = shutil.which("etcd")
    if program is None:
        raise ConfigError("missing: etcd; on Debian: apt-get install etcd-server")
    words = {
        "--name": "lab",
        "--data-dir": str(directory / "etcd"),
        "--listen-client-urls": ",".join(clients),
        "--advertise-client-urls": ",".join(clients),
        "--listen-peer-urls": peer,
        "--initial-advertise-peer-urls": peer,
        "--initial-cluster": f"lab={peer}",
        "--logger": "zap",
        "--log-level": "error",
    }
    return [program, *(word for pair in words.items() for word in pair)]


async def _serve(
    directory: Path, clients: Sequence[str], peer: str, lines: LineWriter, *, follow: bool
) -> None:
    async with trio.open_nursery() as nursery:
        if follow:
            nursery.start_soon(follow_stdin, nursery.cancel_scope)
        await nursery.start(await_signal, nursery.cancel_scope)
        # Not by trio: it starts processes in threads, and the signal comes when the *thread* has ended.
        process = subprocess.Popen(  # noqa: ASYNC220, S603
            [*DIES_WITH_PARENT, *_command(directory, clients, peer)], stdin=subprocess.DEVNULL, stdout=2
        )
        try:
            await _await_ready(clients[0])
            lines({"event": "ready", "pid": os.getpid(), "address": clients[0].removeprefix("http://")})
            status = await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            raise BackendError(f"etcd has ended with status {status}")
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(process.wait)


async def _await_ready(client: str) -> None:
    with trio.move_on_after(READY_S):
        async with open_etcd(EtcdConfig(endpoints=(client,))) as store:
            while True:
                with contextlib.suppress(PeerError):
                    await store.get(WitnessKey(bytes(16), "ready"))
                    return
                await trio.sleep(LOOK_S)
    raise BackendError(f"etcd does not answer at {client}")


def main() -> int:
    """The program."""
    words = [word for word in sys.argv[1:] if word != FLAG]
    if len(words) < 3:
        sys.stderr.write(
            f"usage: python -m pairsync.node.etcdmain DIRECTORY PEER_PORT ADDRESS:PORT ... [{FLAG}]\n"
        )
        return 2
    directory, peer = Path(words[0]), etcd_endpoint(f"127.0.0.1:{words[1]}")
    clients = [etcd_endpoint(word) for word in words[2:]]
    return run_process(partial(_serve, directory, clients, peer, follow=FLAG in sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
