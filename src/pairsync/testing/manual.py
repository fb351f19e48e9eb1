"""Two hosts driven by hand: the pure sessions over disks in memory, where nothing ends by itself.

A `ManualHost` files every effect of its session into a queue (a *lane*) and keeps it there until somebody
calls `ManualHost.complete`; a `ManualPair` keeps what one host has sent until somebody calls
`ManualPair.deliver`.  So a test, or a transcript (``testing.scenario``), decides about every order that the
contract of ``core.effects`` leaves open, and may crash a host between any two steps.

Lanes of a volume, as the shell has them:

``disk``
    `Apply`, `Read`, `Examine`, `Extend`, `MakePoint` and `DropPoints`, one after the other;
``meta``
    `Journal`, `SavePages` and `Persist`, one after the other;
``side``
    `Flush` and `MapAllocation`, in any order, beside the others.

What is written is in the page cache; it is durable when a flush that was issued after it has ended (or with
FUA).  `ManualHost.crash` keeps the page cache or loses it.  The metadata is what ``storage.metadata`` keeps:
superblock, bitmap pages, two journal segments.  Breaking the contract raises `InternalError`.

Deterministic; no clock, no random source, no input or output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from pairsync.core.effects import (
    Apply,
    AskAlone,
    Complete,
    DiskFailed,
    DropPoints,
    DropSession,
    Effect,
    Emit,
    Examine,
    Extend,
    Flush,
    Journal,
    MakePoint,
    MapAllocation,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.events import Event
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Message, PointMark, Role, WriteOp
from pairsync.core.questions import FAN_OUT, Examined
from pairsync.core.resync import Found
from pairsync.core.session import Session
from pairsync.core.setup import VolumeSetup
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, block_count_of
from pairsync.errors import InternalError

from .manualdisk import PAIR_ID, ManualDisk, ManualMetadata, blank_superblock
from .tree import digests_of

__all__ = ["LANES", "ManualDisk", "ManualHost", "ManualMetadata", "ManualPair", "blank_superblock"]

LANES = ("disk", "meta", "side")

QUIET_ROUNDS_MAX = 100_000
"""Steps of `ManualPair.settle` before it is taken for a loop that makes no progress."""

_Waiting: TypeAlias = (
    Apply
    | Read
    | Examine
    | Extend
    | MakePoint
    | Journal
    | SavePages
    | Persist
    | Flush
    | MapAllocation
    | DropPoints
)
_LANE_OF: dict[type, str] = {
    **dict.fromkeys((Apply, Read, Examine, Extend, MakePoint, DropPoints), "disk"),
    **dict.fromkeys((Journal, SavePages, Persist), "meta"),
    **dict.fromkeys((Flush, MapAllocation), "side"),
}


class ManualHost:
    """One host: its session while it is up, its disks and metadata for ever."""

    def __init__(
        self,
        name: str,
        superblocks: Sequence[Superblock],
        options: VolumeOptions,
        draw_tag: Callable[[], int],
    ) -> None:
        self.name = name
        self.disks = [ManualDisk(block.size_bytes) for block in superblocks]
        self.metadata = [ManualMetadata(block) for block in superblocks]
        self.options = options
        self.now_ns = 0
        self.outbox: deque[Message] = deque()  # sent, and not delivered
        self.completed: list[Complete] = []
        self.events: list[Event] = []
        self.drop: DropSession | None = None  # the session is to be ended
        self.trace: list[Effect] = []  # everything the session wanted, in order
        self.linked = False
        self.disk_failures: list[DiskFailed] = []
        self.asked_alone = 0  # times that it wanted to go on without its peer
        self._session: Session | None = None
        self._draw_tag = draw_tag
        self._lanes: dict[tuple[int, str], deque[_Waiting]] = {}

    @property
    def up(self) -> bool:
        """Whether its process runs."""
        return self._session is not None

    @property
    def session(self) -> Session:
        """The session machine; `InternalError` while the host is down."""
        if self._session is None:
            raise InternalError(f"host {self.name} is down")
        return self._session

    # ------------------------------------------------------------------ life

    def start(self, role: Role, term: int, *, arbitrated: bool = False) -> None:
        """Start the process: recover, and open the session."""
        if self._session is not None:
            raise InternalError(f"host {self.name} is up already")
        self._lanes = {(v, lane): deque() for v in range(len(self.disks)) for lane in LANES}
        setups = [
            VolumeSetup(
                each.superblock,
                each.recovered(),
                self.options,
                each.generation_max + 1,
                list(each.points),
                each.given,
            )
            for each in self.metadata
        ]
        self._session = Session(
            guest="guest",
            pair_id=PAIR_ID,
            role=role,
            term=term,
            boot_id="boot",
            volumes=setups,
            draw_tag=self._draw_tag,
            arbitrated=arbitrated,
        )
        self.perform()

    def crash(self, *, power: bool) -> None:
        """The process is gone with all that was queued; ``power``: the page cache too."""
        self._session = None
        self._lanes = {}
        self.outbox.clear()
        self.linked = False
        self.drop = None
        if power:
            for disk in self.disks:
                disk.power_cut()

    # ------------------------------------------------------------------ effects

    def perform(self) -> None:
        """File what the session wants; what needs no waiting is done at once."""
        while self._session is not None and (effects := self._session.take()):
            self.trace += effects
            for effect in effects:
                self._file(effect)

    def _file(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            if self.linked:
                self.outbox.extend(effect.messages)
        elif isinstance(effect, Complete):
            self.completed.append(effect)
        elif isinstance(effect, Emit):
            self.events.append(effect.event)
        elif isinstance(effect, DropSession):
            if self.linked:
                self.drop = effect
            if effect.refused:
                self.session.dropped(self.now_ns)
        elif isinstance(effect, AskAlone):
            self.asked_alone += 1
        elif isinstance(effect, DiskFailed):
            self.disk_failures.append(effect)
        else:
            self._lanes[effect.volume, _LANE_OF[type(effect)]].append(effect)

    def waiting(self, lane: str, volume: int = 0) -> Sequence[_Waiting]:
        """What is under way in a lane, oldest first."""
        return tuple(self._lanes.get((volume, lane), ()))

    @property
    def busy(self) -> list[tuple[str, int]]:
        """Lanes, with their volumes, in which something is under way."""
        return [(lane, volume) for (volume, lane), queue in self._lanes.items() if queue]

    def complete(self, lane: str, volume: int = 0, *, error: int = 0, at: int = 0) -> Effect:
        """Perform the oldest effect of a lane and report it; ``at`` picks another one, in ``side`` only."""
        if at and lane != "side":
            raise InternalError(f"lane {lane} is strictly in order")
        queue = self._lanes[volume, lane]
        if at >= len(queue):
            raise InternalError(f"host {self.name}: nothing is under way in lane {lane}")
        effect = queue[at]
        del queue[at]
        self._complete(effect, error)
        self.perform()
        return effect

    def _complete(self, effect: _Waiting, error: int) -> None:
        session, now_ns, volume = self.session, self.now_ns, effect.volume
        disk = self.disks[volume]
        if isinstance(effect, Apply):
            if not error:
                disk.apply(effect.ops)
            session.applied(volume, effect.token, [error] * len(effect.ops) if error else None, now_ns)
        elif isinstance(effect, Read):
            if error:
                session.read_failed(volume, effect.number, error, now_ns)
            else:
                found = [disk.find(extent) for extent in effect.extents]
                ops = [op for _, part in found for op in part]
                covered = [part for part, _ in found]
                answer = Found(covered, ops, [bad for part in covered for bad in disk.bad(*part)])
                session.read_done(volume, effect.number, answer, now_ns)
        elif isinstance(effect, Examine):
            count = block_count_of(len(disk.content))
            digests = digests_of(disk.leaf, count, effect.level, effect.first, effect.stop)
            blocks = range(*(node * FAN_OUT**effect.level for node in (effect.first, effect.stop)))
            bad = disk.wrong(blocks.start, min(blocks.stop, count)) if effect.read else ()
            session.examined(volume, effect.token, error or Examined(digests, bad), now_ns)
        elif isinstance(effect, Extend):
            session.extended(volume, effect.token, effect.size_bytes, error, now_ns)
        elif isinstance(effect, Journal | SavePages | Persist):
            self._complete_metadata(effect, error)
        elif isinstance(effect, Flush):
            if not error:
                disk.durable[:] = disk.content
                if effect.milestone is not None and self.options.digests:
                    self.metadata[volume].given = effect.milestone
            session.flushed(volume, effect.token, error, now_ns)
        else:
            self._complete_more(effect, error)

    def _complete_more(self, effect: MapAllocation | MakePoint | DropPoints, error: int) -> None:
        disk, metadata = self.disks[effect.volume], self.metadata[effect.volume]
        if isinstance(effect, MapAllocation):
            runs = [(block, block + 1) for block in sorted(disk.written)]
            self.session.mapped(effect.volume, effect.token, runs, self.now_ns)
        elif isinstance(effect, MakePoint):
            if not error:
                metadata.remember(effect.mark, disk.content)
            self.session.point_made(effect.volume, effect.token, error, self.now_ns)
        else:
            if not error:
                metadata.keep_points(effect.keep)
            self.session.points_dropped(effect.volume, effect.token, error)

    def _complete_metadata(self, effect: Journal | SavePages | Persist, error: int) -> None:
        session, now_ns, volume = self.session, self.now_ns, effect.volume
        metadata = self.metadata[volume]
        if isinstance(effect, Journal):
            if not error:
                metadata.append(effect)
            session.journaled(volume, effect.token, error, now_ns)
        elif isinstance(effect, SavePages):
            if not error:
                metadata.save(effect)
            session.saved(volume, effect.token, error, now_ns)
        else:
            if not error:
                metadata.superblock = effect.superblock
                self.disks[volume].enlarge(effect.superblock.size_bytes)
            session.persisted(volume, effect.token, error, now_ns)

    # ------------------------------------------------------------------ the guest's side

    def write(self, owner: object, ops: Sequence[WriteOp], volume: int = 0) -> None:
        """A batch of the guest; ``owner`` comes back in `completed`."""
        self.session.sources[volume].write(owner, ops, self.now_ns)
        self.perform()

    def flush(self, owner: object, volume: int = 0) -> None:
        """A flush of the guest."""
        self.session.sources[volume].flush(owner, self.now_ns)
        self.perform()

    def make_point(self, owner: object, mark: PointMark, volume: int = 0) -> None:
        """Make a point."""
        self.session.sources[volume].points.make(owner, mark)
        self.session.sources[volume].advance(self.now_ns)
        self.perform()

    def drop_point(self, owner: object, name: str, volume: int = 0) -> None:
        """Drop it."""
        self.session.sources[volume].points.drop(owner, name)
        self.perform()

    def grow(self, owner: object, size_bytes: int, volume: int = 0) -> None:
        """The volume is to have that size."""
        source = self.session.sources[volume]
        source.growth.ask(owner, size_bytes)
        source.advance(self.now_ns)
        self.perform()

    def close(self, owner: object, volume: int = 0) -> None:
        """Close the volume in order."""
        self.session.sources[volume].close(owner, self.now_ns)
        self.perform()


class ManualPair:
    """Host ``a`` and host ``b``, and the link between them."""

    def __init__(self, size_bytes: int, options: VolumeOptions | None = None, *, volumes: int = 1) -> None:
        self._tags = 0
        names = ["vda", "vdb", "vdc"][:volumes]
        self.now_ns = 0
        self.linked = False
        self.a, self.b = (
            ManualHost(
                host,
                [blank_superblock(name, size_bytes) for name in names],
                options or VolumeOptions(),
                self._tag,
            )
            for host in "ab"
        )

    def _tag(self) -> int:
        self._tags += 1
        return self._tags

    def host(self, name: str) -> ManualHost:
        """``a`` or ``b``."""
        if name not in {"a", "b"}:
            raise InternalError(f"no host {name!r}")
        return self.a if name == "a" else self.b

    def other(self, host: ManualHost) -> ManualHost:
        """The peer of ``host``."""
        return self.b if host is self.a else self.a

    # ------------------------------------------------------------------ the link

    def connect(self) -> None:
        """The link agrees on a session."""
        self.linked = self.a.linked = self.b.linked = True
        for host in (self.a, self.b):
            host.session.connected(self.now_ns)
            host.perform()

    def cut(self, reason: str = "cut") -> None:
        """The link's session ends; what was not delivered is lost."""
        self.linked = False
        for host in (self.a, self.b):
            host.outbox.clear()
            host.linked = False
            host.drop = None
        for host in (self.a, self.b):
            if host.up:
                host.session.lost(reason, self.now_ns)
                host.perform()

    def deliver(self, sender: ManualHost, count: int = 1) -> list[Message]:
        """Hand over the oldest ``count`` messages of ``sender``, as one batch."""
        if count > len(sender.outbox):
            raise InternalError(f"host {sender.name} has sent {len(sender.outbox)} messages")
        messages = [sender.outbox.popleft() for _ in range(count)]
        receiver = self.other(sender)
        receiver.session.received(messages, self.now_ns)
        receiver.perform()
        return messages

    def crash(self, host: ManualHost, *, power: bool = False) -> None:
        """``host`` dies; its peer sees the link go."""
        host.crash(power=power)
        if self.linked:
            self.cut(f"host {host.name} is gone")

    # ------------------------------------------------------------------ time

    def tick(self, duration_ns: int) -> None:
        """Let time pass; both sessions look at their deadlines."""
        self.now_ns += duration_ns
        for host in (self.a, self.b):
            host.now_ns = self.now_ns
            if host.up:
                host.session.tick(self.now_ns)
                host.perform()

    def step(self) -> bool:
        """One thing that can happen without faults, always the same one; False if there is none."""
        for host in (self.a, self.b):
            if host.busy:
                host.complete(*host.busy[0])
                return True
        for host in (self.a, self.b):
            if host.outbox and self.other(host).up:
                self.deliver(host, len(host.outbox))
                return True
        dropping = self.a.drop or self.b.drop
        if dropping is not None:
            self.cut(dropping.reason)
            return True
        return False

    def settle(self) -> None:
        """Let everything happen that can happen without time passing."""
        for _ in range(QUIET_ROUNDS_MAX):
            if not self.step():
                return
        raise InternalError("the pair does not come to rest")

    # ------------------------------------------------------------------ questions

    def differing(self, volume: int = 0) -> list[int]:
        """Blocks whose contents differ; what one volume has more than the other counts as zero there."""
        left, right = bytes(self.a.disks[volume].content), bytes(self.b.disks[volume].content)
        size = max(len(left), len(right))
        left, right = left.ljust(size, b"\0"), right.ljust(size, b"\0")
        return [
            block
            for block in range(block_count_of(size))
            if left[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            != right[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        ]

    def forgotten(self, volume: int = 0) -> list[int]:
        """Differing blocks that a crash of the active host right now would not find in its dirty map."""
        for host in (self.a, self.b):
            if host.up and host.session.role is Role.ACTIVE:
                recovered = host.metadata[volume].recovered()
                return [block for block in self.differing(volume) if block not in recovered]
        return []
