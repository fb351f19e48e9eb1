"""File systems of the kernel on replicated volumes, on hosts whose disks lose what was not flushed.

What stands between a program and the two replicas::

    program -> ext4 or XFS -> loop device -> nbdfuse (a file that is an NBD client) -> host a -> host b

The kernel's own NBD driver is not everywhere; the loop device over FUSE does the same for a file system: a
flush of the block layer becomes fsync of the file, and that NBD_CMD_FLUSH; a discard becomes NBD_CMD_TRIM; no
write is held back, for nbdfuse mounts without FUSE's write-back cache.  The first test in test_filesystems.py
counts the flushes that arrive.

**Power cuts.**  A host process that is killed leaves what it wrote in the kernel's page cache, so a kill
alone loses nothing.  `HostDisk` is a file system of a host's own that can be shut down as by a power cut (the
ioctl that ext4 and XFS have for such tests, without flushing the log): what was not flushed is gone when it
is mounted again.  The kernel keeps its boot id, so nobody may rely on that to know of the loss.  The guest,
whose kernel is ours, is "cut" by the loss of its volume: from then on its file system gets errors only, so
nothing of its page cache reaches a replica any more.

Everything needs root, FUSE and loop devices; `why_not` says what is missing.
"""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from pairsync.core.units import GIB, KIB, MIB
from pairsync.testing.lab import RunningLab
from pairsync.testing.programs import ProgramError, run_program

PROGRAMS = Path(__file__).with_name("mounted_programs.py")

VOLUME_BYTES = {"ext4": 128 * MIB, "xfs": 320 * MIB}  # mkfs.xfs makes none of less than 300 MiB
HOST_DISK_BYTES = 2 * GIB  # a sparse file

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}
CHECK = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}
OPTIONS = {"ext4": "discard,errors=remount-ro", "xfs": "discard,nouuid"}

STEP_S = 60.0  # what a program on the volume may take for a step; far more than it needs
GONE_S = 10.0  # what killed processes may take to give their files back
POLL_S = 0.02
PROBE_S = 30.0

SHUTDOWN_IOCTL = 0x8004587D  # XFS_IOC_GOINGDOWN = EXT4_IOC_SHUTDOWN = _IOR('X', 125, __u32)
SHUTDOWN_WITHOUT_LOG = 2  # XFS_FSOP_GOING_FLAGS_NOLOGFLUSH

LINE_BYTES_MAX = 4096  # a longer one comes from a program gone mad


# ---------------------------------------------------------------------- whether it can be done here


