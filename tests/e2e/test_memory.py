"""Resident memory of a host process with a sparse volume of 1 TiB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from pairsync.core.units import GIB, MIB, TIB
from pairsync.testing.lab import RunningLab, differences, running_lab

BAR_BYTES = 150 * MIB


async def resident(lab: RunningLab, hosts: str) -> dict[str, int]:
    """VmRSS of those hosts, as the kernel tells it."""
    found = {}
    for host in hosts:
        status = Path(f"/proc/{await lab.pid(host)}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        found[host] = int(line.split()[1]) * 1024
    return found


async def test_a_tebibyte_fits_into_150_mib(
    lab_directory: Path, record_property: Callable[[str, object], None]
) -> None:
    """Idle in sync, and after writes all over it with the standby away and its resync."""
    random = Random(1)
    async with running_lab(lab_directory, {"vda": TIB}) as lab:
        idle = await resident(lab, "ab")
        await lab.kill("b")
        async with await lab.connect() as client:
            for _ in range(300):
                await client.write(random.randrange(TIB >> 12) << 12, b"far and wide" * 100)
            for gib in range(64):
                await client.zero(TIB // 2 + gib * GIB, GIB)
            away = await resident(lab, "a")
        await lab.start("b")
        await lab.wait_in_sync()
        resynced = await resident(lab, "ab")
        for name, found in (("idle", idle), ("away", away), ("resynced", resynced)):
            for host, size in found.items():
                record_property(f"{name} {host} MiB", round(size / MIB, 1))
                print(f"{name}: host {host} has {size / MIB:.1f} MiB resident")
                assert size < BAR_BYTES
    assert not differences(lab_directory, "vda", first_bytes=64 * MIB)
