"""``pairsync lab point`` and the meta context of a point, with libnbd's tools on a whole lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import STAYS

from pairsync.core.units import KIB, MIB
from pairsync.testing.lab import RunningLab, running_lab
from pairsync.testing.programs import pairsync_command, run_program

CONTEXT = "pairsync:changed:monday"


async def said(*words: str | Path, status: int = 0) -> str:
    return (await run_program(*words, status=status)).stdout.decode()


async def point(lab: RunningLab, what: str, *more: str, status: int = 0) -> str:
    """``pairsync lab point WORD DIR WORDS``."""
    return await said(*pairsync_command("lab", "point", what, lab.directory, *more), status=status)


async def changed(lab: RunningLab) -> list[tuple[int, int]]:
    answer = json.loads(await said("nbdinfo", "--json", f"--map={CONTEXT}", lab.uri()))
    return [(each["offset"], each["length"]) for each in answer if each["type"] == 1]


@pytest.mark.tools("nbdinfo")
async def test_what_has_changed_since_a_point_on_a_whole_lab(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": 64 * MIB}, more=STAYS) as lab:
        async with await lab.connect() as client:
            await client.write(MIB, b"x" * 8 * KIB)
            made: dict[str, Any] = json.loads(await point(lab, "make", "vda", "monday", "--json"))
            assert made["on_peer"]
            await client.write(MIB + 4 * KIB, b"y" * 4 * KIB)
            await client.trim(MIB, 4 * KIB)
        assert CONTEXT in await said("nbdinfo", "--json", lab.uri())
        assert await changed(lab) == [(MIB, 8 * KIB)]
        await lab.kill("a")  # the process is gone; its points are not
        await lab.start("a")
        await lab.wait_in_sync()
        assert (MIB, 8 * KIB) in await changed(lab)
        hosts = json.loads(await point(lab, "list", "vda", "--json"))["hosts"]
        assert [each["id"] for name in "ab" for each in hosts[name]] == [made["id"]] * 2
        await point(lab, "make", "vda", "monday", status=1)
        assert "monday: dropped" in await point(lab, "drop", "vda", "monday")
        assert "no points" in await point(lab, "list", "vda")
        assert CONTEXT not in await said("nbdinfo", "--json", lab.uri())
