"""The active host's disk is put back, labels and all, from a copy that was made a moment ago."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import trio
from tests.e2e.test_truths import SIZE, overlay, read, truths, write

from pairsync.core.units import MIB
from pairsync.testing.lab import RunningLab, differences, running_lab

pytestmark = pytest.mark.slow


def disk_files(lab: RunningLab, host: str) -> list[Path]:
    """A replica and what lies beside it: not the host's memory as a voter, which may lie elsewhere."""
    return [path for path in lab.path(host).parent.iterdir() if path.name.startswith("vda.img")]


async def put_back(lab: RunningLab, copy: Path, *, alone: bool = False) -> None:
    """Both machines fail; a's disk comes back as it was when it was quiet, before the last writes.

    ``alone``: b fails first, and a goes on without it.
    """
    await write(lab, "a", 0, b"o")
    await lab.wait_in_sync()
    copy.mkdir()
    for path in disk_files(lab, "a"):
        shutil.copy2(path, copy)
    await write(lab, "a", MIB, b"n")
    if alone:
        await lab.kill("b")
        await write(lab, "a", 2 * MIB, b"l")
    for host in ("a",) if alone else ("a", "b"):
        await lab.kill(host)
    for path in disk_files(lab, "a"):
        path.unlink()
    for path in copy.iterdir():
        shutil.copy2(path, lab.path("a").parent)


async def start_both(lab: RunningLab) -> None:
    """So that they meet before either has found the other one silent."""
    async with trio.open_nursery() as nursery:
        for host in ("a", "b"):
            nursery.start_soon(lab.start, host)


@pytest.mark.parametrize("more", [[], ["--witness=none"]])
async def test_the_newer_side_takes_over_by_itself(
    lab_directory: Path, tmp_path: Path, more: list[str]
) -> None:
    """Also where the owner alone decides: it knows that b is newer, and gives the guest up."""
    async with running_lab(lab_directory, {"vda": SIZE}, more=more) as lab:
        await put_back(lab, tmp_path / "copy")
        await start_both(lab)
        await lab.wait_active("b")
        assert await read(lab, "b", MIB) == b"n" * MIB
        await lab.wait_in_sync()
        assert await read(lab, "a", MIB) == b"n" * MIB  # by way of b
        await write(lab, "a", 2 * MIB, b"w")
        await lab.end()
    assert not differences(lab_directory, "vda")


@pytest.mark.parametrize("kept", ["a", "b"])
async def test_where_it_was_agreed_to_go_on_alone_nothing_is_overwritten_until_a_person_decides(
    lab_directory: Path, tmp_path: Path, kept: str
) -> None:
    async with running_lab(lab_directory, {"vda": SIZE}) as lab:
        await put_back(lab, tmp_path / "copy", alone=True)
        before = lab.path("b").read_bytes()
        await start_both(lab)
        status = await lab.wait_status(
            lambda status: "active-rolled-back" in str((status["hosts"]["a"]["guest"] or {}).get("refusal")),
            "it is told",
        )
        assert "pairsync lab truths" in status["hosts"]["a"]["guest"]["refusal"]
        found = await truths(lab, 1)
        a, b = (found["hosts"][host]["volumes"]["vda"] for host in ("a", "b"))
        assert (a["relation"], b["relation"], b["own_blocks"]) == ("behind", "ahead", None)
        assert lab.path("b").read_bytes() == before
        refused = await lab.command("override", "a", status=1)  # a person has to know what that means
        assert b"newer than the active host's" in refused.stderr
        assert b"--insist" in refused.stderr

        said = json.loads((await lab.command("truths", "--keep", kept, "--operator", "me", "--json")).stdout)
        assert said["kept"] == kept
        await lab.wait_active(kept)
        await lab.wait_in_sync()
        assert await read(lab, kept, MIB) == (b"n" * MIB if kept == "b" else bytes(MIB))
        overlays = (await overlay(lab, "list"))["overlays"]
        assert [each["host"] for each in overlays] == (["b"] if kept == "a" else [])
        if kept == "a":
            image = tmp_path / "lost.img"
            await overlay(lab, "export", overlays[0]["id"], str(image))
            assert image.read_bytes()[MIB : 2 * MIB] == b"n" * MIB
        await lab.end()
    assert not differences(lab_directory, "vda")
