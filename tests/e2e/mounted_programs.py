"""What runs on the mounted volumes of the end-to-end tests, each in a process of its own::

    mounted_programs.py files DIRECTORY SEED FIRST        write, replace, append and remove files
    mounted_programs.py sqlite DATABASE wal|delete SEED   transactions

Before each step a line ``begin NUMBER VERSION`` is printed, after it ``done NUMBER VERSION``: at that moment
the step is promised to be durable.  SIGTERM ends a program in order (status 0), an error of the volume ends
it with status 3.  Contents follow from (seed, number, version), so a ledger of those two numbers is enough.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import xxhash

FILES = 48
FILE_BYTES_MAX = 150_000
LOG = 1000  # numbers from here on are no files: the log, and files that are never synced
LOOSE = 1001
LOG_LINE_BYTES = 64

ACCOUNTS = 16
BALANCE = 1000
PAYLOAD_BYTES_MAX = 12_000
KEPT = 60  # older transactions are deleted, so that pages are used again

STOPPED_BY_ERROR = 3

LIBC = ctypes.CDLL(None, use_errno=True)
WRITE_AND_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def content_of(seed: int, number: int, version: int) -> bytes:
    """What that version of that file holds."""
    source = random.Random(f"{seed}/{number}/{version}")
    return source.randbytes(source.randrange(1, FILE_BYTES_MAX))


def path_of(directory: Path, number: int) -> Path:
    return directory / f"d{number % 4}" / f"f{number}"


def removed(seed: int, number: int, version: int) -> bool:
    """Whether that version of a file is its absence."""
    return version > 1 and random.Random(f"{seed}-{number}-{version}").random() < 0.15


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_unsynced(path: Path, content: bytes) -> None:
    """The content goes to the volume, and nothing asks for it to be durable."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if LIBC.sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), WRITE_AND_WAIT):
            raise OSError(ctypes.get_errno(), "sync_file_range")


def put_file(path: Path, content: bytes) -> None:
    """As an editor does it: a file of another name, synced, renamed, and the directory synced."""
    aside = path.with_suffix(".new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    sync_directory(path.parent)


def log_line(seed: int, version: int) -> bytes:
    digest = xxhash.xxh3_64_hexdigest(f"{seed}/{version}".encode())
    return f"{version:<{LOG_LINE_BYTES - len(digest) - 1}}{digest}\n".encode()


def write_files(directory: Path, seed: int, first: int, stopped: Callable[[], bool]) -> None:
    """Steps from ``first`` on; the version of a file is the step that wrote it."""
    choice = random.Random(f"{seed}:{first}")
    for number in range(4):
        (directory / f"d{number}").mkdir(exist_ok=True)
    sync_directory(directory)
    log = directory / "log"
    lines = log.stat().st_size // LOG_LINE_BYTES if log.exists() else 0
    with log.open("ab", buffering=0) as appended:
        appended.truncate(lines * LOG_LINE_BYTES)
        sync_directory(directory)
        say("ready")
        step = first
        while not stopped():
            step += 1
            kind = choice.random()
            if kind < 0.15:
                lines += 1
                say("begin", LOG, lines)
                appended.write(log_line(seed, lines))
                os.fdatasync(appended.fileno())
                say("done", LOG, lines)
                continue
            number = choice.randrange(FILES)
            path = path_of(directory, number)
            if kind < 0.3:
                write_unsynced(path.with_suffix(".loose"), content_of(seed, LOOSE, step))
                say("loose", number, step)
                continue
            say("begin", number, step)
            if removed(seed, number, step):
                path.unlink(missing_ok=True)
                sync_directory(path.parent)
            else:
                put_file(path, content_of(seed, number, step))
            say("done", number, step)


def write_rows(database: Path, mode: str, seed: int, stopped: Callable[[], bool]) -> None:
    """Transactions: a row with a payload, two accounts, and an old row deleted."""
    choice = random.Random(seed)
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("PRAGMA synchronous=EXTRA")  # FULL may lose the last commit of a rollback journal
    connection.execute("PRAGMA wal_autocheckpoint=40")
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE IF NOT EXISTS account(id INTEGER PRIMARY KEY, balance INTEGER)")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS row(tx INTEGER PRIMARY KEY, payload BLOB, digest TEXT UNIQUE)"
    )
    for account in range(ACCOUNTS):
        connection.execute("INSERT OR IGNORE INTO account VALUES(?, ?)", (account, BALANCE))
    connection.execute("COMMIT")
    sync_directory(database.parent)
    (last,) = connection.execute("SELECT coalesce(max(tx), 0) FROM row").fetchone()
    say("ready")
    while not stopped():
        last += 1
        payload = choice.randbytes(choice.randrange(1, PAYLOAD_BYTES_MAX))
        giver, taker = choice.sample(range(ACCOUNTS), 2)
        say("begin", 0, last)
        connection.execute("BEGIN")
        connection.execute(
            "INSERT INTO row VALUES(?, ?, ?)", (last, payload, xxhash.xxh3_64_hexdigest(payload))
        )
        connection.execute("UPDATE account SET balance = balance - 1 WHERE id = ?", (giver,))
        connection.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (taker,))
        connection.execute("DELETE FROM row WHERE tx <= ?", (last - KEPT,))
        connection.execute("COMMIT")
        say("done", 0, last)
    connection.close()


def main(words: list[str]) -> int:
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    try:
        match words:
            case ["files", directory, seed, first]:
                write_files(Path(directory), int(seed), int(first), lambda: bool(stop))
            case ["sqlite", database, mode, seed]:
                write_rows(Path(database), mode, int(seed), lambda: bool(stop))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (OSError, sqlite3.OperationalError) as error:
        say("error", error)
        return STOPPED_BY_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