@functools.cache
def why_not(file_system: str) -> str | None:
    """Why such a file system cannot be mounted from a file here, or None: tries it."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"needs FUSE: /dev/fuse: {error.strerror}"
    with tempfile.TemporaryDirectory(prefix="pairsync-probe-") as name:
        image, where = Path(name) / "image", Path(name) / "mounted"
        where.mkdir()
        with image.open("wb") as file:
            file.truncate(VOLUME_BYTES[file_system])
        for words in (
            [*MAKE[file_system], str(image)],
            ["mount", "-o", "loop", str(image), str(where)],
            ["umount", str(where)],
        ):
            done = subprocess.run(words, capture_output=True, text=True, timeout=PROBE_S, check=False)
            if done.returncode != 0:
                return f"needs loop devices and {file_system}: {words[0]}: {done.stderr.strip()}"
    return None


# ---------------------------------------------------------------------- mounts


@asynccontextmanager
async def loop_device(file: Path, *options: str) -> AsyncIterator[Path]:
    """A block device that is a file, until the block is left."""
    device = (await run_program("losetup", "--find", "--show", *options, file)).stdout.decode().strip()
    try:
        yield Path(device)
    finally:
        with trio.CancelScope(shield=True):
            await run_program("losetup", "--detach", device)


@asynccontextmanager
async def mount(device: Path, where: Path, options: str = "defaults") -> AsyncIterator[Path]:
    """Mount a block device at a directory, which is made; unmounted when the block is left."""
    where.mkdir(parents=True, exist_ok=True)
    await run_program("mount", "-o", options, device, where)
    try:
        yield where
    finally:
        with trio.CancelScope(shield=True):
            await unmount(where)


async def unmount(where: Path) -> None:
    """Unmount; a killed process that had files open there may need a moment until it is gone."""
    with trio.move_on_after(GONE_S):
        while (await run_program("umount", where, status=None)).returncode != 0:
            await trio.sleep(POLL_S)
        return
    await run_program("umount", where)  # which says why not


@asynccontextmanager
async def nbd_file(lab: RunningLab, directory: Path, volume: str = "vda") -> AsyncIterator[Path]:
    """The volume as a file in that directory, until the block is left; it dies with host a."""
    file = directory / f"{volume}.nbd"
    file.touch()
    process = await trio.lowlevel.open_process(
        ["nbdfuse", file, lab.uri(volume)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with trio.move_on_after(STEP_S):
            while process.poll() is None and not os.path.ismount(file):
                await trio.sleep(POLL_S)  # it has no way to tell
        if not os.path.ismount(file):
            raise ProgramError("nbdfuse mounted nothing")
        try:
            yield file
        finally:
            with trio.CancelScope(shield=True):
                await unmount(file)  # also if nbdfuse has ended with its connection
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            await process.wait()


@asynccontextmanager
async def attached(lab: RunningLab, directory: Path, volume: str = "vda") -> AsyncIterator[Path]:
    """The volume as a block device."""
    async with nbd_file(lab, directory, volume) as file, loop_device(file) as device:
        yield device


@asynccontextmanager
async def guest_file_system(
    lab: RunningLab, directory: Path, file_system: str, *, make: bool = False
) -> AsyncIterator[Path]:
    """The file system on the volume, mounted (its journal replayed first, if there is need)."""
    async with attached(lab, directory) as device:
        if make:
            await run_program(*MAKE[file_system], device)
        async with mount(device, directory / "guest", OPTIONS[file_system]) as where:
            yield where


async def check_image(file_system: str, image: Path) -> None:
    """``fsck`` finds nothing to complain of, and changes nothing; raises `ProgramError`."""
    await run_program(*CHECK[file_system], image)


@asynccontextmanager
async def recovered(image: Path, directory: Path, file_system: str) -> AsyncIterator[Path]:
    """A copy of a replica, mounted, its journal replayed as after a crash; at the end ``fsck`` judges it."""
    copy = directory / "recovered.img"
    await run_program("cp", "--sparse=always", image, copy)
    try:
        async with (
            loop_device(copy) as device,
            mount(device, directory / "recovered", OPTIONS[file_system]) as where,
        ):
            yield where
        await check_image(file_system, copy)
    finally:
        copy.unlink()


# ---------------------------------------------------------------------- hosts whose power can be cut


class HostDisk:
    """The disk that a host keeps its replica on, mounted at ``where``; made by `host_disks`."""

    def __init__(self, file_system: str, device: Path, where: Path) -> None:
        self.file_system = file_system
        self.where = where
        self._device = device
        self._mounts = AsyncExitStack()

    async def mount(self) -> None:
        """Mount it, replaying its journal."""
        options = "nouuid" if self.file_system == "xfs" else "errors=remount-ro"
        await self._mounts.enter_async_context(mount(self._device, self.where, options))

    async def unmount(self) -> None:
        """The other way round."""
        await self._mounts.aclose()

    async def repair(self) -> None:
        """After `shut_down` or `turn_read_only`: mount it again with what it holds; nothing may use it."""
        await self.unmount()
        await self.mount()

    def shut_down(self) -> None:
        """From now on nothing reaches the disk: what was not flushed will never have been written."""
        directory = os.open(self.where, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(directory, SHUTDOWN_IOCTL, struct.pack("I", SHUTDOWN_WITHOUT_LOG))
        finally:
            os.close(directory)

    def turn_read_only(self) -> None:
        """What ext4 does when it has found an error in its own metadata: every write ends with EROFS."""
        Path("/sys/fs/ext4", self._device.name, "trigger_fs_error").write_text("1")


@asynccontextmanager
async def host_disks(
    lab_directory: Path, images: Path, kinds: Sequence[str] = ("ext4", "xfs")
) -> AsyncIterator[dict[str, HostDisk]]:
    """A disk for each host of a lab that does not exist yet; each host has another file system."""
    async with AsyncExitStack() as stack:
        disks = {}
        for host, kind in zip("ab", kinds, strict=True):
            image = images / f"disk-{host}.img"
            with image.open("wb") as file:
                file.truncate(HOST_DISK_BYTES)
            await run_program(*MAKE[kind], image)
            device = await stack.enter_async_context(loop_device(image))
            disk = disks[host] = HostDisk(kind, device, lab_directory / host)
            stack.push_async_callback(disk.unmount)
            await disk.mount()
        yield disks


async def kill_hosts(lab: RunningLab, hosts: str, then: Callable[[], None] = lambda: None) -> None:
    """SIGKILL hosts and do the next thing, before any other happens here; then wait until they have ended.

    They stay down until they are started by command.
    """
    pids = [await lab.pid(host) for host in hosts]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    then()
    for host in hosts:
        await lab.kill(host)


async def start(lab: RunningLab, hosts: str) -> None:
    """Start hosts side by side."""
    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(lab.start, host)


async def cut_power(lab: RunningLab, disks: dict[str, HostDisk], *, luck: str) -> None:
    """Kill the hosts and take from their disks what was not flushed; then their disks are there again.

    The volume ``control``, which nobody uses otherwise, shows it: what is written there last, and never
    flushed by the guest, is on the disk of the host ``luck`` all the same, and lost on the other.  If it is
    not so, no power was cut (`ProgramError`).  The hosts have to find that difference by themselves.
    """
    written = os.urandom(256 * KIB)
    async with await lab.connect("control") as client:
        await client.write(0, written)
    sync_file(lab.path(luck, "control"))

    def cut() -> None:
        for disk in disks.values():
            disk.shut_down()

    await kill_hosts(lab, "".join(disks), cut)
    for host, disk in disks.items():
        await disk.repair()
        if (written in lab.path(host, "control").read_bytes()) is not (host == luck):
            raise ProgramError(f"the power cut of host {host} was none")


def sync_file(path: Path) -> None:
    """Make durable what is in a file, as if the kernel had found the time for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def tracing(
    pid: int, calls: str, output: Path, over: trio.Event, *, task_status: trio.TaskStatus[None]
) -> None:
    """Have strace write down those system calls of a process, with the files that they are about."""
    words = ["strace", "-f", "-y", "-qqq", "-p", str(pid), "-e", f"trace={calls}", "-o", str(output)]
    process = await trio.lowlevel.open_process(words, stdin=subprocess.DEVNULL)
    try:
        with trio.fail_after(STEP_S):
            while not _is_traced(pid):  # it does not tell when it has attached
                await trio.sleep(POLL_S)
        task_status.started()
        await over.wait()
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            await process.wait()


