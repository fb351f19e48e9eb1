"""Real databases on a mounted volume whose hosts lose their power while transactions are under way.

Each of the two replicas, by itself and as the cut left it, must recover: first the file system by its
journal, then the database by its own, and then hold every transaction whose COMMIT was answered.  What the
hosts had not flushed is lost in these cuts (see `mounted`), so nothing is there by luck.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
import xxhash
from tests.e2e import mounted_programs as programs
from tests.e2e.conftest import STAYS
from tests.e2e.mounted import (
    POLL_S,
    STEP_S,
    STOPPED_BY_ERROR,
    cut_power,
    guest_file_system,
    guest_program,
    host_disks,
    recovered,
    start,
    why_not,
)

from pairsync.core.units import MIB
from pairsync.testing.lab import differences, running_lab
from pairsync.testing.programs import ProgramError, run_program

MakeDirectory = Callable[[], Path]

VOLUMES = {"vda": 192 * MIB, "control": MIB}
POSTGRES = "/usr/lib/postgresql/*/bin/postgres"
CLIENTS = 4
LOAD_S = 3 * STEP_S  # longer than everything that happens to it; the power cut ends it

pytestmark = [
    pytest.mark.root,
    pytest.mark.tools("nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair"),
]


@pytest.fixture(autouse=True)
def _mounts() -> None:
    for file_system in ("ext4", "xfs"):
        if reason := why_not(file_system):
            pytest.skip(reason)


# ---------------------------------------------------------------------- SQLite


def check_sqlite(database: Path, promised: int, begun: int) -> int:
    """The last transaction there: none that was promised is missing or damaged, and nothing is invented."""
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT tx, payload, digest FROM row ORDER BY tx").fetchall()
        (money,) = connection.execute("SELECT sum(balance) FROM account").fetchone()
    last = rows[-1][0] if rows else 0
    assert promised <= last <= begun, database
    assert [tx for tx, _, _ in rows] == list(range(max(1, last - programs.KEPT + 1), last + 1))
    for tx, payload, digest in rows:
        assert xxhash.xxh3_64_hexdigest(payload) == digest, (database, tx)
    assert money == programs.ACCOUNTS * programs.BALANCE
    return int(last)


@pytest.mark.slow
async def test_sqlite_keeps_every_commit(lab_directory: Path, make_directory: MakeDirectory) -> None:
    """Two databases at once, one with a write-ahead log and one with a rollback journal; two power cuts."""
    directory, instants = make_directory(), random.Random(31)
    modes = ("wal", "delete")
    last = dict.fromkeys(modes, 0)
    disks_of = host_disks(lab_directory, directory)
    async with disks_of as disks, running_lab(lab_directory, VOLUMES, more=STAYS) as lab:
        for round_ in range(2):
            promised = dict(last)
            begun = dict(last)
            async with (
                guest_file_system(lab, directory, "ext4", make=not round_) as where,
                guest_program("sqlite", where / "wal.db", "wal", f"{31 + round_}") as wal,
                guest_program("sqlite", where / "delete.db", "delete", f"{41 + round_}") as delete,
            ):
                running = dict(zip(modes, (wal, delete), strict=True))
                for program in running.values():
                    await program.wait_more(instants.randrange(10, 30))
                await cut_power(lab, disks, luck="ab"[round_ % 2])
                for mode, program in running.items():
                    await program.wait_end(STOPPED_BY_ERROR)
                    promised[mode] = program.last("done", promised[mode])
                    begun[mode] = program.last("begin", begun[mode])
                    assert promised[mode] > last[mode]
            for host in ("b", "a"):  # the active host goes on with what a has
                async with recovered(lab.path(host), directory, "ext4") as where:
                    for mode in modes:
                        last[mode] = check_sqlite(where / f"{mode}.db", promised[mode], begun[mode])
            await start(lab, "ab")
            await lab.wait_in_sync()
        await lab.end()
        for volume in VOLUMES:
            assert not differences(lab_directory, volume), volume


# ---------------------------------------------------------------------- PostgreSQL


class Postgres:
    """A PostgreSQL server of the test's own, on a directory that the user ``postgres`` owns."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self.sockets = sockets
        self.place = max(Path("/").glob(POSTGRES[1:])).parent

    def program(self, name: str) -> str:
        """One of the programs that came with the server."""
        return str(self.place / name)

    def as_owner(self, name: str, *words: str | os.PathLike[str]) -> list[str]:
        """A command line as the user ``postgres``: the server refuses to be root."""
        become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        return [*become, self.program(name), *(os.fspath(word) for word in words)]

    async def make(self) -> None:
        """A new cluster, with checksums of its pages."""
        words = ["--auth=trust", "--username=postgres", "--locale=C", "--encoding=UTF8", "--data-checksums"]
        words += ["--wal-segsize=1", "--no-sync", "--pgdata", str(self.data)]
        await run_program(*self.as_owner("initdb", *words))
        await run_program("sync", "--file-system", self.data)  # once, not for each of a thousand files

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[trio.Process]:
        """The server, ready for clients; stopped, as by a crash, when the block is left."""
        settings = {
            "unix_socket_directories": self.sockets, "listen_addresses": "", "shared_buffers": "16MB",
            "max_connections": 16, "max_wal_size": "8MB", "min_wal_size": "2MB", "log_checkpoints": "off",
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.sockets / "log").open("ab") as log:
            process = await trio.lowlevel.open_process(
                self.as_owner("postgres", "-D", self.data, *words),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            await self._wait_ready(process)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT)
            with trio.CancelScope(shield=True):
                await process.wait()

    async def _wait_ready(self, process: trio.Process) -> None:
        with trio.move_on_after(STEP_S):
            while process.poll() is None:
                answer = await run_program(self.program("pg_isready"), "-q", "-h", self.sockets, status=None)
                if answer.returncode == 0:
                    return
                await trio.sleep(POLL_S)
        said = (self.sockets / "log").read_text()[-4000:]
        raise ProgramError(f"PostgreSQL does not serve (exit status {process.poll()}):\n{said}")

    async def ask(self, query: str) -> list[str]:
        """The rows of an answer."""
        words = ["-h", str(self.sockets), "-U", "postgres", "-X", "-A", "-t", "-c", query, "postgres"]
        return (await run_program(self.program("psql"), *words)).stdout.decode().splitlines()

    async def pgbench(self, *words: str, status: int | None = 0) -> str:
        """pgbench against the running server; what it said."""
        words = ("-h", str(self.sockets), "-U", "postgres", *words, "postgres")
        done = await run_program(self.program("pgbench"), *words, status=status, seconds=LOAD_S)
        return done.stdout.decode()


