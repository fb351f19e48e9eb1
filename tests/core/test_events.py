"""Events: one plain sentence for people, one stable name for scripts."""

from __future__ import annotations

import typing

import pytest

from pairsync.core import events
from pairsync.core.events import (
    AloneEvent,
    BehindEvent,
    DifferenceEvent,
    DiscordEvent,
    Event,
    FenceEvent,
    GrantEvent,
    GrowFailedEvent,
    GrownEvent,
    InSyncEvent,
    NoWayBackEvent,
    OverlayDroppedEvent,
    OverlayKeptEvent,
    PathEvent,
    PeerEvent,
    PointEvent,
    ProgressEvent,
    RefusedEvent,
    ResyncEvent,
    ScrubEvent,
    ScrubFindingEvent,
    TimingEvent,
    TroubleEvent,
    TwoTruthsEvent,
)

SENTENCES: list[tuple[Event, str, str]] = [
    (PeerEvent(connected=True, reason="same"), "connected", "peer connected: same"),
    (PeerEvent(connected=False, reason="cut"), "peer-lost", "peer lost: cut"),
    (PathEvent("p0", up=True, reason="agreed"), "path", "path p0 is up: agreed"),
    (PathEvent("p0", up=False, reason="silent"), "path", "path p0 is down: silent"),
    (PathEvent("p0", up=True, reason=""), "path", "path p0 is up"),
    (
        ResyncEvent("vda", "full", "standby-blank", 7),
        "resync",
        "vda: full resync of 7 blocks (standby-blank)",
    ),
    (
        ProgressEvent("vda", 0.256, 4096, 3 * 2**20, 61.4),
        "progress",
        "vda: 25.6 % in sync, 3 MiB/s, 61 s left",
    ),
    (ProgressEvent("vda", 1.0, 0, 0.0, None), "progress", "vda: 100.0 % in sync, 0 MiB/s"),
    (GrownEvent("vda", 8192, 4096), "grown", "vda: has grown from 4096 to 8192 bytes"),
    (
        GrowFailedEvent("vda", 8192, "here", "ENOSPC"),
        "grow-failed",
        "vda: cannot grow to 8192 bytes here: ENOSPC",
    ),
    (
        GrowFailedEvent("vda", 8192, "peer", "EIO"),
        "grow-failed",
        "vda: cannot grow to 8192 bytes on the peer: EIO",
    ),
    (InSyncEvent("vda", "1.2/03"), "in-sync", "vda: in sync at generation 1.2/03"),
    (
        AloneEvent("vda", "1.2/03"),
        "alone",
        "vda: continues without the peer as generation 1.2/03",
    ),
    (BehindEvent("vda", 4096, 2_500_000_000), "behind", "vda: the peer is 4096 bytes and 2.5 s behind"),
    (
        DifferenceEvent("vda", 3, 17),
        "difference",
        "vda: 3 blocks differ unnoticed, the first is 17",
    ),
    (
        OverlayKeptEvent("vda", "3", 2, 8192),
        "overlay-kept",
        "vda: 2 blocks that were written here alone are kept as overlay 3",
    ),
    (
        OverlayDroppedEvent("vda", "3", 1_800_000_000, 8192, "the disk is full"),
        "overlay-dropped",
        "vda: overlay 3 is dropped to make room: the disk is full",
    ),
    (
        NoWayBackEvent("vda", "the disk is full"),
        "no-way-back",
        "vda: no way back to the last consistent point any more: the disk is full",
    ),
    (
        ScrubFindingEvent("vda", 7, "here", repair=True),
        "scrub-finding",
        "vda: block 7 is wrong here; it is repaired",
    ),
    (
        ScrubFindingEvent("vda", 7, "both", repair=True),
        "scrub-finding",
        "vda: block 7 is wrong on both hosts",
    ),
    (
        ScrubFindingEvent("vda", 7, "different", repair=False),
        "scrub-finding",
        "vda: block 7 is not the same on the two hosts",
    ),
    (ScrubEvent("vda", 4096, 2.04, 0, 0), "scrub", "vda: scrubbed in 2.0 s: all well"),
    (
        ScrubEvent("vda", 4096, 2.0, 3, 2),
        "scrub",
        "vda: scrubbed in 2.0 s: 3 blocks were wrong, 2 repaired",
    ),
    (PointEvent("vda", "monday", on_peer=True), "point", "vda: point monday made, on both hosts"),
    (PointEvent("vda", "monday", on_peer=False), "point", "vda: point monday made, on this host only"),
    (RefusedEvent("diverged", "both wrote"), "refused", "refused (diverged): both wrote"),
    (TroubleEvent("vda", fatal=False, reason="EIO"), "trouble", "vda: EIO"),
    (TroubleEvent("vda", fatal=True, reason="EIO"), "trouble", "vda: stopped: EIO"),
    (
        GrantEvent(2, 3, "here", ("here",), sole=True),
        "grant",
        "grant 2.3: this host owns the guest, and it decides alone; the replica here is in sync",
    ),
    (TwoTruthsEvent("1.1", "1.2"), "two-truths", "two truths: here 1.1; there 1.2"),
    (TimingEvent("ok", "", 1.0), "timing", "the failover time is kept again, with a reserve"),
    (TimingEvent("warn", "so", 1.0), "timing", "the failover time is hardly kept any more: so"),
    (TimingEvent("broken", "so", None), "timing", "the failover time is not kept any more: so"),
    (
        DiscordEvent(5.0, 2.0),
        "discord",
        "failover_s is 5 here and 2 on the other host: the standby is left out until they are the same",
    ),
    (DiscordEvent(5.0, None), "discord", "both hosts have a failover time of 5 s"),
    (FenceEvent("begun", "silent"), "fence", "fencing: the other host is being turned off: silent"),
    (FenceEvent("proven", "off"), "fence", "fencing: the other host was turned off: off"),
    (FenceEvent("failed", "no"), "fence", "fencing: the other host could not be turned off: no"),
    (FenceEvent("ready", "on"), "fence", "fencing: the fence agent works: on"),
    (FenceEvent("unready", "no"), "fence", "fencing: the fence agent does not work: no"),
]


@pytest.mark.parametrize(("event", "kind", "sentence"), SENTENCES, ids=lambda value: type(value).__name__)
def test_an_event_is_a_sentence_and_a_name(event: Event, kind: str, sentence: str) -> None:
    assert event.kind == kind
    assert event.describe() == sentence


def test_every_event_is_told_here_and_in_the_union() -> None:
    defined = {name for name in events.__all__ if name != "Event"}
    assert {type(event).__name__ for event, _, _ in SENTENCES} == defined
    assert {kind.__name__ for kind in typing.get_args(Event)} == defined
