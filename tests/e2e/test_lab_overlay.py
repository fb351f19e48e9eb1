"""``pairsync lab overlay`` and ``host promote``: what a losing side had written, and a standby's way back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import MIB, extent_of
from pairsync.guest.replica import open_replica
from pairsync.node.hostfile import read_host_file
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.programs import pairsync_command, run_program

SIZE = 16 * MIB
LARGE = 128 * MIB  # a resync of it takes a while

COPIED_S = 30.0
"""How long a resync may take until it has copied the first block: the machine may be busy with others."""

OWN_AT, OWN_BYTES = 3 * MIB, MIB


def write_alone(directory: Path) -> None:
    """Host b was active, and died with writes that were not acknowledged."""
    host = read_host_file(directory / "b" / "host.toml")
    replica = open_replica(host.volumes[0], host.pair_id)
    block = replica.store.superblock
    replica.store.write_superblock(replace(block, clean=False))
    replica.store.append_intents(1, replica.setup.first_generation, [extent_of(OWN_AT, OWN_BYTES)])
    replica.device.apply([WriteOp(OpKind.DATA, OWN_AT, OWN_BYTES, memoryview(b"o" * OWN_BYTES))])
    replica.close()


def begins(path: Path) -> bytes:
    """The first byte of a file."""
    with path.open("rb") as file:
        return file.read(1)


async def overlay(lab: RunningLab, *words: str, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    """``pairsync lab overlay WORD DIR WORDS``."""
    what, *more = words
    return await run_program(*pairsync_command("lab", "overlay", what, lab.directory, *more), status=status)


async def overlays(lab: RunningLab) -> list[dict[str, Any]]:
    said = await overlay(lab, "list", "--json")
    found: list[dict[str, Any]] = json.loads(said.stdout)["overlays"]
    return found


def listed(directory: Path) -> list[dict[str, Any]]:
    """The same while the lab is down."""
    command = [*pairsync_command(), "lab", "overlay", "list", str(directory), "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["overlays"]
    return found


@pytest.mark.tools("qemu-img")
async def test_what_the_losing_side_wrote_is_kept_exported_and_undone(
    lab_directory: Path, tmp_path: Path
) -> None:
    async with running_lab(lab_directory, {"vda": SIZE}) as lab, await lab.connect() as client:
        for at in range(0, 8 * MIB, MIB):
            await client.write(at, b"g" * MIB)
        await client.flush()
        assert await overlays(lab) == []
        await lab.end()
    write_alone(lab_directory)
    image = tmp_path / "own.img"
    async with running_lab(lab_directory, {"vda": SIZE}) as lab:
        await lab.wait_in_sync()
        (kept,) = await overlays(lab)
        assert (kept["id"], kept["state"], kept["data_bytes"]) == ("b/vda/1", "kept", OWN_BYTES)
        assert "b/vda/1          kept, 1 MiB in 256" in (await overlay(lab, "list")).stdout.decode()
        said = await overlay(lab, "export", "b/vda/1", str(image), "--json")
        assert json.loads(said.stdout) == {"id": "b/vda/1", "file": str(image), "size_bytes": SIZE}
        told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(image)]))
        assert (told["format"], told["virtual-size"]) == ("raw", SIZE)
        content = image.read_bytes()
        assert content[OWN_AT : OWN_AT + OWN_BYTES] == b"o" * OWN_BYTES
        assert content[:OWN_AT] == b"g" * OWN_AT
        refused = await overlay(lab, "export", "b/vda/1", str(image), status=1)
        assert b"exists already" in refused.stderr
        refused = await overlay(lab, "undo", "b/vda/9", status=1)
        assert refused.stderr == b"pairsync: no overlay 'b/vda/9' here; there is b/vda/1\n"
        async with await lab.connect() as client:
            assert await client.read(OWN_AT, MIB) == b"g" * MIB
            said = await overlay(lab, "undo", "b/vda/1", "--json")
            assert json.loads(said.stdout) == {"id": "b/vda/1", "bytes": OWN_BYTES}
            assert await client.read(OWN_AT, MIB) == b"o" * MIB
            assert await client.read(OWN_AT - MIB, MIB) == b"g" * MIB
        await lab.end()
    assert not differences(lab_directory, "vda")
    assert listed(lab_directory) == [kept]
    command = [*pairsync_command(), "lab", "overlay"]
    down = tmp_path / "down.img"
    subprocess.run([*command, "export", str(lab_directory), "b/vda/1", str(down)], check=True)
    assert down.read_bytes() == content
    refused_down = subprocess.run(
        [*command, "undo", str(lab_directory), "b/vda/1"], capture_output=True, check=False
    )
    assert refused_down.returncode == 1
    assert b"the host that is active, and none is" in refused_down.stderr


async def test_a_standby_whose_source_is_lost_in_the_middle_of_a_resync(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": LARGE}) as lab, await lab.connect() as client:
        for at in range(0, LARGE, 4 * MIB):
            await client.write(at, b"1" * 4 * MIB)
        await client.flush()
        await lab.cut()
        for at in range(0, LARGE, 4 * MIB):
            await client.write(at, b"2" * 4 * MIB)
        await client.flush()
        point = lab.path("b").read_bytes()
        assert point == b"1" * LARGE
        mark = lab.mark()
        pid = await lab.pid("a")
        await lab.heal()
        await lab.wait_event("resync", host="b", since=mark)
        with trio.fail_after(COPIED_S):
            while begins(lab.path("b")) == b"1":
                await trio.sleep(0)
        os.kill(pid, signal.SIGKILL)  # at once: it would soon be complete
        await lab.kill("a")  # it is not started again
        (undo,) = await overlays(lab)
        assert (undo["id"], undo["state"], undo["whole"]) == ("b/vda/1", "undo", True)
        refused = await overlay(lab, "undo", "b/vda/1", status=1)
        assert b"see host promote" in refused.stderr
        await lab.end()
    promote = [*pairsync_command(), "host", "promote", str(lab_directory / "b" / "host.toml")]
    told = subprocess.run([*promote, "--json"], capture_output=True, check=False)
    (volume,) = json.loads(told.stdout)["volumes"]
    assert (told.returncode, volume["reverts"]) == (1, True)
    assert (lab_directory / "b" / "vda.img").read_bytes() != point
    done = subprocess.run([*promote, "--revert"], capture_output=True, check=True)
    assert f"--above-term {volume['term']} --yes" in done.stdout.decode()
    assert (lab_directory / "b" / "vda.img").read_bytes() == point
    again = subprocess.run(promote, capture_output=True, check=False)
    assert b"nothing to decide" in again.stderr
    assert listed(lab_directory) == []