SUMS = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
       (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
"""


async def check_postgres(server: Postgres, promised: int) -> None:
    """It recovers; no transaction is missing or half there; heaps, indexes and page checksums are sound."""
    async with server.serving() as process:
        (sums,) = await server.ask(SUMS)
        assert len(set(sums.split("|"))) == 1, sums
        (count,) = await server.ask("SELECT count(*) FROM pgbench_history")
        assert promised <= int(count) <= promised + CLIENTS
        words = [
            "-h",
            str(server.sockets),
            "-U",
            "postgres",
            "--install-missing",
            "--heapallindexed",
            "postgres",
        ]
        await run_program(server.program("pg_amcheck"), *words)
        process.send_signal(signal.SIGINT)
        with trio.fail_after(STEP_S):
            assert await process.wait() == 0
    await run_program(server.program("pg_checksums"), "--check", "--pgdata", server.data)


def owned(directory: Path) -> Path:
    """A directory of the user ``postgres``."""
    directory.mkdir(mode=0o700)
    shutil.chown(directory, "postgres", "postgres")
    return directory


@pytest.mark.slow
@pytest.mark.tools(POSTGRES, "setpriv")
async def test_postgres_keeps_every_commit(lab_directory: Path, make_directory: MakeDirectory) -> None:
    """pgbench with several clients while the standby dies and returns; then the power of both hosts goes."""
    directory = make_directory()
    directory.chmod(0o711)
    sockets = owned(directory / "sockets")
    said: list[str] = []
    async with host_disks(lab_directory, directory) as disks, running_lab(lab_directory, VOLUMES) as lab:
        async with guest_file_system(lab, directory, "ext4", make=True) as where:
            server = Postgres(owned(where / "pg"), sockets)
            await server.make()
            async with server.serving(), trio.open_nursery() as nursery:
                await server.pgbench("--initialize", "--quiet")

                async def load() -> None:
                    words = [f"--client={CLIENTS}", "--no-vacuum", f"--time={LOAD_S:.0f}", "--random-seed=32"]
                    said.append(await server.pgbench(*words, status=None))

                nursery.start_soon(load)
                await more_transactions(server, 60)
                mark = lab.mark()
                await lab.kill("b")
                await lab.wait_event("alone", host="a", since=mark)
                await more_transactions(server, 60)
                await lab.start("b")
                await lab.wait_in_sync()
                await more_transactions(server, 60)
                await cut_power(lab, disks, luck="a")
        promised = processed(said)
        assert promised > 180
        for host in ("b", "a"):
            async with recovered(lab.path(host), directory, "ext4") as where:
                await check_postgres(Postgres(where / "pg", sockets), promised)


async def more_transactions(server: Postgres, count: int) -> None:
    """Wait until so many more are there."""
    goal = None
    with trio.fail_after(STEP_S):
        while True:
            (there,) = await server.ask("SELECT count(*) FROM pgbench_history")
            goal = int(there) + count if goal is None else goal
            if int(there) >= goal:
                return
            await trio.sleep(POLL_S)


def processed(said: Sequence[str]) -> int:
    """How many transactions pgbench was answered."""
    found = re.search(r"^number of transactions actually processed: (\d+)", "".join(said), re.MULTILINE)
    assert found, said
    return int(found[1])