def _is_traced(pid: int) -> bool:
    statuses = Path(f"/proc/{pid}/task").glob("*/status")
    return all("\nTracerPid:\t0\n" not in status.read_text() for status in statuses)


# ---------------------------------------------------------------------- programs on the volume


class GuestProgram:
    """A program on the mounted volume; each line that it prints is a promise that it was given."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[list[str]] = []
        """What it said, in words."""
        self._moved = trio.Condition()
        self._ended = False

    async def follow(self) -> None:
        """Take in what it says until it ends."""
        if self.process.stdout is None:
            raise ProgramError("the program was started without a pipe")
        buffer = b""
        async for chunk in self.process.stdout:
            *lines, buffer = (buffer + chunk).split(b"\n")
            if len(buffer) > LINE_BYTES_MAX:
                raise ProgramError("a program on the volume says something without an end")
            self.lines += [line.decode().split() for line in lines]
            async with self._moved:
                self._moved.notify_all()
        await self.process.wait()
        async with self._moved:
            self._ended = True
            self._moved.notify_all()

    def count(self, word: str) -> int:
        """Lines that begin with that word."""
        return sum(line[0] == word for line in self.lines)

    def last(self, word: str, otherwise: int) -> int:
        """The last number of the last line that begins with that word."""
        return next((int(line[-1]) for line in reversed(self.lines) if line[0] == word), otherwise)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(STEP_S):
            async with self._moved:
                while not condition():
                    if self._ended:
                        raise ProgramError(f"the program ended before {what}: {self.lines[-5:]}")
                    await self._moved.wait()
            return
        raise ProgramError(f"not within {STEP_S:g} s: {what}; it said last {self.lines[-5:]}")

    async def wait_more(self, count: int, word: str = "done") -> None:
        """Wait until so many lines more begin with that word."""
        goal = self.count(word) + count
        await self._until(lambda: self.count(word) >= goal, f"{goal} times {word}")

    async def stop(self) -> None:
        """Ask it to end in order."""
        self.process.terminate()
        await self.wait_end(0)

    async def wait_end(self, status: int) -> None:
        """Wait for its end; `ProgramError` if it ends otherwise."""
        await self._until(lambda: self._ended, "its end")
        if self.process.returncode != status:
            raise ProgramError(f"exit status {self.process.returncode}; it said last {self.lines[-5:]}")


STOPPED_BY_ERROR = 3
"""Exit status of the programs of `PROGRAMS` when the volume fails them."""


@asynccontextmanager
async def guest_program(*words: str | os.PathLike[str]) -> AsyncIterator[GuestProgram]:
    """A program of `PROGRAMS`; killed when the block is left, if it still runs."""
    argv = [sys.executable, os.fspath(PROGRAMS), *(os.fspath(word) for word in words)]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        program = GuestProgram(process)
        nursery.start_soon(program.follow)
        try:
            yield program
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                if process.stdout is not None:
                    await process.stdout.aclose()
            nursery.cancel_scope.cancel()
