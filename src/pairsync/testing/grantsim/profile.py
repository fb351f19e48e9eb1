"""What a seed draws before it begins: the stated failover time, clocks, speeds, witnesses and faults.

Everything that is drawn keeps what `core.timing` was derived for (delays, stalls, the bound on clock rates),
but for the faults that break it on purpose: `BEYOND`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from pairsync.core.limits import VolumeOptions
from pairsync.core.timing import RATE_PPM, Timing, derive
from pairsync.core.units import BLOCK_BYTES, NS_PER_MS, NS_PER_S, NS_PER_US
from pairsync.testing.sim.profile import Speeds
from pairsync.testing.swarm import between, draw_faults

__all__ = ["BEYOND", "FAULTS", "RATE_BEYOND_PPM", "GrantProfile", "draw_profile"]

FAULTS: dict[str, float] = {
    "crash-owner": 3.0,
    "crash-standby": 2.0,
    "crash-both": 1.0,
    "power-owner": 1.5,
    "power-standby": 1.0,
    "power-both": 0.7,
    "pause-owner": 2.0,
    "pause-standby": 1.0,
    "suspend-owner": 1.0,
    "suspend-standby": 0.7,
    "cut-link": 3.0,
    "cut-one-way": 2.0,
    "cut-owner-witness": 1.5,
    "cut-standby-witness": 1.0,
    "isolate-owner": 2.0,
    "isolate-standby": 1.0,
    "owner-deaf": 1.0,
    "witness-down": 2.0,
    "witness-preferred-down": 1.0,
    "witness-after-peer": 1.5,
    "witness-lost": 1.5,
    "witness-rolled-back": 0.7,
    "lossy": 1.5,
    "memory-lost": 0.6,
    "memory-restored": 0.6,
    "disks-replaced": 0.5,
    "disks-rolled-back": 1.5,
    "disk-fails-owner": 1.0,
    "disk-fails-standby": 1.0,
    "disk-hangs-owner": 1.0,
    "disk-hangs-standby": 1.0,
    "disk-swapped-owner": 0.7,
    "disk-swapped-standby": 0.7,
    "upgrade-owner": 1.0,
    "upgrade-standby": 1.0,
    "upgrade-witness": 0.7,
    "move": 2.5,
    "override": 0.5,
    "failover-lowered": 1.0,
    "rate-beyond": 0.7,
}
"""Every fault there is, with its weight in the storm."""

BEYOND = frozenset({"rate-beyond", "override"})
"""After these two guests may run at once: rule 10 rests on the bound of clock rates, and persons overrule it.
What was acknowledged is safe all the same: in full, or on the side that the person has chosen."""

RATE_BEYOND_PPM = 300_000
"""A clock that is broken: a third fast or slow."""

LAGGING = 0.15
"""Of seeds whose volumes may be ``async``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantProfile:
    """Everything a seed decides at the start."""

    timing: Timing
    witnesses: tuple[str, ...]
    rates_ppm: tuple[int, int]
    sizes_bytes: tuple[int, ...]  # of each volume of the guest; likewise the next
    options: tuple[VolumeOptions, ...]
    speeds: Speeds
    control_ns: int  # a vote, one way, at the most
    witness_ns: int  # likewise to a witness
    memory_ns: int  # a write of the acceptor's memory, at the most
    restart_ns: int  # mean time until a host that went down is up again
    storm_ns: int  # mean time between faults
    ambush: float  # probability of a fault when a host begins to write its memory down
    think_ns: int  # between requests of the guest, mean
    safety_ns: int
    faults: dict[str, float]
    drill: bool  # quiet, until what would survive is asked, and put to the test


def draw_profile(random: Random) -> GrantProfile:
    """All of a seed's decisions, in a fixed order."""
    timing = derive(random.choice((1000, 1500, 2500, 5000)) * NS_PER_MS)
    bound = RATE_PPM
    faults = draw_faults(random, FAULTS)
    volumes = random.choice((1, 1, 2, 3))
    options = VolumeOptions(
        digests=random.random() < 0.8,
        flush_after_ns=between(random, NS_PER_S // 5, 4 * NS_PER_S),
        disk_deadline_ns=between(random, NS_PER_S, 5 * NS_PER_S),
    )
    lagging = replace(
        options,
        level="async",
        at_bound=random.choice(("throttle", "fall-behind")),
        lag_ns=between(random, NS_PER_S // 5, 3 * NS_PER_S),
    )
    lags = random.random() < LAGGING
    levels = [lagging if lags and random.random() < 0.7 else options for _ in range(volumes)]
    if lags:  # what a standby has not flushed is no part of the bound
        faults = {fault: weight for fault, weight in faults.items() if not fault.startswith("power")}
    return GrantProfile(
        timing=timing,
        witnesses=random.choices(((), ("w",), ("w", "v")), (1, 5, 3))[0],
        rates_ppm=(random.randrange(-bound, bound + 1), random.randrange(-bound, bound + 1)),
        sizes_bytes=tuple(random.choice((4, 8, 16)) * BLOCK_BYTES for _ in range(volumes)),
        options=tuple(levels),
        speeds=Speeds(
            disk_ns=between(random, 50 * NS_PER_US, 3 * NS_PER_MS),
            disk_ns_per_kib=500,
            flush_ns=between(random, 200 * NS_PER_US, 10 * NS_PER_MS),
            metadata_ns=between(random, 50 * NS_PER_US, 3 * NS_PER_MS),
            link_ns=between(random, 50 * NS_PER_US, 5 * NS_PER_MS),
            link_ns_per_kib=2_000,
        ),
        control_ns=between(random, 100 * NS_PER_US, timing.delay_ns),
        witness_ns=between(random, 200 * NS_PER_US, timing.witness_wait_ns // 2),
        memory_ns=between(random, 50 * NS_PER_US, 20 * NS_PER_MS),
        restart_ns=between(random, NS_PER_S // 5, 8 * NS_PER_S),
        storm_ns=between(random, NS_PER_S, 12 * NS_PER_S),
        ambush=random.choice((0.0, 0.02, 0.1)),
        think_ns=between(random, 20 * NS_PER_MS, 800 * NS_PER_MS),
        safety_ns=random.randrange(12, 34) * NS_PER_S,
        faults=faults,
        drill=random.random() < 0.15,
    )
