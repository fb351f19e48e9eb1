"""What happened to a guest's replicas, as typed values for subscribers, logs and people.

``describe()`` is one plain sentence; ``kind`` is a stable name for scripts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

__all__ = [
    "AloneEvent",
    "BehindEvent",
    "DifferenceEvent",
    "DiscordEvent",
    "Event",
    "FenceEvent",
    "GrantEvent",
    "GrowFailedEvent",
    "GrownEvent",
    "InSyncEvent",
    "NoWayBackEvent",
    "OverlayDroppedEvent",
    "OverlayKeptEvent",
    "PathEvent",
    "PeerEvent",
    "PointEvent",
    "ProgressEvent",
    "RefusedEvent",
    "ResyncEvent",
    "ScrubEvent",
    "ScrubFindingEvent",
    "TimingEvent",
    "TroubleEvent",
    "TwoTruthsEvent",
]


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """The peer came or went."""

    connected: bool
    reason: str

    @property
    def kind(self) -> str:
        """``connected`` or ``peer-lost``."""
        return "connected" if self.connected else "peer-lost"

    def describe(self) -> str:
        """One sentence."""
        return f"peer connected: {self.reason}" if self.connected else f"peer lost: {self.reason}"


@dataclass(frozen=True, slots=True)
class PathEvent:
    """A network path came up or went down."""

    kind: ClassVar[str] = "path"
    path: str
    up: bool
    reason: str

    def describe(self) -> str:
        """One sentence."""
        return f"path {self.path} is {'up' if self.up else 'down'}{f': {self.reason}' if self.reason else ''}"


@dataclass(frozen=True, slots=True)
class GrownEvent:
    """``volume`` has ``size_bytes`` now, ``before_bytes`` until then."""

    kind: ClassVar[str] = "grown"
    volume: str
    size_bytes: int
    before_bytes: int

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: has grown from {self.before_bytes} to {self.size_bytes} bytes"


@dataclass(frozen=True, slots=True)
class GrowFailedEvent:
    """``volume`` was to have ``size_bytes`` and cannot: no room ``here``, or at the ``peer``."""

    kind: ClassVar[str] = "grow-failed"
    volume: str
    size_bytes: int
    where: str
    reason: str

    def describe(self) -> str:
        """One sentence."""
        where = "on the peer" if self.where == "peer" else "here"
        return f"{self.volume}: cannot grow to {self.size_bytes} bytes {where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ResyncEvent:
    """A resync of ``volume`` begins: how, by which rule, and how much."""

    kind: ClassVar[str] = "resync"
    volume: str
    mode: str
    rule: str
    blocks: int

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: {self.mode} resync of {self.blocks} blocks ({self.rule})"


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """How far the resync of ``volume`` is; ``remaining_s`` is None while no rate is known."""

    kind: ClassVar[str] = "progress"
    volume: str
    fraction: float
    remaining_bytes: int
    bytes_per_s: float
    remaining_s: float | None

    def describe(self) -> str:
        """One sentence."""
        left = "" if self.remaining_s is None else f", {self.remaining_s:.0f} s left"
        rate = self.bytes_per_s / (1 << 20)
        return f"{self.volume}: {100 * self.fraction:.1f} % in sync, {rate:.0f} MiB/s{left}"


@dataclass(frozen=True, slots=True)
class InSyncEvent:
    """Both replicas of ``volume`` are the same again, and stay so from here on."""

    kind: ClassVar[str] = "in-sync"
    volume: str
    generation: str

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: in sync at generation {self.generation}"


@dataclass(frozen=True, slots=True)
class AloneEvent:
    """A new generation was recorded: writes to ``volume`` are acknowledged without the peer."""

    kind: ClassVar[str] = "alone"
    volume: str
    generation: str

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: continues without the peer as generation {self.generation}"


@dataclass(frozen=True, slots=True)
class BehindEvent:
    """The standby fell further behind than the bound of ``async`` allows: writes go to the dirty map."""

    kind: ClassVar[str] = "behind"
    volume: str
    lag_bytes: int
    lag_ns: int

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: the peer is {self.lag_bytes} bytes and {self.lag_ns / 1e9:.1f} s behind"


@dataclass(frozen=True, slots=True)
class DifferenceEvent:
    """The digests of ``blocks`` differ though no dirty map held them; they are copied now."""

    kind: ClassVar[str] = "difference"
    volume: str
    blocks: int
    first_block: int

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: {self.blocks} blocks differ unnoticed, the first is {self.first_block}"


@dataclass(frozen=True, slots=True)
class OverlayKeptEvent:
    """A resync of ``volume`` is complete, and what this replica had written on its own is kept."""

    kind: ClassVar[str] = "overlay-kept"
    volume: str
    overlay: str
    blocks: int
    data_bytes: int

    def describe(self) -> str:
        """One sentence."""
        return (
            f"{self.volume}: {self.blocks} blocks that were written here alone are kept as overlay "
            f"{self.overlay}"
        )


@dataclass(frozen=True, slots=True)
class OverlayDroppedEvent:
    """Room is needed: this overlay is about to be dropped.  ``created_s`` is Unix time."""

    kind: ClassVar[str] = "overlay-dropped"
    volume: str
    overlay: str
    created_s: int
    data_bytes: int
    reason: str

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: overlay {self.overlay} is dropped to make room: {self.reason}"


@dataclass(frozen=True, slots=True)
class NoWayBackEvent:
    """This replica is being overwritten, and its last consistent point cannot be reached any more."""

    kind: ClassVar[str] = "no-way-back"
    volume: str
    reason: str

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: no way back to the last consistent point any more: {self.reason}"


@dataclass(frozen=True, slots=True)
class ScrubFindingEvent:
    """A block is not what its digest says: ``here``, on the ``peer``, on ``both``; or they are ``different``.

    ``digest``: the digest is what is wrong here.  ``lost``: as ``here``, and the peer cannot help.
    """

    kind: ClassVar[str] = "scrub-finding"
    volume: str
    block: int
    fault: str
    repair: bool

    def describe(self) -> str:
        """One sentence."""
        mended = "; it is repaired" if self.repair and self.fault != "both" else ""
        return f"{self.volume}: block {self.block} {_FAULTS[self.fault]}{mended}"


_FAULTS = {
    "here": "is wrong here",
    "peer": "is wrong on the peer",
    "both": "is wrong on both hosts",
    "different": "is not the same on the two hosts",
    "digest": "has a wrong digest here",
    "lost": "is wrong here, and the peer has no good copy",
}


@dataclass(frozen=True, slots=True)
class ScrubEvent:
    """A scrub has ended."""

    kind: ClassVar[str] = "scrub"
    volume: str
    bytes: int
    seconds: float
    findings: int
    repaired: int

    def describe(self) -> str:
        """One sentence."""
        found = (
            f"{self.findings} blocks were wrong, {self.repaired} repaired" if self.findings else "all well"
        )
        return f"{self.volume}: scrubbed in {self.seconds:.1f} s: {found}"


@dataclass(frozen=True, slots=True)
class PointEvent:
    """A point was made, and is durable; ``on_peer``: on the other host too."""

    kind: ClassVar[str] = "point"
    volume: str
    name: str
    on_peer: bool

    def describe(self) -> str:
        """One sentence."""
        where = "both hosts" if self.on_peer else "this host only"
        return f"{self.volume}: point {self.name} made, on {where}"


@dataclass(frozen=True, slots=True)
class RefusedEvent:
    """A session was refused, by which rule, with the evidence."""

    kind: ClassVar[str] = "refused"
    rule: str
    evidence: str

    def describe(self) -> str:
        """One sentence."""
        return f"refused ({self.rule}): {self.evidence}"


@dataclass(frozen=True, slots=True)
class TroubleEvent:
    """A disk failed; ``fatal`` if the volume serves nothing any more."""

    kind: ClassVar[str] = "trouble"
    volume: str
    fatal: bool
    reason: str

    def describe(self) -> str:
        """One sentence."""
        return f"{self.volume}: {'stopped: ' if self.fatal else ''}{self.reason}"


@dataclass(frozen=True, slots=True)
class GrantEvent:
    """A grant is in force: who owns the guest, and whose replicas are in sync (``here``, ``peer``).

    ``sole``: the owner decides the next one alone.
    """

    kind: ClassVar[str] = "grant"
    term: int
    epoch: int
    owner: str
    in_sync: tuple[str, ...]
    sole: bool

    def describe(self) -> str:
        """One sentence."""
        owner = "this host owns the guest" if self.owner == "here" else "the other host owns the guest"
        both = "both replicas are" if len(self.in_sync) > 1 else f"the replica {self.in_sync[0]} is"
        alone = ", and it decides alone" if self.sole else ""
        return f"grant {self.term}.{self.epoch}: {owner}{alone}; {both} in sync"


@dataclass(frozen=True, slots=True)
class TwoTruthsEvent:
    """Another chain of grants exists: somebody overruled, or memories were put back.  A person chooses."""

    kind: ClassVar[str] = "two-truths"
    ours: str
    theirs: str

    def describe(self) -> str:
        """One sentence."""
        return f"two truths: here {self.ours}; there {self.theirs}"


@dataclass(frozen=True, slots=True)
class TimingEvent:
    """How this host keeps the times of its failover time has changed: ``ok``, ``warn`` or ``broken``.

    ``smallest_failover_s``: the shortest failover time that would hold as things are; None if there is none.
    """

    kind: ClassVar[str] = "timing"
    verdict: str
    reason: str
    smallest_failover_s: float | None

    def describe(self) -> str:
        """One sentence."""
        if self.verdict == "ok":
            return "the failover time is kept again, with a reserve"
        what = "is not kept any more" if self.verdict == "broken" else "is hardly kept any more"
        return f"the failover time {what}: {self.reason}"


@dataclass(frozen=True, slots=True)
class DiscordEvent:
    """The two hosts have different failover times, so the peer is left out; or they are the same again.

    ``theirs_s`` is None when they are.
    """

    kind: ClassVar[str] = "discord"
    ours_s: float
    theirs_s: float | None

    def describe(self) -> str:
        """One sentence."""
        if self.theirs_s is None:
            return f"both hosts have a failover time of {self.ours_s:g} s"
        return (
            f"failover_s is {self.ours_s:g} here and {self.theirs_s:g} on the other host: "
            "the standby is left out until they are the same"
        )


@dataclass(frozen=True, slots=True)
class FenceEvent:
    """Power fencing of the other host: ``begun``, ``proven``, ``failed``, or ``ready`` and ``unready``.

    The latter two are of the agent, which is tried out now and then.
    """

    kind: ClassVar[str] = "fence"
    state: str
    reason: str

    def describe(self) -> str:
        """One sentence."""
        what = {
            "begun": "the other host is being turned off",
            "proven": "the other host was turned off",
            "failed": "the other host could not be turned off",
            "ready": "the fence agent works",
            "unready": "the fence agent does not work",
        }[self.state]
        return f"fencing: {what}: {self.reason}"


Event: TypeAlias = (
    PeerEvent
    | PathEvent
    | ResyncEvent
    | ProgressEvent
    | GrownEvent
    | GrowFailedEvent
    | InSyncEvent
    | AloneEvent
    | BehindEvent
    | DifferenceEvent
    | OverlayKeptEvent
    | OverlayDroppedEvent
    | NoWayBackEvent
    | ScrubFindingEvent
    | ScrubEvent
    | PointEvent
    | RefusedEvent
    | TroubleEvent
    | GrantEvent
    | TwoTruthsEvent
    | TimingEvent
    | DiscordEvent
    | FenceEvent
)
