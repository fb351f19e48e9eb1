"""Bounds of the replication machines, with units and reasons; the options of a volume."""

from __future__ import annotations

from dataclasses import dataclass

from pairsync.errors import ConfigError

from .tracker import WINDOW_BYTES_DEFAULT
from .units import MIB, NS_PER_MS, NS_PER_S

__all__ = ["FLUSH_DEADLINES", "UNAPPLIED_BYTES_MAX", "VolumeOptions"]

FLUSH_DEADLINES = 3
"""So many disk deadlines a flush may take, or a walk over what is allocated: it may have to write a cache of
some hundred megabytes, where any other operation is of one batch."""

UNAPPLIED_BYTES_MAX = 1024 * MIB
"""Data of all volumes of a guest that one host has sent and the other has not applied.  The options of an
active host may not add up to more (``guest.config``); a standby, which holds it in memory, takes a peer that
sends more for broken (``core.intake``)."""


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How a volume is replicated.

    ``level``
        ``sync``: a write is acknowledged when both hosts have it.  ``async``: when this host has it; the
        peer lags by at most ``lag_bytes`` and ``lag_ns``, and by what was let in just before: one batch
        (`guest.config.PART_BYTES_MAX` at most), half a second.
    ``at_bound``
        What happens when it would lag by more: ``throttle`` makes the writer wait, ``fall-behind`` lets
        the writer go on, keeps the blocks in the dirty map and copies them when the link allows.
    ``intent_window_bytes``
        The most that a crash of the active host makes us copy again.
    ``inflight_bytes``
        Data sent and not applied by the peer before writers wait: the bandwidth-delay product of 10 Gbit/s
        at 10 ms is 12.5 MB.
    ``tickets_max``
        Batches of the embedder in the machine at once; further ones wait in order.
    ``latency_goal_ns``
        What a resync lets the guest's writes take before it slows down.
    ``peer_deadline_ns``
        A connected peer that owes an answer for longer is taken for hung, and left.
    ``disk_deadline_ns``
        A disk that takes longer for one operation is taken for hung: a standby leaves, an active host hands
        the guest over.  A flush has `FLUSH_DEADLINES` times as long.  Well below
        ``peer_deadline_ns``: the host that knows the reason should be the first to act.
    ``flush_after_ns``
        Written blocks are made durable on both sides after that time even if the guest never flushes.
    ``digests``
        Whether a digest of each block is kept.  A peer counts as in sync without proof where one host does
        not keep them (DESIGN rule 8).
    ``overlay_bytes``
        Room that overlays may take: the way back of a replica that is being overwritten, and what replicas
        that lost had written on their own.  None: a quarter of the volume, at least 1 GiB.
    ``verify_reads``
        Whether what the guest reads is compared with its digest first; what is wrong is read from the peer,
        and mended.  Costs reads from memory most of their speed.
    ``scrub_interval_ns``
        Between two scrubs that begin by themselves and repair what they find; 0: none does.
    """

    level: str = "sync"
    at_bound: str = "throttle"
    lag_bytes: int = 64 * MIB
    lag_ns: int = 5 * NS_PER_S
    intent_window_bytes: int = WINDOW_BYTES_DEFAULT
    inflight_bytes: int = 16 * MIB
    tickets_max: int = 4096
    latency_goal_ns: int = 10 * NS_PER_MS
    peer_deadline_ns: int = 20 * NS_PER_S
    disk_deadline_ns: int = 5 * NS_PER_S
    flush_after_ns: int = 5 * NS_PER_S
    digests: bool = True
    overlay_bytes: int | None = None
    verify_reads: bool = False
    scrub_interval_ns: int = 7 * 24 * 3600 * NS_PER_S

    @property
    def hang_ns(self) -> int:
        """So long at most a disk that hangs is waited for before it is taken for hung."""
        return FLUSH_DEADLINES * self.disk_deadline_ns

    @property
    def copying_bytes(self) -> int:
        """Data of a resync that may be under way: it leaves the guest a quarter of the window, at ``async``
        half of the bound.  Else it would take all room that is made, and a writer would wait for its end."""
        if self.level == "sync":
            return self.inflight_bytes // 4 * 3
        return min(self.inflight_bytes, self.lag_bytes // 2)

    def __post_init__(self) -> None:
        if self.level not in {"sync", "async"}:
            raise ConfigError(f"acknowledgement level {self.level!r}: sync or async")
        if self.at_bound not in {"throttle", "fall-behind"}:
            raise ConfigError(f"what happens at the bound, {self.at_bound!r}: throttle or fall-behind")
        for name in ("lag_bytes", "inflight_bytes"):
            if getattr(self, name) < MIB:
                raise ConfigError(f"{name} {getattr(self, name)}: at least {MIB}, one message")
        if self.intent_window_bytes < 4 * MIB:
            raise ConfigError(f"intent_window_bytes {self.intent_window_bytes}: at least {4 * MIB}")
        if self.overlay_bytes is not None and self.overlay_bytes < MIB:
            raise ConfigError(f"overlay_bytes {self.overlay_bytes}: at least {MIB}")
        positive = ("lag_ns", "latency_goal_ns", "peer_deadline_ns", "disk_deadline_ns", "flush_after_ns")
        for name in (*positive, "tickets_max"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive")
        if self.verify_reads and not self.digests:
            raise ConfigError("verify_reads needs digests")
        if self.scrub_interval_ns < 0:
            raise ConfigError("scrub_interval_ns must not be negative")
