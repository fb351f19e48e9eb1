"""Disks that fail: kills at chosen system calls, EIO and slowness by strace, file systems that are full.

The rule: what was acknowledged is there, what could not be done is said (to the client as an error, to people
as an event), and once the disk is well again the replicas become equal by themselves.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from tests.e2e.mounted import host_disks, why_not

from pairsync.core.units import KIB, MIB
from pairsync.nbd import constants as c
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.ledger import BLOCK, Ledger
from pairsync.testing.programs import ProgramError

SIZE = {"vda": 64 * MIB}
BLOCKS = 64 * MIB // BLOCK

ATTACH_S = 30.0


def traced(pid: int) -> bool:
    """Whether every thread of a process has a tracer."""
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        if "\nTracerPid:\t0\n" in status.read_text():
            return False
    return True


@asynccontextmanager
async def injected(pid: int, *injections: str) -> AsyncIterator[None]:
    """Have strace change what system calls of a process do, until the block is left."""
    calls = ",".join(sorted({call for each in injections for call in each.partition(":")[0].split(",")}))
    words = ["strace", "-f", "-qqq", "-p", str(pid), "-e", f"trace={calls}", "-o", os.devnull]
    words += [word for each in injections for word in ("-e", f"inject={each}")]
    process = await trio.lowlevel.open_process(words, stderr=subprocess.PIPE)
    try:
        with trio.move_on_after(ATTACH_S):
            while not traced(pid):  # strace does not tell when it has attached
                if process.poll() is not None and process.stderr is not None:
                    raise ProgramError(f"strace: {bytes(await process.stderr.receive_some())!r}")
                await trio.sleep(0.01)
        yield
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()  # it lets go of the process, which runs on
            await process.wait()
            if process.stderr is not None:
                await process.stderr.aclose()


async def write_until(lab: RunningLab, ledger: Ledger, over: Callable[[], bool]) -> bool:
    async with await lab.connect() as client:
        return await ledger.run(client, stop=over)


@pytest.mark.root
@pytest.mark.tools("strace")
async def test_hosts_are_killed_at_chosen_system_calls(tmp_path: Path) -> None:
    """On a real file system: the lanes have threads of their own, flushes take their time."""
    directory = tmp_path / "lab"
    ledger = Ledger(11, count=BLOCKS, blocks_max=16)
    async with running_lab(directory, SIZE) as lab:
        for host, when in (
            ("a", "fdatasync:signal=KILL:when=1"),
            ("b", "fdatasync:signal=KILL:when=2"),
            ("a", "pwritev2:signal=KILL:when=40"),
            ("b", "pwritev2:signal=KILL:when=90"),
            ("a", "pwritev2,fdatasync,fallocate:signal=KILL:when=155"),
            ("b", "fallocate:signal=KILL:when=3"),
        ):
            mark = lab.mark()
            async with injected(await lab.pid(host), when):
                gone = False

                def over() -> bool:
                    return gone  # noqa: B023 - the flag of this round

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write_until, lab, ledger, over)
                    await lab.wait_event("host-ended", since=mark, host=host, code=-9)
                    gone = True
            await lab.start(host)
            async with await lab.connect() as client:
                await ledger.check(client)
            await lab.wait_in_sync()
        paths = [lab.path(host) for host in ("a", "b")]
    assert not ledger.errors
    for path in paths:
        ledger.check_file(path)
    assert not differences(directory, "vda")


@pytest.mark.root
@pytest.mark.tools("strace")
async def test_a_flush_that_fails_on_the_active_host_moves_the_guest(lab_directory: Path) -> None:
    """Nothing can be trusted after it: an event, and the guest is active on the other host from then on."""
    ledger = Ledger(12, count=BLOCKS)
    async with running_lab(lab_directory, SIZE) as lab:
        async with await lab.connect() as client:
            assert await ledger.run(client, requests=200)
            mark = lab.mark()
            async with injected(await lab.pid("a"), "fdatasync:error=EIO:when=1"):
                await client.flush()
            trouble = await lab.wait_event("trouble", host="a", since=mark)
            assert trouble["fatal"]
            assert "EIO" in trouble["reason"]
            await lab.wait_active("b")
            assert await ledger.run(client, requests=50)
            await client.flush()
        await lab.wait_in_sync()  # its files were opened anew, by itself
        assert not ledger.errors
        for host in ("a", "b"):
            async with await lab.connect(host=host) as client:
                await ledger.check(client)
        paths = [lab.path(host) for host in ("a", "b")]
    for path in paths:
        ledger.check_file(path)
    assert not differences(lab_directory, "vda")


@pytest.mark.root
@pytest.mark.tools("strace")
async def test_a_flush_that_fails_on_the_standby_costs_only_the_standby(lab_directory: Path) -> None:
    ledger = Ledger(13, count=BLOCKS)
    async with running_lab(lab_directory, SIZE) as lab, await lab.connect() as client:
        mark = lab.mark()
        async with injected(await lab.pid("b"), "fdatasync:error=EIO:when=1"):
            assert await ledger.run(client, requests=100)
            await client.flush()
            trouble = await lab.wait_event("trouble", host="b", since=mark)
            assert "EIO" in trouble["reason"]
            await lab.wait_event("peer-lost", host="a", since=mark)
            assert await ledger.run(client, requests=100)
            await client.flush()
        await lab.wait_in_sync()  # its files were opened anew, by itself
        assert not ledger.errors
        assert await ledger.run(client, requests=100)
        paths = [lab.path(host) for host in ("a", "b")]
        await lab.end()
    for path in paths:
        ledger.check_file(path)
    assert not differences(lab_directory, "vda")


@pytest.mark.root
@pytest.mark.tools("strace")
async def test_writes_that_fail_anywhere_are_no_concern_of_the_guest(lab_directory: Path) -> None:
    """Some writes to data and metadata fail, on whichever host is active then or on the other one."""
    ledger = Ledger(14, count=BLOCKS)
    async with running_lab(lab_directory, SIZE) as lab:
        for host, what in (
            ("a", "pwritev2:error=EIO:when=20..60"),
            ("b", "pwritev2:error=EIO:when=20..60"),
            ("a", "fallocate:error=EIO:when=2..4"),
            ("a", "pwritev2:error=ENOSPC:when=33..40"),
            ("b", "pwritev2,fallocate:error=ENOSPC:when=33..40"),
        ):
            mark, other = lab.mark(), "b" if host == "a" else "a"

            def ended(host: str = host, mark: int = mark) -> bool:  # it could not remember its votes
                return bool(lab.seen("host-ended", host=host, since=mark))

            async with injected(await lab.pid(host), what), await lab.connect(host=other) as client:
                with trio.fail_after(60):  # how many of them are one call is the machine's to say
                    while not (ended() or lab.seen("trouble", host=host, since=mark)):
                        if not await ledger.run(client, requests=150) or ledger.errors:
                            raise lab.error(f"{host} is injected, {other} hung up, or told {ledger.errors}")
            started = False
            with trio.fail_after(60):  # it may end a moment after the trouble that was seen
                while not (await lab.status())["in_sync"]:
                    if ended() and not started:
                        started = True
                        await lab.start(host)
                    await trio.sleep(0.05)
            async with await lab.connect() as client:
                await ledger.check(client)
        paths = [lab.path(host) for host in ("a", "b")]
    assert not ledger.errors
    for path in paths:
        ledger.check_file(path)
    assert not differences(lab_directory, "vda")


@pytest.mark.root
@pytest.mark.tools("strace")
async def test_a_slow_disk_is_not_a_lost_peer(tmp_path: Path) -> None:
    """The standby's flushes take longer than the silence limit of the link: it answers all the same."""
    ledger = Ledger(15, count=BLOCKS)
    async with running_lab(tmp_path / "lab", SIZE) as lab, await lab.connect() as client:
        mark = lab.mark()
        async with injected(await lab.pid("b"), "fdatasync:delay_enter=3s"):
            assert await ledger.run(client, requests=100)
            started = trio.current_time()
            await client.flush()
            assert trio.current_time() - started > 2.9
            assert await ledger.run(client, requests=100)
        assert not lab.seen("peer-lost", since=mark)
        assert (await lab.status())["in_sync"]


