"""A witness of one's own: a table of SQLite as the store, and the checks that say whether it may be one.

What a store must do is little: one register for each guest of each pair, with an incarnation that is drawn
when the register is made, and a version that is compared before a value is stored.  In earnest the table
would lie in a database server that both hosts reach; the statements stay the same.
"""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from pairsync.core.witness import Conflict, Snapshot, WitnessKey, check_value, first_version
from pairsync.errors import PeerLost
from pairsync.io.witnessstore import WitnessStore
from pairsync.testing.witness import WITNESS_CHECKS, WitnessBench

TABLE = """
    CREATE TABLE IF NOT EXISTS registers
    (pair BLOB, guest TEXT, incarnation BLOB, version INTEGER, value BLOB, PRIMARY KEY (pair, guest))
"""
MAKE = "INSERT OR IGNORE INTO registers VALUES (?, ?, ?, ?, NULL)"
LOOK = "SELECT incarnation, version, value FROM registers WHERE pair = ? AND guest = ?"
SWAP = "UPDATE registers SET version = version + 1, value = ? WHERE pair = ? AND guest = ? AND version = ?"


class TableStore:
    """A `WitnessStore` in a table; each call is one transaction in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def get(self, key: WitnessKey) -> Snapshot:
        """How the register is; it is made if there is none."""
        _, now = await trio.to_thread.run_sync(self._transact, key, None, b"")
        return now

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """Store ``value`` if the register is at ``version``."""
        check_value(value)
        done, now = await trio.to_thread.run_sync(self._transact, key, version, value)
        return now if done else Conflict(now)

    def _transact(self, key: WitnessKey, version: int | None, value: bytes) -> tuple[bool, Snapshot]:
        place = (key.pair_id, key.guest)
        try:
            database = sqlite3.connect(self._path, isolation_level=None)
            try:
                database.execute("BEGIN IMMEDIATE")
                database.execute(
                    MAKE, (*place, secrets.token_bytes(8), first_version(secrets.token_bytes(8)))
                )
                done = version is not None and database.execute(SWAP, (value, *place, version)).rowcount == 1
                now = Snapshot(*database.execute(LOOK, place).fetchone())
                database.execute("COMMIT")
            finally:
                database.close()
        except sqlite3.Error as error:  # whose fault it is, is in the type
            raise PeerLost(f"{self._path}: {error}") from error
        return done, now


@asynccontextmanager
async def open_store(path: str) -> AsyncIterator[WitnessStore]:
    """What ``host.toml`` of both hosts names, this module being installed where ``pairsync`` is::

    [[register.witnesses]]
    name = "table"
    store = "own_witness:open_store"
    options = { path = "/srv/registers.db" }
    """
    database = sqlite3.connect(path)
    database.execute(TABLE)
    database.close()
    yield TableStore(Path(path))


class TableBench(WitnessBench):
    """How the checks reach it."""

    def __init__(self, path: Path) -> None:
        super().__init__(secrets.token_bytes(16))
        self._path = path

    @asynccontextmanager
    async def open(self) -> AsyncIterator[WitnessStore]:
        """As one more host."""
        async with open_store(str(self._path)) as store:
            yield store


async def main() -> None:
    """Run every check; the first that fails ends the program with what the store did."""
    with tempfile.TemporaryDirectory() as directory:
        for check in WITNESS_CHECKS:
            await check(TableBench(Path(directory) / "registers.db"))
            print(f"passed: {check.__name__.replace('_', ' ')}")


if __name__ == "__main__":
    trio.run(main)
