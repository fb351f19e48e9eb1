"""What the two hosts send each other, seen from outside.

* ``mixture`` (DESIGN rule 3): a standby that calls itself consistent is written only in a session that has
  brought it up to date; before anything else touches it, it says SYNCING, durably.
* ``unrecorded`` (rules 7, 8): what a resync sends, and is not the same there, is durably in a dirty map or a
  log: the standby may lose the block and keep its digest.
* ``refused`` (rule 9): a session that was refused has changed nothing on the standby.
* ``lag``: at level ``async`` what is acknowledged and not on the standby stays within the bound, in bytes and
  in time.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from pairsync.core.effects import Apply
from pairsync.core.messages import Condition, Generation, Write
from pairsync.core.standing import Phase
from pairsync.core.tracker import ops_bytes
from pairsync.core.units import BLOCK_BYTES, NS_PER_S
from pairsync.core.window import FRAME_DATA_BYTES_MAX, GATHER_DATA_BYTES_MAX

if TYPE_CHECKING:
    from .host import SimHost
    from .world import World

__all__ = ["StreamChecks"]

LAG_SLACK_NS = NS_PER_S
"""Bounds of ``async`` are looked at with every tick, twice a second; the simulated disks finish late."""

_JOINED = (Phase.ADOPTING, Phase.CONFIRMING, Phase.IN_SYNC)
_ADOPTED = (Phase.CONFIRMING, Phase.IN_SYNC)


class _Sent(NamedTuple):
    """A write on its way to the standby."""

    ops: object
    phase: Phase  # of the peer when it was sent
    lineage: tuple[Generation, ...]  # the active's
    data_bytes: int
    sent_ns: int
    live: bool  # a write of the guest, not of a resync


class StreamChecks:
    """See the module."""

    def __init__(self, world: World, volume_count: int) -> None:
        self._world = world
        self._lag: list[deque[_Sent]] = [deque() for _ in range(volume_count)]  # writes the standby lacks
        self._began_ns = 0  # the active's present session, or its last one
        self._applies_before = [0] * volume_count  # of the standby, when its present session began
        # What the active knew when it sent each write that is on its way: by identity of its ops, which
        # are kept here so that no identity is used twice.
        self._notes: dict[int, _Sent] = {}
        habits = world.profile.habits  # what the guest may have asked for before it is made to wait
        self.batch_bytes = habits.ops_max * min(FRAME_DATA_BYTES_MAX, max(world.profile.sizes_bytes))

    def _fail(self, rule: str, volume: int, text: str) -> None:
        self._world.fail(rule, f"volume {volume}: {text}")

    def session_begins(self, host: SimHost) -> None:
        """A session of the link has begun at that host."""
        if host is self._world.active:
            self._began_ns = self._world.clock.now
        if host is self._world.standby:
            self._applies_before = [replica.applies_asked for replica in host.replicas]

    def refused(self) -> None:
        """A session was refused by what the two hosts said of themselves."""
        if not self._world.link.opened:  # the standby has not begun it
            return
        for volume, replica in enumerate(self._world.standby.replicas):
            if replica.applies_asked != self._applies_before[volume]:
                self._fail("refused", volume, "the standby was written to in a session that was refused")

    def write_leaves(self, message: Write) -> None:
        """The active sends it: what does it know?"""
        session = self._world.active.session
        if session is not None:
            standing = session.sources[message.volume].standing
            sent = _Sent(
                message.ops,
                standing.phase,
                standing.superblock.lineage,
                ops_bytes(message.ops),
                self._world.clock.now,
                not message.resync,
            )
            self._notes[id(message.ops)] = sent
            self._lag[message.volume].append(sent)
            if message.resync and self._world.link.whole:  # else nobody is there any more who could write it
                self._check_recorded(message)

    def _check_recorded(self, message: Write) -> None:
        volume, differences = message.volume, self._world.checker.differences
        both = [host.replicas[volume].metadata for host in self._world.hosts]
        for op in message.ops:
            for block in range(op.offset // BLOCK_BYTES, -(-(op.offset + op.length) // BLOCK_BYTES)):
                if differences.differs(volume, block) and not any(each.covers(block) for each in both):
                    self._fail("unrecorded", volume, f"block {block} is sent, and in no dirty map")

    def check_lag(self, volume: int, phase: Phase) -> None:
        """A write was acknowledged at level ``async``: how much may the peer lack?"""
        options = self._world.profile.options
        # What an earlier session has sent and the standby has not is copied before it counts again.
        lag = [sent for sent in self._lag[volume] if sent.live and sent.sent_ns >= self._began_ns]
        if not lag or phase not in _ADOPTED:
            return
        lacking = sum(sent.data_bytes for sent in lag)
        if lacking > options.lag_bytes + self.batch_bytes + GATHER_DATA_BYTES_MAX:
            self._fail("lag", volume, f"the standby lags by {lacking} bytes, allowed are {options.lag_bytes}")
        acknowledged_ns = max(lag[0].sent_ns, self._world.active.replicas[volume].hung_until_ns)
        age_ns = self._world.clock.now - acknowledged_ns
        if age_ns > options.lag_ns + LAG_SLACK_NS:
            self._fail("lag", volume, f"the standby lags by {age_ns} ns, allowed are {options.lag_ns}")

    def apply_asked(self, host: SimHost, effect: Apply) -> None:
        """The standby is about to write."""
        note = self._notes.pop(id(effect.ops), None)
        if note is None:
            self._fail("mixture", effect.volume, "the standby writes what was not sent")
            return
        block = host.replicas[effect.volume].metadata.superblock
        if block.condition is Condition.SYNCING:
            return
        # What was sent in the bundle in which the peer was found too slow is noted after that.
        accepted = note.lineage[: 1 if note.phase in _JOINED else 2]
        if note.phase is Phase.SYNCING or not block.lineage or block.lineage[0] not in accepted:
            self._fail(
                "mixture",
                effect.volume,
                f"a {block.condition.name} standby is written in a resync ({note.phase.value})",
            )

    def applied(self, volume: int, job: Apply) -> None:
        """The standby has applied a batch."""
        lag = self._lag[volume]
        while lag and lag[0].ops is not job.ops:  # what is before it was lost with its session
            lag.popleft()
        if lag:
            lag.popleft()
