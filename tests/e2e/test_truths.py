"""Two truths of one guest: told, left alone, and ended by a person's choice that can be undone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pairsync.core.units import MIB
from pairsync.guest.replica import create_replica
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.programs import pairsync_command, run_program

SIZE = 8 * MIB
FAILOVER = "--failover=1"

pytestmark = pytest.mark.slow


async def write(lab: RunningLab, host: str, at: int, letter: bytes) -> None:
    """A mebibyte of one letter, flushed."""
    client = await lab.connect(host=host)
    await client.write(at, letter * MIB)
    await client.flush()
    await client.aclose()


async def read(lab: RunningLab, host: str, at: int) -> bytes:
    client = await lab.connect(host=host)
    content = await client.read(at, MIB)
    await client.aclose()
    return content


async def apart(lab: RunningLab) -> None:
    """Both have written on their own, and do not know of each other yet; a is down."""
    await write(lab, "a", 0, b"g")
    await write(lab, "a", MIB, b"g")
    await lab.cut("a-b")
    await write(lab, "a", 0, b"a")  # it goes on alone, thanks to the witness
    await write(lab, "a", 2 * MIB, b"a")
    await lab.kill("a")
    await lab.command("override", "b", "--operator", "Dr Weber")
    await lab.wait_active("b")
    await write(lab, "b", MIB, b"b")
    await write(lab, "b", 2 * MIB, b"b")


async def truths(lab: RunningLab, status: int) -> dict[str, Any]:
    done = await lab.command("truths", "--json", status=status)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def overlay(lab: RunningLab, what: str, *words: str) -> dict[str, Any]:
    done = await run_program(*pairsync_command("lab", "overlay", what, lab.directory, *words, "--json"))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.tools("qemu-img")
@pytest.mark.parametrize("kept", ["a", "b"])
async def test_two_truths_after_an_override(lab_directory: Path, tmp_path: Path, kept: str) -> None:
    lost = "b" if kept == "a" else "a"
    async with running_lab(lab_directory, {"vda": SIZE}, more=[FAILOVER]) as lab:
        await apart(lab)
        before = [lab.path(host).read_bytes() for host in ("a", "b")]
        mark = lab.mark()
        await lab.start("a")
        await lab.heal("a-b")
        told = await lab.wait_event("two-truths", host="a", since=mark)
        assert "Dr Weber" in told["theirs"]
        refused = await lab.wait_event("refused", host="b", since=mark)
        assert refused["rule"] in {"diverged", "peer-left"}
        found = await truths(lab, 1)
        assert found["two_truths"]
        assert found["hosts"]["b"]["grant"]["override"] == "Dr Weber"
        a, b = (found["hosts"][host]["volumes"]["vda"] for host in ("a", "b"))
        assert (a["relation"], a["common"]) == (b["relation"], b["common"]) == ("diverged", b["common"])
        assert a["own_generations"] != b["own_generations"]
        assert 512 <= a["own_blocks"] < SIZE // 4096
        assert 512 <= b["own_blocks"] < SIZE // 4096
        assert [lab.path(host).read_bytes() for host in ("a", "b")] == before

        said = json.loads((await lab.command("truths", "--keep", kept, "--operator", "me", "--json")).stdout)
        assert (said["kept"], said["conceded"], said["forced"]) == (kept, lost, kept == "a")
        await lab.wait_active(kept)
        await lab.wait_in_sync()
        assert not (await truths(lab, 0))["two_truths"]
        at = 0 if lost == "a" else MIB  # what only the lost side had written
        assert await read(lab, kept, at) == b"g" * MIB
        assert await read(lab, kept, 2 * MIB) == kept.encode() * MIB

        (overlaid,) = (await overlay(lab, "list"))["overlays"]
        assert (overlaid["host"], overlaid["state"]) == (lost, "kept")
        image = tmp_path / "lost.img"
        await overlay(lab, "export", overlaid["id"], str(image))
        info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(image)]))
        assert info["virtual-size"] == SIZE
        content = image.read_bytes()
        assert content[at : at + MIB] == content[2 * MIB : 3 * MIB] == lost.encode() * MIB
        await overlay(lab, "undo", overlaid["id"])
        assert await read(lab, kept, at) == await read(lab, kept, 2 * MIB) == lost.encode() * MIB
        await lab.wait_in_sync()
        await lab.end()
    assert not differences(lab_directory, "vda")


def replica_files(lab: RunningLab, host: str) -> list[Path]:
    """A host's replica, all that lies beside it, and its memory as a voter."""
    directory = lab.path(host).parent
    return [path for path in directory.iterdir() if path.name.startswith(("vda.img", "register"))]