@pytest.mark.root
@pytest.mark.tools("mkfs.ext4", "losetup")
@pytest.mark.slow
async def test_a_file_system_that_becomes_read_only_costs_only_its_host(
    lab_directory: Path, make_directory: Callable[[], Path]
) -> None:
    """Replica, votes and log of a host lie on it.  The guest goes on, and once it is mended the pair does."""
    if (reason := why_not("ext4")) is not None:
        pytest.skip(reason)
    ledger = Ledger(17, count=BLOCKS)
    disks_of = host_disks(lab_directory, make_directory(), ("ext4", "ext4"))
    async with disks_of as disks, running_lab(lab_directory, SIZE) as lab:
        for host, other in (("b", "a"), ("a", "b")):  # the standby's, then the active host's
            async with await lab.connect(host=other) as client:
                assert await ledger.run(client, requests=100)
                mark = lab.mark()
                disks[host].turn_read_only()
                assert await ledger.run(client, requests=200)
                await client.flush()
                assert lab.seen("trouble", host=host, since=mark) or lab.seen(
                    "host-ended", host=host, since=mark
                )
                guest = await lab.guest()
                assert (guest["active"], guest["in_sync"]) == (other, [other])
                await lab.kill(host)  # or it goes on trying
                await disks[host].repair()
                assert await ledger.run(client, requests=100)
                await lab.start(host)
                await lab.wait_in_sync()
                await ledger.check(client)
        assert not ledger.errors
        await lab.end()
        for host in ("a", "b"):
            ledger.check_file(lab.path(host))
        assert not differences(lab_directory, "vda")


