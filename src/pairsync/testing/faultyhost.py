"""``python -m pairsync.testing.faultyhost HOST.toml``: a lab's host process, whose disks fail by command.

Everything of ``pairsync.node.hostmain``, and beside it:

* ``--disk=VOLUME=STATE``: that disk is in that state (`DiskState`) from the first moment, also while it is
  opened: a standby whose disk fails or hangs begins without it.
* the control socket understands ``{"do": "disk", "volume": NAME, "state": STATE}``, where ``replace`` puts an
  empty disk in the place of the old one, of ``"size_bytes"`` where that one's size is not known.

Until a disk is touched for the first time the host runs exactly as it would without all this: the same calls
on the same files, and no thread where the data lies in memory (``pairsync.testing.faulty``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from pairsync.errors import ConfigError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.guest import Guest
from pairsync.guest.replica import Replica, open_replica
from pairsync.node.control import Answer, Handler
from pairsync.node.hostmain import FLAGS, run_host_file
from pairsync.node.labprepare import put_empty_disk

from .faulty import DiskState, FaultyDisk

__all__ = ["HostDisks", "main"]

_DISK = "--disk="


class HostDisks:
    """The disks of a host, one for each volume."""

    def __init__(self, states: Mapping[str, DiskState]) -> None:
        self._disks = {volume: FaultyDisk(state) for volume, state in states.items()}

    def open(self, volume: VolumeConfig, pair_id: bytes) -> Replica:
        """The opener of the host's guest."""
        return open_replica(volume, pair_id, open_file=self._disk(volume.name).open)

    def _disk(self, volume: str) -> FaultyDisk:
        return self._disks.setdefault(volume, FaultyDisk())

    def handlers(self, guest: Guest) -> Mapping[str, Handler]:
        """What the control socket understands of them."""

        async def disk(request: Mapping[str, Any]) -> Answer:
            volume, state = str(request.get("volume")), str(request.get("state"))
            size_bytes = request.get("size_bytes")
            if size_bytes is not None and type(size_bytes) is not int:
                raise ConfigError(f"{size_bytes!r} is not a size in bytes")
            with trio.CancelScope(shield=True):  # all of it, even if who asked has hung up
                await self.turn(guest, volume, state, size_bytes)
            return {}

        return {"disk": disk}

    async def turn(self, guest: Guest, volume: str, state: str, size_bytes: int | None = None) -> None:
        """Give the disk of a volume a state, or replace it; `ConfigError` if there is no such.

        ``size_bytes``: of an empty one, where it is not known what the old one had.
        """
        path = Path(guest.volume(volume).path)
        after = DiskState.OK if state == "replace" else _parse_state(state)
        disk = self._disk(volume)
        disk.arm()  # first, so that what is opened meanwhile is used from threads
        await guest.use_threads(volume)
        if state == "replace":
            disk.pull()
            if size_bytes is None or guest.volume(volume).known:
                size_bytes = guest.volume(volume).size_bytes
            pair_id = guest.session.pair_id
            await trio.to_thread.run_sync(put_empty_disk, path, volume, pair_id, size_bytes)
        disk.set(after)


def _parse_state(text: str) -> DiskState:
    try:
        return DiskState(text)
    except ValueError:
        known = ", ".join(state.value for state in DiskState)
        raise ConfigError(f"no state of a disk {text!r}; there are {known}, replace") from None


def main() -> int:
    """The program."""
    words = sys.argv[1:]
    files = [word for word in words if word not in FLAGS and not word.startswith(_DISK)]
    disks = [word.removeprefix(_DISK).rpartition("=") for word in words if word.startswith(_DISK)]
    if len(files) != 1:
        flags = "] [".join((*FLAGS, f"{_DISK}VOLUME=STATE ..."))
        sys.stderr.write(f"usage: python -m pairsync.testing.faultyhost HOST.toml [{flags}]\n")
        return 2
    try:
        faulty = HostDisks({volume: _parse_state(state) for volume, _, state in disks})
    except ConfigError as error:
        sys.stderr.write(f"pairsync: {error}\n")
        return 1
    follow_stdin, cut = (flag in words for flag in FLAGS)
    return run_host_file(
        Path(files[0]), follow_stdin=follow_stdin, cut=cut, opener=faulty.open, more=faulty.handlers
    )


if __name__ == "__main__":
    sys.exit(main())
