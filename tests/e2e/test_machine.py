"""A virtual machine whose root file system is a pairsync volume: a Debian kernel in QEMU, all emulated.

It writes files and syncs them, counting on its console, while the standby is killed, the link cut and both
come back.  What it said it had synced must be in the file system on both hosts, and that must be clean.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from pairsync.core.units import MIB
from pairsync.node.labfile import nbd_socket_of
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.programs import ProgramError, run_program

SIZE = {"vda": 96 * MIB}
MODULES = ("virtio_pci", "virtio_blk")
APPLETS = ("sh", "mount", "insmod", "switch_root", "dd", "sha256sum", "sync", "poweroff", "sleep", "touch")
FILES = 8

BOOT_S = 120.0  # 5 s on an idle machine
STEP_S = 60.0

INITRAMFS_INIT = """#!/bin/sh
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 -o rw,discard /dev/vda /root
exec switch_root /root /init
"""

GUEST_INIT = """#!/bin/sh
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
( read word < /dev/ttyS0; touch /tmp/stop ) &
number=0
while [ ! -e /tmp/stop ]; do
    number=$((number + 1))
    file=/data/$((number % {files}))
    dd if=/dev/urandom of=$file bs=32k count=4 conv=fsync 2>/dev/null
    sum=$(sha256sum $file)
    echo "synced $number ${{sum%% *}}"
done
mount -o remount,ro /
echo "over $number"
poweroff -f
"""


def add_busybox(root: Path, busybox: str) -> None:
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")


def modules_of(release: str) -> list[Path]:
    """Files of the modules that are needed, in the order in which they can be inserted."""
    place = Path("/lib/modules") / release
    needs = {}
    for line in (place / "modules.dep").read_text().splitlines():
        file, _, more = line.partition(":")
        needs[Path(file).stem] = [file, *more.split()]
    ordered = [file for module in MODULES for file in reversed(needs[module])]
    return [place / file for file in dict.fromkeys(ordered)]


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


async def build(directory: Path, kernel: Path, busybox: str) -> tuple[Path, Path]:
    """An initramfs that goes on from the volume, and the image for the volume."""
    release = kernel.name.removeprefix("vmlinuz-")
    early = directory / "early"
    add_busybox(early, busybox)
    for name in ("dev", "root", "modules"):
        (early / name).mkdir()
    modules = modules_of(release)
    for module in modules:
        shutil.copy(module, early / "modules")
    executable(early / "init", INITRAMFS_INIT.format(modules=" ".join(module.name for module in modules)))
    names = "\n".join(str(path.relative_to(early)) for path in early.rglob("*"))
    archive = directory / "initramfs"
    words = ["cpio", "--quiet", "-o", "-H", "newc", "-D", str(early), "-F", str(archive)]
    await run_program(*words, stdin=names.encode())

    root = directory / "root"
    add_busybox(root, busybox)
    for name in ("dev", "tmp", "data"):
        (root / name).mkdir()
    executable(root / "init", GUEST_INIT.format(files=FILES))
    image = directory / "image"
    await run_program("mkfs.ext4", "-q", "-d", root, image, f"{SIZE['vda'] // 1024}k")
    return archive, image


class Machine:
    """A running QEMU; its console, line by line."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.counter = 0
        self.sums: dict[int, str] = {}  # of the files, as the guest last reported them synced
        self._moved = trio.Condition()

    async def follow(self) -> None:
        """Take in what the console says."""
        if self.process.stdout is None:
            raise ProgramError("QEMU has no console")
        buffer = b""
        async for chunk in self.process.stdout:
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace").strip())
            async with self._moved:
                self._moved.notify_all()
        await self.process.wait()
        async with self._moved:
            self._moved.notify_all()

    def _take(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith("synced "):
            _, number, digest = line.split()
            self.counter = int(number)
            self.sums[self.counter % FILES] = digest

    async def wait(self, condition: Callable[[], bool], what: str, *, seconds: float = STEP_S) -> None:
        """Wait for something that the console says."""
        with trio.move_on_after(seconds):
            async with self._moved:
                while not condition():
                    if self.process.returncode is not None:
                        break
                    await self._moved.wait()
                else:
                    return
        console = "\n".join(self.lines[-40:])
        raise ProgramError(f"the machine did not reach within {seconds:g} s: {what}; its console:\n{console}")

    async def wait_more(self, count: int) -> None:
        """Wait until it has synced that many files more."""
        goal = self.counter + count
        await self.wait(lambda: self.counter >= goal, f"{goal} files", seconds=STEP_S)


@asynccontextmanager
async def machine(lab: RunningLab, kernel: Path, initramfs: Path) -> AsyncIterator[Machine]:
    """Boot; ends with the block whatever happens."""
    disk = "driver=nbd,node-name=disk,server.type=unix,export=vda,discard=unmap"
    words = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-reboot",
        "-display", "none", "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
        "-blockdev", f"{disk},server.path={nbd_socket_of(lab.directory, 'a')}",
        "-device", "virtio-blk-pci,drive=disk",
    ]  # fmt: skip
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        running = Machine(process)
        nursery.start_soon(running.follow)
        try:
            yield running
        finally:
            process.kill()


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.tools(
    "qemu-system-x86_64",
    "/boot/vmlinuz-*-cloud-*",
    "busybox",
    "cpio",
    "mkfs.ext4",
    "e2fsck",
    "debugfs",
    "nbdcopy",
)
async def test_a_machine_runs_from_a_volume_while_its_standby_dies(
    lab_directory: Path, make_directory: Callable[[], Path]
) -> None:
    kernel = max(Path("/boot").glob("vmlinuz-*-cloud-*"))
    busybox = shutil.which("busybox")
    assert busybox is not None
    initramfs, image = await build(make_directory(), kernel, busybox)
    async with running_lab(lab_directory, SIZE) as lab:
        await run_program("nbdcopy", "--flush", image, lab.uri())
        async with machine(lab, kernel, initramfs) as guest:
            await guest.wait(lambda: guest.counter > 2, "files synced", seconds=BOOT_S)
            mark = lab.mark()
            await lab.kill("b")
            await lab.wait_event("alone", host="a", since=mark)
            await guest.wait_more(5)
            await lab.start("b")
            await lab.wait_in_sync()
            await guest.wait_more(5)
            mark = lab.mark()
            await lab.cut()
            await lab.wait_event("alone", host="a", since=mark)
            await guest.wait_more(2)
            await lab.heal()
            await lab.wait_in_sync()
            await guest.wait_more(2)
            assert guest.process.stdin is not None
            await guest.process.stdin.send_all(b"stop\n")
            await guest.wait(lambda: any(line.startswith("over ") for line in guest.lines), "the end")
            with trio.fail_after(STEP_S):
                assert await guest.process.wait() == 0
        paths = [lab.path(host) for host in ("a", "b")]
    assert not differences(lab_directory, "vda")
    for path in paths:
        await run_program("e2fsck", "-fn", path)
        for number, digest in guest.sums.items():
            content = (await run_program("debugfs", "-R", f"cat /data/{number}", path)).stdout
            assert len(content) == 128 * 1024
            assert hashlib.sha256(content).hexdigest() == digest, (path, number)
    assert len(guest.sums) == FILES
    assert not any("error" in line.lower() for line in guest.lines), guest.lines