@pytest.fixture
def small_disk(make_directory: Callable[[], Path]) -> Iterator[Callable[[Path, int], None]]:
    """Mount a file system of that many bytes at a directory."""
    mounted: list[Path] = []

    def mount(where: Path, size: int) -> None:
        where.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], check=True)
        mounted.append(where)

    yield mount
    for where in mounted:
        subprocess.run(["umount", "--lazy", where], check=True)


async def write_without_room(lab: RunningLab, errors: set[int]) -> None:
    async with await lab.connect() as client:
        for offset in range(40 * MIB, 60 * MIB, 128 * KIB):
            payload = os.urandom(128 * KIB)
            errors.add((await client.command(c.CMD_WRITE, offset, len(payload), payload=payload)).error)
        await client.trim(40 * MIB, 20 * MIB)


async def settled(lab: RunningLab) -> None:
    """Nothing is left that one of the replicas lacks."""
    await lab.wait_status(
        lambda status: (
            status["in_sync"]
            and not any(
                each["dirty_blocks"]
                for host in ("a", "b")
                for each in status["hosts"][host]["guest"]["volumes"]
            )
        ),
        "in sync, with empty dirty maps",
    )


@pytest.mark.root
@pytest.mark.tools("mount")
@pytest.mark.parametrize("full", ["a", "b"])
async def test_a_full_disk_stops_nothing_but_what_needs_room(
    lab_directory: Path, small_disk: Callable[[Path, int], None], full: str
) -> None:
    small_disk(lab_directory / full, 16 * MIB + 24 * MIB)  # the metadata takes 16
    ledger = Ledger(16, count=4 * MIB // BLOCK, zeroes=False)
    async with running_lab(lab_directory, SIZE) as lab:
        async with await lab.connect() as client:
            await client.zero(0, 4 * MIB, flags=c.CMD_FLAG_NO_HOLE)  # these have their room
            assert await ledger.run(client, requests=300)
            mark = lab.mark()
            errors = set()
            for offset in range(8 * MIB, 40 * MIB, MIB):
                payload = os.urandom(64 * KIB) * 16
                errors.add((await client.command(c.CMD_WRITE, offset, MIB, payload=payload)).error)
            await lab.wait_event("trouble", host=full, since=mark)
            assert errors == {0}  # where the active host's disk is full, the other one has room
            # what has its room is written on, also beside what has none
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_without_room, lab, errors)
                assert await ledger.run(client, requests=300)
            await client.flush()
            assert not ledger.errors
            await client.trim(8 * MIB, 32 * MIB)  # room again
            if full == "a":  # what it lacks to be opened anew only a person can give it
                larger = f"remount,size={128 * MIB}"
                subprocess.run(["mount", "-o", larger, str(lab_directory / full)], check=True)
            assert await ledger.run(client, requests=200)
        await lab.wait_in_sync()
        async with await lab.connect() as client:
            await ledger.check(client)
            await client.write(8 * MIB, b"room" * BLOCK)
        await settled(lab)
        paths = [lab.path(host) for host in ("a", "b")]
        await lab.end()
        for path in paths:
            ledger.check_file(path)
        assert not differences(lab_directory, "vda")
