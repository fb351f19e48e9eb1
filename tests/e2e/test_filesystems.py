"""File systems of the kernel on a replicated volume: standbys die, disks fail, and the power goes.

A program writes files there and is promised, step by step, what is durable (`mounted_programs`).  After
everything that happens, ``fsck`` must find both replicas sound, and what was promised must be in them.

What is cut: see `mounted`.  Killing the active host is what the crash of its process does: the guest, which
loses its volume, loses its page cache, the host does not.  Cutting the power takes from the hosts' disks what
was not flushed as well.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
from tests.e2e import mounted_programs as programs
from tests.e2e.conftest import STAYS
from tests.e2e.mounted import (
    STOPPED_BY_ERROR,
    VOLUME_BYTES,
    check_image,
    cut_power,
    guest_file_system,
    guest_program,
    host_disks,
    kill_hosts,
    recovered,
    start,
    tracing,
    why_not,
)

from pairsync.core.units import MIB
from pairsync.testing.lab import RunningLab, differences, running_lab

MakeDirectory = Callable[[], Path]

pytestmark = [
    pytest.mark.root,
    pytest.mark.tools("nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair"),
]


@pytest.fixture(autouse=True)
def _mounts() -> None:
    for file_system in ("ext4", "xfs"):
        if reason := why_not(file_system):
            pytest.skip(reason)


class FileLedger:
    """What the program ``files`` was promised, from what it said."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._may: dict[int, list[int]] = {}  # file -> versions that may stand there; the promised one first
        self._loose: dict[int, int] = {}
        self.promises = 0
        self.last_step = 0

    def take(self, lines: Sequence[Sequence[str]]) -> None:
        """All that one run of the program said."""
        for word, *numbers in lines:
            if word in ("ready", "error"):
                continue
            number, version = map(int, numbers)
            if number != programs.LOG:
                self.last_step = max(self.last_step, version)
            match word:
                case "begin":
                    self._may.setdefault(number, [0]).append(version)
                case "done":
                    self._may[number] = [version]
                    self.promises += 1
                case "loose":
                    self._loose[number] = version

    def check(self, directory: Path, *, settle: bool = False, loose: bool = False) -> None:
        """Everything promised is there.

        ``settle``: what is there now is what the guest goes on with.  ``loose``: what was never synced must
        be there too, for the file system was unmounted in order.
        """
        for number, versions in self._may.items():
            if number == programs.LOG:
                self._check_log(directory / "log", versions)
                continue
            path = programs.path_of(directory, number)
            content = path.read_bytes() if path.exists() else None
            found = [version for version in versions if content == self._content(number, version)]
            assert found, f"{path}: none of the versions {versions}"
            if settle:
                self._may[number] = found[:1]
        for number, version in self._loose.items() if loose else ():
            path = programs.path_of(directory, number).with_suffix(".loose")
            assert path.read_bytes() == programs.content_of(self._seed, programs.LOOSE, version), path

    def _content(self, number: int, version: int) -> bytes | None:
        if version == 0 or programs.removed(self._seed, number, version):
            return None
        return programs.content_of(self._seed, number, version)

    def _check_log(self, path: Path, versions: Sequence[int]) -> None:
        content = path.read_bytes()
        promised = versions[0]
        assert len(content) >= promised * programs.LOG_LINE_BYTES, (path, promised)
        whole = b"".join(programs.log_line(self._seed, number + 1) for number in range(max(versions)))
        assert whole.startswith(content), path


async def check_replicas(lab: RunningLab, directory: Path, file_system: str, ledger: FileLedger) -> None:
    """Both, after an orderly end: equal, sound as they are, and nothing missing."""
    await lab.wait_in_sync()
    await lab.end()
    assert not differences(lab.directory, "vda")
    for host in ("a", "b"):
        await check_image(file_system, lab.path(host))
    async with recovered(lab.path("b"), directory, file_system) as where:
        ledger.check(where, loose=True)


async def test_a_sync_is_a_flush_on_both_hosts(lab_directory: Path, make_directory: MakeDirectory) -> None:
    """The ground on which everything here stands: fsync of a file is fdatasync of both replicas."""
    directory = make_directory()
    async with running_lab(lab_directory, {"vda": VOLUME_BYTES["ext4"]}) as lab:
        async with guest_file_system(lab, directory, "ext4", make=True) as where:
            await trio.to_thread.run_sync(os.sync)
            traces = {host: directory / f"{host}.trace" for host in ("a", "b")}
            async with trio.open_nursery() as nursery:
                over = trio.Event()
                attached = [
                    await nursery.start(tracing, await lab.pid(host), "fdatasync", trace, over)
                    for host, trace in traces.items()
                ]
                assert len(attached) == 2
                for number in range(5):
                    with (where / f"file{number}").open("wb") as file:
                        file.write(bytes(1000))
                        file.flush()
                        await trio.to_thread.run_sync(os.fsync, file.fileno())
                over.set()
        for host, trace in traces.items():
            flushes = [line for line in trace.read_text().splitlines() if "vda.img>" in line]
            assert len(flushes) >= 5, (host, trace.read_text())