def back_up(lab: RunningLab, host: str, backup: Path) -> None:
    """Of a host that is down."""
    backup.mkdir()
    for path in replica_files(lab, host):
        shutil.copy2(path, backup)


def restore(lab: RunningLab, host: str, backup: Path) -> None:
    for path in replica_files(lab, host):
        path.unlink()
    for path in backup.iterdir():
        shutil.copy2(path, lab.path(host).parent)


async def test_two_hosts_restored_from_backups_of_different_days(lab_directory: Path, tmp_path: Path) -> None:
    monday, tuesday = tmp_path / "monday", tmp_path / "tuesday"
    async with running_lab(lab_directory, {"vda": SIZE}, more=[FAILOVER]) as lab:
        await write(lab, "a", 0, b"m")
        await lab.kill("a")
        back_up(lab, "a", monday)
        await lab.wait_active("b")
        await write(lab, "b", 0, b"t")
        await lab.start("a")
        await lab.wait_in_sync()
        await lab.kill("b")
        await lab.kill("a")  # at once, before it can take over
        back_up(lab, "b", tuesday)
        restore(lab, "a", monday)
        restore(lab, "b", tuesday)
        await lab.start("a")
        await lab.start("b")
        # Nobody else lets the guest run.  Who has met the other host knows that its disk is the older one.
        await lab.wait_status(
            lambda status: "active-behind" in ((status["hosts"]["a"]["guest"] or {}).get("refusal") or ""),
            "a is told",
        )
        said = await lab.command("override", "a", "--operator", "Dr Weber", status=1)
        assert b"would lack here what the other host has" in said.stderr
        await lab.command("override", "a", "--operator", "Dr Weber", "--insist")
        await lab.wait_active("a")
        await write(lab, "a", MIB, b"w")
        status = await lab.wait_status(
            lambda status: bool((status["hosts"]["a"]["guest"] or {}).get("refusal")), "it is refused"
        )
        refusal = status["hosts"]["a"]["guest"]["refusal"]
        assert refusal.startswith(("diverged", "active-behind", "peer-left"))  # the last: as before it wrote
        b = (await truths(lab, 1))["hosts"]["b"]["volumes"]["vda"]
        assert (b["relation"], b["own_blocks"]) == ("diverged", None)  # nobody remembers what Tuesday was
        done = await lab.command("truths", "--keep", "a", "--json")
        (given,) = json.loads(done.stdout)["volumes"]
        assert (given["stays"], given["everything"], given["blocks"]) == (False, True, SIZE // 4096)
        await lab.wait_in_sync()
        assert await read(lab, "a", 0) == b"m" * MIB
        (overlaid,) = (await overlay(lab, "list"))["overlays"]
        image = tmp_path / "tuesday.img"
        await overlay(lab, "export", overlaid["id"], str(image))
        assert image.read_bytes()[: 2 * MIB] == b"t" * MIB + bytes(MIB)
        await lab.end()
    assert not differences(lab_directory, "vda")


async def test_a_foreign_disk_stays_refused(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": SIZE}, more=[FAILOVER]) as lab:
        await write(lab, "a", 0, b"g")
        await lab.kill("b")
        for path in replica_files(lab, "b"):
            if path.name.startswith("vda.img"):
                path.unlink()
        foreign = lab.path("b")
        foreign.write_bytes(b"f" * SIZE)
        pair_id = bytes.fromhex(json.loads((lab_directory / "lab.json").read_text())["pair_id"])
        create_replica(foreign, name="vda", pair_id=pair_id, volume_id=b"f" * 16)
        mark = lab.mark()
        await lab.start("b")
        refused = await lab.wait_event("refused", host="a", since=mark)
        assert "is not the same volume" in refused["text"]
        found = await truths(lab, 1)
        assert found["hosts"]["b"]["volumes"]["vda"]["relation"] == "foreign"
        said = await lab.command("truths", "--keep", "a", status=1)
        assert b"it is no replica of this one; nothing was changed" in said.stderr
        assert foreign.read_bytes() == b"f" * SIZE
        assert await read(lab, "a", 0) == b"g" * MIB
        assert (await lab.guest())["active"] == "a"
