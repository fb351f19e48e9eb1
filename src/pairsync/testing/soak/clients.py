"""The clients of a soak: they outlive every lab, write all the time, and know what was promised to them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from pairsync.node.labfile import HOSTS
from pairsync.testing.failuretable.watch import SIZE_BYTES, DoorWriter, Watch, places_of_lab
from pairsync.testing.lab import RunningLab, differences
from pairsync.testing.ledger import BLOCK
from pairsync.testing.programs import ProgramError

__all__ = ["SIZES", "Clients"]

DENSE_BLOCKS: Final = 1024
DENSE_DEPTH: Final = 8
"""A client of the second volume writes so many blocks, with so many requests at once."""

SIZES: Final = {"vda": SIZE_BYTES, "vdb": 2 * DENSE_BLOCKS * BLOCK + 3 * 512}
"""Bytes of each volume at first; the second one does not end with a block."""


class Clients:
    """Two at each door: one writes single blocks in turn, the other one everything everywhere."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._sizes_bytes = dict(SIZES)  # as the pair said last
        places = places_of_lab(directory)
        self.watch = Watch(places, seed)
        self._dense = {
            host: DoorWriter(
                place.door,
                seed + len(places) + at,
                first=at * DENSE_BLOCKS,
                count=DENSE_BLOCKS,
                volume="vdb",
                depth=DENSE_DEPTH,
            )
            for at, (host, place) in enumerate(places.items())
        }

    async def run(self) -> None:
        """Look and write until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch.run)
            for writer in self._dense.values():
                nursery.start_soon(writer.run)

    @property
    def errors(self) -> int:
        """Writes that were answered with an error."""
        return self.watch.errors + sum(len(each.errors) for each in self._dense.values())

    async def check(self, lab: RunningLab, door: str, *, seconds: float) -> list[str]:
        """As `Watch.check`, of both volumes; raises what `NbdClient` does, too."""
        with trio.move_on_after(3 * seconds):
            async with await lab.connect(host=door) as client:
                waiting = await self.watch.check(client, seconds=seconds)
            async with await lab.connect("vdb", host=door) as client:
                self._sizes_bytes["vdb"] = client.size_bytes
                for host, writer in self._dense.items():
                    if not await writer.check(client, seconds=seconds):
                        waiting.append(host)
            return waiting
        return list(HOSTS)

    def check_files(self) -> None:
        """With the lab down: both replicas are the same, and hold everything.

        Where a growth came to nothing a file may be larger than its volume.
        """
        for volume, size_bytes in self._sizes_bytes.items():
            if found := differences(self._directory, volume, first_bytes=size_bytes):
                raise ProgramError(f"the replicas of {volume} differ: {found}")
        for host in HOSTS:
            for writer in self.watch.writers.values():
                writer.ledger.check_file(self._directory / host / "vda.img")
            for writer in self._dense.values():
                writer.ledger.check_file(self._directory / host / "vdb.img")
