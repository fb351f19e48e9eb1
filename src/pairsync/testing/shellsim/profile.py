"""What a seed draws before it begins: sizes, options, the network, the writer's habits, the faults there are.

What both simulators draw alike is in `pairsync.testing.swarm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from pairsync.core.limits import VolumeOptions
from pairsync.core.units import BLOCK_BYTES, KIB, MIB, NS_PER_MS, NS_PER_S, NS_PER_US
from pairsync.io.config import LinkTimings
from pairsync.testing.disks import SECTOR_BYTES
from pairsync.testing.swarm import START_KINDS, Habits, SwarmProfile, between, draw_faults, draw_kinds

from .network import WireSpeed

__all__ = ["AMBUSHES", "FAULTS", "Profile", "draw_profile"]

FAULTS: dict[str, float] = {
    "crash-active": 3.0,
    "crash-standby": 3.0,
    "crash-both": 1.0,
    "power-active": 3.0,
    "power-standby": 3.0,
    "power-both": 1.5,
    "stop-active": 1.5,
    "stop-standby": 1.5,
    "cut-path": 2.0,
    "cut-one-way": 2.0,
    "cut-all": 3.0,
    "reset-path": 2.0,
    "reset-all": 2.0,
    "slow-link": 1.0,
    "eio-active": 1.5,
    "enospc-active": 1.0,
    "eio-standby": 1.0,
    "enospc-standby": 1.0,
    "read-eio-active": 0.7,
    "metadata-fails-active": 0.7,
    "metadata-fails-standby": 0.7,
    "flush-fails-active": 0.5,
    "flush-fails-standby": 0.5,
    "flip-active": 1.5,
    "flip-standby": 1.0,
    "misdirect-active": 1.0,
    "misdirect-standby": 1.0,
    "replace-standby": 0.8,
    "grow": 1.5,
}
"""Every fault there is, with its weight in the storm."""

AMBUSHES = tuple(fault for fault in FAULTS if fault != "slow-link")
"""Faults that may be sprung at the moment when a volume's peer changes its phase."""

LARGE_SHARE = 0.05
"""Of seeds with a volume that is larger than the write-intent window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(SwarmProfile):
    """Everything a seed decides at the start."""

    timings: LinkTimings
    paths: dict[str, WireSpeed]
    active_dials: bool
    crash_inside: float  # share of crashes that strike in the middle of what a host does with its disks
    growth_bytes: int  # most that a volume grows in all

    def device_bytes(self, volume: int) -> int:
        """Of the devices below that volume, in whole sectors: what it may become."""
        return -(-(self.sizes_bytes[volume] + self.growth_bytes) // SECTOR_BYTES) * SECTOR_BYTES


def draw_profile(random: Random) -> Profile:
    """All of a seed's decisions, in a fixed order."""
    enabled = draw_faults(random, FAULTS)
    large = random.random() < LARGE_SHARE
    names = ("east", "west")[: random.choice((1, 2, 2))]
    return Profile(
        sizes_bytes=tuple(
            _size(random, large=large) for _ in range(1 if large else random.choice((1, 1, 1, 2)))
        ),
        options=_options(random),
        timings=_timings(random),
        paths={name: _speed(random) for name in names},
        active_dials=random.random() < 0.5,
        habits=_habits(random, large=large),
        start=random.choices(START_KINDS, (3, 3, 2, 2))[0],
        faults=enabled,
        storm_ns=between(random, NS_PER_S, 5 * NS_PER_S),
        ambush=random.choice((0.0, 0.1, 0.3)),
        crash_inside=random.choice((0.0, 0.5, 0.9)),
        cache_keep=random.choice((None, None, 0.0, 0.5, 1.0)),
        safety_ns=random.randrange(15, 40) * NS_PER_S,
        restart_ns=between(random, NS_PER_S // 10, 5 * NS_PER_S),
        growth_bytes=between(random, 1, 512) * SECTOR_BYTES,
    )


def _size(random: Random, *, large: bool) -> int:
    return between(random, *((1500, 4000) if large else (4, 80))) * BLOCK_BYTES + random.choice(
        (0, 0, 512, 3 * KIB, 8)
    )


def _options(random: Random) -> VolumeOptions:
    level, at_bound = random.choices(
        (("sync", "throttle"), ("async", "throttle"), ("async", "fall-behind")), (60, 15, 25)
    )[0]
    return VolumeOptions(
        level=level,
        at_bound=at_bound,
        lag_bytes=random.choice((1, 1, 2, 64)) * MIB,
        lag_ns=between(random, NS_PER_MS, 5 * NS_PER_S),
        intent_window_bytes=random.choice((4, 4, 64)) * MIB,
        inflight_bytes=random.choice((2, 16)) * MIB,
        tickets_max=random.choice((1, 4, 64, 4096)),
        latency_goal_ns=between(random, NS_PER_MS // 2, 20 * NS_PER_MS),
        peer_deadline_ns=random.choice((2, 5, 20)) * NS_PER_S,
        flush_after_ns=between(random, NS_PER_S // 10, 5 * NS_PER_S),
        scrub_interval_ns=random.choice((0, 1, 5)) * NS_PER_S,
    )


def _timings(random: Random) -> LinkTimings:
    heartbeat_ns = random.choice((200, 500, 500)) * NS_PER_MS
    return LinkTimings(
        heartbeat_ns=heartbeat_ns,
        silence_ns=heartbeat_ns * random.choice((2, 4)),
        lane_silence_ns=random.choice((3, 10)) * NS_PER_S,
        backoff_first_ns=between(random, 10 * NS_PER_MS, 200 * NS_PER_MS),
        backoff_limit_ns=random.choice((1, 5)) * NS_PER_S,
        handshake_ns=random.choice((1, 5)) * NS_PER_S,
    )


def _speed(random: Random) -> WireSpeed:
    return WireSpeed(
        delay_ns=between(random, 30 * NS_PER_US, 40 * NS_PER_MS),
        jitter_ns=random.choice((0, between(random, NS_PER_US, 5 * NS_PER_MS))),
        ns_per_kib=between(random, 2_000, 400_000),
        window_bytes=between(random, 8 * KIB, 4 * MIB),
        piece_bytes=random.choice((between(random, KIB, 8 * KIB), MIB, MIB)),
    )


def _habits(random: Random, *, large: bool) -> Habits:
    kinds = draw_kinds(random)
    return Habits(
        depth=random.choice((1, 2, 4)),
        burst_requests=between(random, 4, 30),
        idle_ns=between(random, NS_PER_S // 2, 3 * NS_PER_S),
        think_ns=between(random, 100 * NS_PER_US, 20 * NS_PER_MS),
        ops_max=random.choice((1, 1, 2, 4)),
        op_sectors_max=2048 if large else random.choice((1, 8, 16, 64)),
        flush_share=random.choice((0.0, 0.02, 0.1, 0.3)),
        read_share=0.05,
        fua_share=random.choice((0.0, 0.05, 0.3)),
        hot_share=random.choice((0.0, 0.5, 0.9)),
        aligned=random.random() < 0.4,
        kinds=kinds,
    )
