"""``pairsync lab scrub``: a bit that falls over is found under full load, where it is, and mended."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import trio

from pairsync.core.units import MIB
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.ledger import BLOCK, Ledger
from pairsync.testing.programs import pairsync_command, run_program

SIZE = {"vda": 32 * MIB}
QUIET = 24 * MIB
"""From here on the volume is written once and left alone."""


def flip(lab: RunningLab, host: str, offset: int) -> None:
    """One bit, behind everybody's back."""
    with (lab.directory / host / "vda.img").open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


async def fill(lab: RunningLab) -> None:
    async with await lab.connect() as client:
        for at in range(QUIET, 32 * MIB, MIB):
            await client.write(at, bytes([at >> 20]) * MIB)
        await client.flush()


async def test_flipped_bits_are_found_and_mended_beside_a_busy_guest(lab_directory: Path) -> None:
    async with running_lab(lab_directory, SIZE) as lab:
        await fill(lab)
        ledger = Ledger(5, count=QUIET // BLOCK)
        over = trio.Event()
        async with await lab.connect() as client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(ledger.run, client, depth=16, stop=over.is_set))
            await ledger.wait_acknowledged(500)
            clean = await lab.request("scrub", volume="vda")
            assert (clean["findings"], clean["bytes"]) == (0, 32 * MIB)
            mark = lab.mark()
            flip(lab, "a", QUIET + 5 * BLOCK + 7)
            flip(lab, "b", QUIET + 900 * BLOCK)
            told = await lab.request("scrub", volume="vda")
            expected = [(QUIET + 5 * BLOCK, "here"), (QUIET + 900 * BLOCK, "peer")]
            assert [(each["offset"], each["fault"]) for each in told["found"]] == expected
            assert told["repaired"] == 0
            mended = await lab.request("scrub", volume="vda", repair=True)
            assert (mended["findings"], mended["repaired"]) == (2, 2)
            again = await lab.request("scrub", volume="vda", repair=True)
            assert again["findings"] == 0
            over.set()
        assert not ledger.errors
        finding = await lab.wait_event("scrub-finding", host="a", since=mark)
        assert finding["block"] * BLOCK in {offset for offset, _ in expected}
        assert (await lab.status())["in_sync"], "both counted all the while"
        async with await lab.connect() as client:
            await ledger.check(client)
            assert await client.read(QUIET + 5 * BLOCK, BLOCK) == bytes([QUIET >> 20]) * BLOCK
    assert not differences(lab_directory, "vda")


async def test_a_bit_that_falls_over_while_both_are_down_is_found_when_they_are_back(
    lab_directory: Path,
) -> None:
    async with running_lab(lab_directory, SIZE) as lab:
        await fill(lab)
        await lab.wait_in_sync()
    async with running_lab(lab_directory, SIZE) as lab:
        await lab.wait_in_sync()
        flip(lab, "b", QUIET)
        mended = await lab.request("scrub", volume="vda", repair=True)
        assert [each["fault"] for each in mended["found"]] == ["peer"]
    assert not differences(lab_directory, "vda")


async def test_the_command_says_what_is_wrong_and_exits_with_1_until_mended(
    lab_directory: Path,
) -> None:
    async def scrub(*options: str, status: int) -> str:
        done = await run_program(*pairsync_command("lab", "scrub", lab_directory, *options), status=status)
        return done.stdout.decode()

    async with running_lab(lab_directory, SIZE) as lab:
        await fill(lab)
        await lab.wait_in_sync()
        flip(lab, "b", QUIET)
        assert f"byte {QUIET}: peer" in await scrub(status=1)
        answer = json.loads(await scrub("--repair", "--json", status=0))
        assert (answer["clean"], answer["volumes"]["vda"]["repaired"]) == (True, 1)
        assert "all well" in await scrub(status=0)
        await scrub("--volume", "vdz", status=1)
