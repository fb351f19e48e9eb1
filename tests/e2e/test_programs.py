"""Outside programs that read, write and judge, while hosts come and go beneath them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import trio

from pairsync.core.units import KIB, MIB
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.programs import run_program

FIO_BYTES = 8 * MIB  # of each job
FIO_JOBS = 3


def allocated(path: Path) -> int:
    """Bytes that a file takes up on its disk."""
    return path.stat().st_blocks * 512


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sparse_image(path: Path, size: int, pieces: Sequence[tuple[int, int]], seed: int) -> None:
    """A file of holes with random data at (offset, length)."""
    random = Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in pieces:
            file.seek(offset)
            file.write(random.randbytes(length))


async def settled_differences(lab: RunningLab, directory: Path, *volumes: str) -> None:
    """End the lab; both replicas of each volume must be the same."""
    await lab.wait_in_sync()
    await lab.end()
    for volume in volumes:
        assert not differences(directory, volume), volume


def fio_words(target: Sequence[str], seed: int, *more: str) -> list[str]:
    return [
        "fio",
        *target,
        "--name=jobs",
        f"--numjobs={FIO_JOBS}",
        f"--size={FIO_BYTES}",
        f"--offset_increment={FIO_BYTES}",
        "--rw=randwrite",
        "--bsrange=4k-128k",
        "--iodepth=8",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        f"--randseed={seed}",
        "--randrepeat=1",
        "--output-format=terse",
        *more,
    ]


async def disturb(lab: RunningLab) -> None:
    """Standby and link fail and come back, waiting each time until that had its effect."""
    for round_ in range(2):
        mark = lab.mark()
        await lab.kill("b")
        await lab.wait_event("alone", host="a", since=mark)
        await lab.start("b")
        await lab.wait_in_sync()
        mark = lab.mark()
        await lab.cut()
        await lab.wait_event("peer-lost", host="a", since=mark)
        if round_:  # both at once
            await lab.kill("b")
            await lab.start("b")
        await lab.heal()
        await lab.wait_in_sync()


@pytest.mark.tools("fio")
@pytest.mark.parametrize("level", ["sync", "async"])
async def test_fio_verifies_while_standby_and_link_fail(lab_directory: Path, level: str) -> None:
    async with running_lab(lab_directory, {"vda": FIO_JOBS * FIO_BYTES}, level=level) as lab:
        over = trio.Event()
        passes = 0

        async def verify() -> None:
            nonlocal passes
            while not over.is_set():
                await run_program(*fio_words(["--ioengine=nbd", f"--uri={lab.uri()}"], passes + 1))
                passes += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(verify)
            await disturb(lab)
            over.set()
        standby = lab.path("b")
        await settled_differences(lab, lab_directory, "vda")
    # the last pass once more, on the standby's own file, by fio alone
    words = fio_words(["--ioengine=psync", f"--filename={standby}"], passes, "--verify_only=1")
    await run_program(*words)


@pytest.mark.tools("nbdcopy")
async def test_nbdcopy_in_and_out_keeps_bytes_and_holes(lab_directory: Path, tmp_path: Path) -> None:
    """An odd size too: the last block is a partial one."""
    sizes = {"vda": 96 * MIB, "odd": 5 * MIB + 513}
    pieces = {
        "vda": [(0, 3 * MIB), (40 * MIB + 512, 5000), (95 * MIB, MIB)],
        "odd": [(4096, 100 * KIB), (5 * MIB - 7, 520)],
    }
    async with running_lab(lab_directory, sizes) as lab:
        for volume, size in sizes.items():
            image, back = tmp_path / f"{volume}.in", tmp_path / f"{volume}.out"
            sparse_image(image, size, pieces[volume], 5)
            await run_program("nbdcopy", "--flush", image, lab.uri(volume))
            await run_program("nbdcopy", lab.uri(volume), back)
            assert sha256(back) == sha256(image)
            assert back.stat().st_size == size
            for host in ("a", "b"):
                assert sha256(lab.path(host, volume)) == sha256(image)
                assert allocated(lab.path(host, volume)) <= allocated(image) + 64 * KIB
            assert allocated(back) <= allocated(image) + 64 * KIB  # the holes were told to the reader
        await settled_differences(lab, lab_directory, *sizes)


@pytest.mark.tools("qemu-img", "qemu-io")
async def test_qemu_tools_write_discard_compare(lab_directory: Path, tmp_path: Path) -> None:
    size = 64 * MIB
    image = tmp_path / "image.raw"
    sparse_image(image, size, [(MIB, 8 * MIB), (60 * MIB, 4 * MIB)], 6)
    async with running_lab(lab_directory, {"vda": size}) as lab:
        uri, a, b = lab.uri(), lab.path("a"), lab.path("b")
        await run_program("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
        await run_program("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
        answer = await run_program("qemu-img", "map", "--output=json", "-f", "raw", uri)
        data = sum(each["length"] for each in json.loads(answer.stdout) if each["data"])
        assert data == 12 * MIB
        commands = [
            "write -P 0xab 16M 1M",
            "write -P 0xcd -f 17M 64k",  # FUA
            "aio_write -P 0x11 18M 512k",
            "aio_write -P 0x22 19M 512k",
            "aio_flush",
            "write -z 16M 512k",
            "write -z -u 2M 2M",
            "discard 60M 4M",
            "discard 1000k 3k",  # not aligned to blocks
            "flush",
            "read -P 0 16M 512k",
            "read -P 0xab 16896k 512k",
            "read -P 0xcd 17M 64k",
            "read -P 0x22 19M 512k",
            "read -P 0 2M 2M",
            "read -P 0 60M 4M",
        ]
        await run_program("qemu-io", "-d", "unmap", "-f", "raw", *(f"-c{each}" for each in commands), uri)
        await run_program("qemu-img", "compare", "-f", "raw", "-F", "raw", b, uri)
        assert allocated(a) <= 10 * MIB  # 6 of the image, 3 of the commands: what was discarded is gone
        assert allocated(b) <= 10 * MIB
        await run_program("qemu-io", "-d", "unmap", "-f", "raw", f"-cdiscard 0 {size}", uri)
        assert allocated(a) <= 64 * KIB
        assert allocated(b) <= 64 * KIB
        await settled_differences(lab, lab_directory, "vda")


@pytest.mark.tools("nbdcopy", "nbdinfo")
async def test_the_dirty_context_tells_what_the_peer_lacks(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": 32 * MIB}) as lab:

        async def dirty() -> list[tuple[int, int]]:
            words = ["nbdinfo", "--json", "--map=pairsync:dirty", lab.uri()]
            extents = json.loads((await run_program(*words)).stdout)
            return [(each["offset"], each["length"]) for each in extents if each["type"]]

        async with await lab.connect() as client:
            await client.write(5 * MIB, b"w" * 100)
            await client.flush()
            assert await dirty() == []
            mark = lab.mark()
            await lab.cut()
            await lab.wait_event("peer-lost", host="a", since=mark)
            await client.write(MIB - 1, b"ab")
            await client.zero(8 * MIB, 64 * KIB)
            await client.trim(20 * MIB, 4096)
            assert await dirty() == [(MIB - 4096, 8192), (8 * MIB, 64 * KIB), (20 * MIB, 4096)]
            await lab.heal()
            await lab.wait_in_sync()
            assert await dirty() == []
        status = await lab.status()
        assert status["hosts"]["a"]["guest"]["volumes"][0]["dirty_blocks"] == 0
        await settled_differences(lab, lab_directory, "vda")


async def test_first_sync_sends_neither_holes_nor_zeroes(lab_directory: Path) -> None:
    """What is there already is taken over: 12 MiB of data in 1 GiB, beside 64 MiB of written zeroes."""
    size = 1024 * MIB
    (lab_directory / "a").mkdir(parents=True)
    image = lab_directory / "a" / "vda.img"
    sparse_image(image, size, [(0, 4 * MIB), (512 * MIB + 512, 4 * MIB), (size - 4 * MIB, 4 * MIB)], 7)
    with image.open("r+b") as file:
        file.seek(128 * MIB)
        file.write(bytes(64 * MIB))
    async with running_lab(lab_directory, {"vda": size}) as lab:
        status = await lab.status()
        sent = status["hosts"]["a"]["guest"]["link"]["bytes_out"]
        assert 12 * MIB < sent < 13 * MIB
        assert allocated(lab.path("b")) <= 12 * MIB + 64 * KIB
        await settled_differences(lab, lab_directory, "vda")


@pytest.mark.tools("qemu-io")
async def test_a_resync_keeps_discarded_ranges_sparse(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": 64 * MIB}) as lab:
        uri = lab.uri()
        await run_program("qemu-io", "-f", "raw", "-cwrite -P 1 0 32M", uri)
        await lab.kill("b")
        commands = ["-cdiscard 0 16M", "-cwrite -P 2 40M 1M"]
        await run_program("qemu-io", "-d", "unmap", "-f", "raw", *commands, uri)
        await lab.start("b")
        await lab.wait_in_sync()
        assert allocated(lab.path("b")) <= 17 * MIB + 64 * KIB
        await settled_differences(lab, lab_directory, "vda")


@pytest.mark.tools("nbdcopy")
async def test_many_volumes_at_once(lab_directory: Path, tmp_path: Path) -> None:
    """Eight volumes written side by side while the standby comes and goes: each holds its own."""
    names = [f"v{number}" for number in range(8)]
    images = {name: tmp_path / name for name in names}
    for number, name in enumerate(names):
        sparse_image(images[name], 4 * MIB + number, [(0, 4 * MIB + number)], number)
    sizes = {name: image.stat().st_size for name, image in images.items()}
    async with running_lab(lab_directory, sizes) as lab:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(run_program, "nbdcopy", "--flush", os.fspath(images[name]), lab.uri(name))
            await lab.kill("b")
            await lab.start("b")
        await lab.wait_in_sync()
        for name in names:
            for host in ("a", "b"):
                assert sha256(lab.path(host, name)) == sha256(images[name]), (host, name)
