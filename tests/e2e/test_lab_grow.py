"""``pairsync lab grow``: a volume becomes larger under load, while its hosts come, go and die."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from tests.e2e.mounted import attached, check_image, guest_file_system, mount, why_not

from pairsync.core.units import KIB, MIB
from pairsync.errors import PairsyncError
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.ledger import BLOCK, Ledger
from pairsync.testing.nbd_client import NbdReplyError
from pairsync.testing.programs import run_program

SMALL, MIDDLE, LARGE = 16 * MIB, 32 * MIB, 48 * MIB + 1536
"""The last one ends in the middle of a block."""


async def size_of(lab: RunningLab) -> int:
    """As a client that connects now is told."""
    async with await lab.connect() as client:
        return client.size_bytes


async def test_a_volume_grows_under_load_with_and_without_its_standby(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": SMALL}) as lab:
        ledger = Ledger(7, count=SMALL // BLOCK)
        tail = Ledger(8, first=SMALL // BLOCK, count=(MIDDLE - SMALL) // BLOCK)
        over = trio.Event()
        async with await lab.connect() as client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(ledger.run, client, depth=16, stop=over.is_set))
            await ledger.wait_acknowledged(200)
            mark = lab.mark()
            grown = json.loads((await lab.command("grow", "vda", "32M", "--json")).stdout)
            assert grown == {"volume": "vda", "size_bytes": MIDDLE, "before_bytes": SMALL}
            for host in ("a", "b"):
                await lab.wait_event("grown", host=host, since=mark)
            async with await lab.connect() as second:
                assert second.size_bytes == MIDDLE
                assert not any(await second.read(SMALL, MIDDLE - SMALL))
                await tail.run(second, requests=300, depth=16)
                with pytest.raises(NbdReplyError):
                    await second.write(MIDDLE, bytes(BLOCK))
            status = await lab.status()
            assert status["in_sync"], "nothing had to be copied"
            await lab.kill("b")
            await lab.request("grow", volume="vda", size_bytes=LARGE)
            await lab.start("b")
            await ledger.wait_acknowledged(ledger.acknowledged + 200)
            over.set()
        assert not ledger.errors
        assert await size_of(lab) == LARGE
        async with await lab.connect() as client:
            await client.write(LARGE - 5000, b"x" * 5000)
        await lab.wait_in_sync()
        refused = await lab.command("grow", "vda", "1M", status=1)
        assert refused.stderr.decode().count("\n") == 1
        assert "only grows" in refused.stderr.decode()
        again = await lab.command("grow", "vda", str(LARGE))
        assert again.stdout.decode() == "vda: 48 MiB\n"
        scrubbed = await lab.request("scrub", volume="vda")
        assert scrubbed["findings"] == 0
        async with await lab.connect() as client:
            await ledger.check(client)
            await tail.check(client)
    assert not differences(lab_directory, "vda")
    for host in ("a", "b"):
        path = lab_directory / host / "vda.img"
        assert path.stat().st_size == LARGE
        ledger.check_file(path)
        tail.check_file(path)
    async with running_lab(lab_directory) as lab:
        assert await size_of(lab) == LARGE


async def test_either_host_dies_in_the_middle_of_a_growth(lab_directory: Path) -> None:
    rng = random.Random(3)
    size = SMALL
    async with running_lab(lab_directory, {"vda": size}) as lab:
        for round_number in range(8):
            host = "ab"[round_number % 2]
            wanted = size + rng.randrange(1, 200) * 512
            async with await lab.connect() as client:
                await client.write(size - BLOCK, bytes([round_number + 1]) * BLOCK)
                await client.flush()
            async with trio.open_nursery() as nursery:

                async def grow(to: int = wanted) -> None:
                    with suppress(PairsyncError):  # nobody is there to say how it went
                        await lab.request("grow", volume="vda", size_bytes=to)

                nursery.start_soon(grow)
                await trio.sleep(rng.random() * 0.02)
                await lab.kill(host)
            await lab.start(host)
            await lab.wait_in_sync()
            found = await size_of(lab)
            assert found in {size, wanted}
            async with await lab.connect() as client:
                assert await client.read(size - BLOCK, BLOCK) == bytes([round_number + 1]) * BLOCK
                assert not any(await client.read(size, found - size)) if found > size else True
            size = found
        assert size > SMALL
    assert not differences(lab_directory, "vda")


@pytest.mark.root
@pytest.mark.tools("nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "resize2fs")
async def test_a_file_system_grows_into_its_volume(make_directory: Callable[[], Path]) -> None:
    if reason := why_not("ext4"):
        pytest.skip(reason)
    directory, place = make_directory() / "lab", make_directory()
    async with running_lab(directory, {"vda": 64 * MIB}) as lab:
        async with guest_file_system(lab, place, "ext4", make=True) as where:
            (where / "before").write_bytes(b"b" * (20 * MIB))
            await lab.command("grow", "vda", "160M")
            (where / "meanwhile").write_bytes(b"m" * (10 * MIB))
        async with attached(lab, place) as device:  # connected anew: it sees the new size
            await run_program("e2fsck", "-fp", device)
            await lab.kill("b")
            await run_program("resize2fs", device)
            await lab.start("b")
            async with mount(device, place / "again", "discard") as where:
                (where / "after").write_bytes(b"a" * (80 * MIB))
            await run_program("e2fsck", "-fn", device)
        await lab.wait_in_sync()
        async with attached(lab, place) as device, mount(device, place / "again", "ro") as where:
            for name, length in (("before", 20), ("meanwhile", 10), ("after", 80)):
                assert (where / name).read_bytes() == name[:1].encode() * (length * MIB)
    assert not differences(directory, "vda")
    for host in ("a", "b"):
        await check_image("ext4", directory / host / "vda.img")


async def test_an_empty_disk_of_the_old_size_grows_too(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": SMALL}) as lab:
        await lab.request("grow", volume="vda", size_bytes=SMALL + 4 * KIB + 512)
        async with await lab.connect() as client:
            await client.write(SMALL + KIB, b"tail")
        await lab.kill("b")
        await lab.request("disk", host="b", volume="vda", disk="replace")
        await lab.start("b")
        await lab.wait_in_sync()
    assert not differences(lab_directory, "vda")
