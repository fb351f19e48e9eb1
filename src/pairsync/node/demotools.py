"""The outside programs of the demonstration; none of them needs root, none of them knows pairsync.

e2fsprogs makes, changes, reads and checks the file system; qemu-img is the client that writes it through NBD.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import trio

from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError, ConfigError
from pairsync.storage.file import open_volume

from .demotree import Edits

__all__ = ["PACKAGES", "Stretch", "Tools", "find_tools", "stretches_of"]

PACKAGES = {"mkfs.ext4": "e2fsprogs", "debugfs": "e2fsprogs", "e2fsck": "e2fsprogs", "qemu-img": "qemu-utils"}
"""Program to Debian package."""

_ADMIN_DIRECTORIES = ("/usr/sbin", "/sbin")  # an ordinary user's PATH lacks them

OUTPUT_BYTES = 4096
"""Read at once of what a program says about its progress."""

FSCK_CLEAN = 0
"""Exit status of ``e2fsck -fn`` for a file system without any error."""


def find_tools(path: str | None = None) -> dict[str, str]:
    """Where the programs are; `ConfigError` that names the Debian packages of those that are missing."""
    directories = os.environ.get("PATH", os.defpath) if path is None else path
    if path is None:
        directories = os.pathsep.join([directories, *_ADMIN_DIRECTORIES])
    found = {name: shutil.which(name, path=directories) for name in PACKAGES}
    missing = [name for name, where in found.items() if where is None]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[name] for name in missing))
        raise ConfigError(f"missing: {', '.join(missing)}; on Debian: apt-get install {packages}")
    return {name: where for name, where in found.items() if where is not None}


class Stretch(NamedTuple):
    """A part of an image, in bytes."""

    offset: int
    length: int


class Tools:
    """The programs, run one at a time; each method raises `BackendError` with what the program said."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = dict(paths)

    async def _run(self, name: str, *arguments: str, fine: Sequence[int] = (0,)) -> tuple[int, str]:
        # C locale: what is parsed or shown must not depend on whose machine it is
        done = await trio.run_process(
            [self._paths[name], *arguments],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        text = done.stdout.decode(errors="replace").strip()
        if done.returncode not in fine:
            raise BackendError(f"{name} failed with status {done.returncode}: {text[-500:]}")
        return done.returncode, text

    async def make_image(self, image: Path, tree: Path, size_bytes: int) -> None:
        """An ext4 file system in a file, filled from a tree."""
        await self._run(
            *("mkfs.ext4", "-q", "-F", "-b", str(BLOCK_BYTES), "-d", str(tree), str(image)),
            f"{size_bytes // 1024}k",
        )

    async def change_image(self, image: Path, tree: Path, edits: Edits) -> None:
        """Do in the file system what was done in the tree."""
        script = image.with_suffix(".debugfs")
        lines = [f"rm /{name}" for name in edits.removed]
        for name in edits.written:
            folder, _, leaf = name.rpartition("/")
            # what is not there yet cannot be removed; debugfs says so and goes on
            lines += [f"cd /{folder}", f"rm {leaf}", f"write {tree / name} {leaf}"]
        script.write_text("\n".join(lines) + "\n")
        await self._run("debugfs", "-w", "-f", str(script), str(image))

    async def extract(self, image: Path, target: Path) -> None:
        """Read all files out of the file system."""
        await trio.Path(target).mkdir()
        await self._run("debugfs", "-R", f"rdump / {target}", str(image))

    async def check_image(self, image: Path) -> str:
        """What is wrong with the file system; empty if it is clean."""
        code, text = await self._run("e2fsck", "-fn", str(image), fine=range(16))
        return "" if code == FSCK_CLEAN else text

    async def write_stretch(
        self, image: Path, stretch: Stretch, socket: Path, export: str, progress: Callable[[float], None]
    ) -> None:
        """Write a stretch of the image into a volume, without its holes, and flush.

        ``progress`` hears fractions.
        """
        part = f"driver=raw,offset={stretch.offset},size={stretch.length}"
        source = f"{part},file.driver=file,file.filename={_quoted(image)}"
        server = f"file.server.type=unix,file.server.path={_quoted(socket)}"
        target = f"{part},file.driver=nbd,file.export={export},{server}"
        # with the default cache mode of `convert` the volume would not be told to flush at the end
        how = ("-p", "-n", "-W", "--target-is-zero", "-t", "writeback", "--image-opts", "--target-image-opts")
        command = [self._paths["qemu-img"], "convert", *how, source, target]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said = bytearray()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_gather, process.stderr, said)
                await _follow(process.stdout, progress)
            code = await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.wait()
                for stream in (process.stdout, process.stderr):
                    if stream is not None:
                        await stream.aclose()
        if code:
            raise BackendError(f"qemu-img convert failed: {said.decode(errors='replace').strip()[-500:]}")

    async def write_changes(self, image: Path, uri: str) -> None:
        """Bring a volume to the image's content by writing the blocks that differ, and no others."""
        # an overlay of the image is told to stand on the volume instead: it fills itself with what differs,
        # in clusters of the tracking granularity, and is then written back into what it stands on
        overlay = image.with_suffix(".qcow2")
        made = ("-f", "qcow2", "-o", "cluster_size=4096", "-b", str(image), "-F", "raw")
        await self._run("qemu-img", "create", "-q", *made, str(overlay))
        await self._run("qemu-img", "rebase", "-f", "qcow2", "-b", uri, "-F", "raw", str(overlay))
        await self._run("qemu-img", "commit", "-q", "-f", "qcow2", "-d", str(overlay))
        overlay.unlink()


def _quoted(path: Path) -> str:
    """As a value of qemu's options."""
    return str(path).replace(",", ",,")


def stretches_of(image: Path, data_bytes: int) -> list[Stretch]:
    """The image in stretches that hold about as much data each, cut at blocks."""
    cuts: list[int] = []
    gathered = at = 0
    device = open_volume(image)
    try:
        size_bytes = device.size_bytes
        while at < size_bytes:
            length, hole = device.allocation(at, size_bytes - at)[0]
            if not hole:
                edges = range(at + data_bytes - gathered, at + length, data_bytes)
                cuts.extend(edge // BLOCK_BYTES * BLOCK_BYTES for edge in edges)
                gathered = (gathered + length) % data_bytes
            at += length
    finally:
        device.close()
    around = pairwise([0, *cuts, size_bytes])
    return [Stretch(start, stop - start) for start, stop in around if stop > start]


async def _gather(stream: trio.abc.ReceiveStream | None, into: bytearray) -> None:
    if stream is not None:
        async for chunk in stream:
            into += chunk
            del into[:-OUTPUT_BYTES]


async def _follow(stream: trio.abc.ReceiveStream | None, progress: Callable[[float], None]) -> None:
    """Read ``    (41.03/100%)`` and the like."""
    rest = b""
    while stream is not None and (chunk := await stream.receive_some(OUTPUT_BYTES)):
        *lines, rest = re.split(rb"[\r\n]", rest + chunk)
        rest = rest[-OUTPUT_BYTES:]
        for line in lines:
            if found := re.search(rb"\(([\d.]+)/100%\)", line):
                progress(float(found[1]) / 100)
