"""What a seed draws before it begins: sizes, options, speeds, the guest's habits, and which faults exist.

What both simulators draw alike is in `pairsync.testing.swarm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from pairsync.core.limits import VolumeOptions
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS, NS_PER_S, NS_PER_US
from pairsync.testing.swarm import START_KINDS, Habits, SwarmProfile, between, draw_faults, draw_kinds

from .disk import SECTOR_BYTES

__all__ = ["FAULTS", "Profile", "Speeds", "draw_profile"]

FAULTS: dict[str, float] = {
    "crash-active": 3.0,
    "crash-standby": 3.0,
    "crash-both": 1.0,
    "power-active": 3.0,
    "power-standby": 3.0,
    "power-both": 1.5,
    "stop-active": 1.5,
    "stop-standby": 1.5,
    "cut": 3.0,
    "one-sided": 2.0,
    "reset": 4.0,
    "slow-link": 1.0,
    "slow-disk-active": 1.0,
    "slow-disk-standby": 1.0,
    "hang-disk-active": 0.5,
    "hang-disk-standby": 0.5,
    "flip-active": 1.5,
    "flip-standby": 1.5,
    "digest-active": 1.5,
    "digest-standby": 0.7,
    "misdirect-active": 1.0,
    "misdirect-standby": 1.0,
    "eio-active": 1.5,
    "enospc-active": 1.0,
    "eio-standby": 1.0,
    "enospc-standby": 1.0,
    "read-eio-active": 0.7,
    "journal-fails": 0.7,
    "metadata-fails-active": 0.4,
    "metadata-fails-standby": 0.4,
    "flush-fails-active": 0.4,
    "flush-fails-standby": 0.4,
    "replace-active": 0.2,
    "replace-standby": 0.7,
    "rollback-standby": 1.0,
    "rollback-active": 0.25,
    "forget-dirty": 0.7,
    "power-in-turn": 1.0,
    "wrong-active": 0.5,
    "swap-volumes": 0.7,
    "strange-volume": 0.3,
    "resized-volume": 0.3,
    "grow": 1.5,
}
"""Every fault there is, with its weight in the storm."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """How long things take."""

    disk_ns: int  # an apply or a read
    disk_ns_per_kib: int
    flush_ns: int
    metadata_ns: int
    link_ns: int  # one way
    link_ns_per_kib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(SwarmProfile):
    """Everything a seed decides at the start."""

    speeds: Speeds
    growth_bytes: int  # most that a volume grows in all

    def device_bytes(self, volume: int) -> int:
        """Of the devices below that volume: what it may become, and a block more for who makes it larger."""
        return self.sizes_bytes[volume] + self.growth_bytes + BLOCK_BYTES


def draw_profile(random: Random) -> Profile:
    """All of a seed's decisions, in a fixed order."""
    large = random.random() < 0.06
    sizes = tuple(_size(random, large=large) for _ in range(1 if large else random.choice((1, 1, 1, 2, 3))))
    enabled = draw_faults(random, FAULTS)
    return Profile(
        sizes_bytes=sizes,
        options=_options(random),
        speeds=_speeds(random),
        habits=_habits(random, large=large),
        start=random.choices(START_KINDS, (4, 2, 3, 2))[0],
        faults=enabled,
        storm_ns=between(random, 2 * NS_PER_S, 30 * NS_PER_S),
        ambush=random.choice((0.0, 0.05, 0.15, 0.3)),
        cache_keep=random.choice((None, None, 0.0, 0.5, 1.0)),
        safety_ns=random.randrange(40, 120) * NS_PER_S,
        restart_ns=between(random, NS_PER_S // 10, 8 * NS_PER_S),
        growth_bytes=between(random, 1, 512) * SECTOR_BYTES,
    )


def _size(random: Random, *, large: bool) -> int:
    blocks = between(random, 3000, 36000) if large else between(random, 4, 120)
    tail = random.choice((0, 0, SECTOR_BYTES * random.randrange(8)))
    return blocks * BLOCK_BYTES + tail


def _options(random: Random) -> VolumeOptions:
    level, at_bound = random.choices(
        (("sync", "throttle"), ("async", "throttle"), ("async", "fall-behind")), (60, 12, 28)
    )[0]
    lag_ns_max = 5 * NS_PER_S if at_bound == "throttle" else 10 * NS_PER_MS
    return VolumeOptions(
        level=level,
        at_bound=at_bound,
        lag_bytes=random.choice((1, 1, 2, 64)) * MIB,
        lag_ns=between(random, NS_PER_MS // 5, lag_ns_max),
        intent_window_bytes=random.choice((4, 4, 8, 64)) * MIB,
        inflight_bytes=random.choice((1, 1, 16)) * MIB,
        tickets_max=random.choice((1, 4, 64, 4096)),
        latency_goal_ns=between(random, NS_PER_MS // 2, 20 * NS_PER_MS),
        peer_deadline_ns=random.choice((2, 5, 20)) * NS_PER_S,
        flush_after_ns=between(random, NS_PER_S // 10, 5 * NS_PER_S),
        digests=random.random() < 0.85,
        scrub_interval_ns=random.choice((0, 1, 5, 20)) * NS_PER_S,
    )


def _speeds(random: Random) -> Speeds:
    return Speeds(
        disk_ns=between(random, 20 * NS_PER_US, 3 * NS_PER_MS),
        disk_ns_per_kib=between(random, 100, 10_000),
        flush_ns=between(random, 100 * NS_PER_US, 30 * NS_PER_MS),
        metadata_ns=between(random, 50 * NS_PER_US, 5 * NS_PER_MS),
        link_ns=between(random, 30 * NS_PER_US, 20 * NS_PER_MS),
        link_ns_per_kib=between(random, 500, 60_000),
    )


def _habits(random: Random, *, large: bool) -> Habits:
    kinds = draw_kinds(random)
    return Habits(
        depth=random.choice((1, 2, 4, 8, 16)),
        burst_requests=between(random, 2, 40),
        idle_ns=between(random, NS_PER_S, 8 * NS_PER_S),
        think_ns=between(random, 10 * NS_PER_US, 20 * NS_PER_MS),
        ops_max=random.choice((1, 1, 2, 4)),
        op_sectors_max=random.choice((128, 2048)) if large else random.choice((1, 8, 16, 64)),
        flush_share=random.choice((0.0, 0.02, 0.1, 0.3)),
        fua_share=random.choice((0.0, 0.0, 0.05, 0.3)),
        hot_share=random.choice((0.0, 0.5, 0.9)),
        aligned=random.random() < 0.4,
        kinds=kinds,
    )