@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
async def test_standby_and_link_fail_beneath_a_file_system(
    lab_directory: Path, make_directory: MakeDirectory, file_system: str
) -> None:
    directory, ledger = make_directory(), FileLedger(21)
    async with running_lab(lab_directory, {"vda": VOLUME_BYTES[file_system]}) as lab:
        async with (
            guest_file_system(lab, directory, file_system, make=True) as where,
            guest_program("files", where, "21", "0") as program,
        ):
            await program.wait_more(15)
            mark = lab.mark()
            await lab.kill("b")
            await lab.wait_event("alone", host="a", since=mark)
            await program.wait_more(15)
            await lab.start("b")
            await lab.wait_in_sync()
            await program.wait_more(10)
            mark = lab.mark()
            await lab.cut()
            await lab.wait_event("alone", host="a", since=mark)
            await program.wait_more(10)
            await lab.kill("b")  # and in the middle of the resync once more
            await lab.start("b")
            await lab.heal()
            await program.wait_more(1)
            await lab.kill("b")
            await program.wait_more(5)
            await lab.start("b")
            await lab.wait_in_sync()
            await program.stop()
            ledger.take(program.lines)
        assert ledger.promises > 50
        await check_replicas(lab, directory, file_system, ledger)


@pytest.mark.slow
@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
async def test_power_and_the_active_host_go_beneath_a_file_system(
    lab_directory: Path, make_directory: MakeDirectory, file_system: str
) -> None:
    """The active host is killed, and the power of both hosts is cut, at several instants.

    Each time both replicas, as they are left, recover by themselves with all that was promised, and so does
    the pair, with which the guest goes on.
    """
    directory, ledger, instants = make_directory(), FileLedger(23), random.Random(23)
    volumes = {"vda": VOLUME_BYTES[file_system], "control": MIB}
    disks_of = host_disks(lab_directory, directory)
    async with disks_of as disks, running_lab(lab_directory, volumes, more=STAYS) as lab:
        for round_, power in enumerate((False, True, True)):
            async with guest_file_system(lab, directory, file_system, make=not round_) as where:
                ledger.check(where, settle=True)
                async with guest_program("files", where, "23", str(ledger.last_step)) as program:
                    await program.wait_more(instants.randrange(10, 30))
                    if power:
                        await cut_power(lab, disks, luck="ab"[round_ % 2])
                    else:
                        await kill_hosts(lab, "a")
                    await program.wait_end(STOPPED_BY_ERROR)
                ledger.take(program.lines)
            for host in ("a", "b"):
                async with recovered(lab.path(host), directory, file_system) as where:
                    ledger.check(where)
            await start(lab, "ab" if power else "a")
            await lab.wait_in_sync()
        await lab.end()
        for volume in volumes:
            assert not differences(lab_directory, volume), volume
        async with recovered(lab.path("b"), directory, file_system) as where:
            ledger.check(where)


@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
async def test_the_standbys_disk_fails_beneath_a_file_system(
    lab_directory: Path, make_directory: MakeDirectory, file_system: str
) -> None:
    """From one moment to the next it answers with EIO only, and what it had not flushed is lost with it.

    The guest goes on.  Once the disk is repaired the pair is in sync again, and both images are sound.
    """
    directory, ledger = make_directory(), FileLedger(24)
    volumes = {"vda": VOLUME_BYTES[file_system]}
    async with host_disks(lab_directory, directory) as disks, running_lab(lab_directory, volumes) as lab:
        async with (
            guest_file_system(lab, directory, file_system, make=True) as where,
            guest_program("files", where, "24", "0") as program,
        ):
            for _ in range(2):
                await program.wait_more(10)
                mark = lab.mark()
                disks["b"].shut_down()
                await lab.wait_event("trouble", since=mark, host="b")
                await program.wait_more(10)
                await lab.kill("b")  # or it goes on trying to start on such a disk
                await disks["b"].repair()
                await program.wait_more(5)
                await lab.start("b")
                await lab.wait_in_sync()
            await program.wait_more(5)
            await program.stop()
            ledger.take(program.lines)
        await check_replicas(lab, directory, file_system, ledger)
