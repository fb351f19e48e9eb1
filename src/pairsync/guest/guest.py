"""A protected guest on one host: the trio shell around the pure session machine.

::

    embedder, NBD ──▶ Volume ──▶ core.Session ──effects──▶ Guest.perform ──▶ lanes (disk), link (peer)
                                      ▲                                            │
                                      └──────────────── reports ◀──────────────────┘

Effects are performed in `guest.performer`, failing disks of a standby are dealt with in `guest.reopen`; this
module is the guest's life and its face.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from pairsync.core.events import Event, PathEvent, ProgressEvent, TroubleEvent
from pairsync.core.messages import Message, Role
from pairsync.core.relay import RELAY_MESSAGES
from pairsync.core.session import Session
from pairsync.core.units import NS_PER_S
from pairsync.errors import BackendError, ConfigError, InternalError
from pairsync.io.link import Link, open_link
from pairsync.io.network import Network, TcpNetwork
from pairsync.io.session import SessionInfo
from pairsync.storage.linux import boot_id

from .config import GuestConfig
from .disks import Disks, Opener, open_disks
from .events import EventHub, Subscription
from .handover import Handover
from .keeping import kept_events
from .performer import Performer
from .relay import GuestRelay
from .reopen import Mender
from .replica import Replica, open_replica
from .roles import CLOSE_S, change_role, finish, halt
from .seam import Arbiter
from .statistics import GuestStatistics, progress_of, statistics_of
from .volume import Volume, volumes_of
from .watch import Ailment

if TYPE_CHECKING:
    from .door import Door

__all__ = ["Arbiter", "Guest", "open_guest"]

_log = logging.getLogger("pairsync.guest")

T = TypeVar("T")

TICK_S = 0.1
"""Between two looks at deadlines and bounds: a fifth of the shortest that is checked."""

PROGRESS_NS = NS_PER_S // 2
"""Between two progress events of a resync."""


class Guest:
    """An open guest; made by `open_guest`.  All methods belong to the trio thread."""

    def __init__(self, config: GuestConfig, disks: Disks, network: Network) -> None:
        self._config = config
        self._disks = disks
        self._network = network
        self._events = EventHub(config.name)
        self._progress_ns = 0  # when progress was last told
        self.closed = False
        self.arbiter: Arbiter | None = None  # who decides whether it may go on without its peer; None: it may
        self.session = self._make_session(config.role, config.term, ill=disks.unopened is not None)
        self.volumes = volumes_of(self, config.volumes, disks.replicas)
        """The guest's volumes, by name."""
        self.handover = Handover(self)
        self._performer = self._make_performer()
        self._nursery: trio.Nursery | None = None  # of the guest's own tasks, while it lives
        self._mender: Mender | None = None  # of a standby
        self._mending = trio.CancelScope()  # of its task
        self.leased: Callable[[], bool] = lambda: True  # this host may answer for the guest now; cheap
        self.paused = False  # nothing is taken: the guest is changing its role; changed by `pause`
        self.leaves_for: Ailment | None = None  # why nothing is taken, until it is a standby, or stays
        self.relay = GuestRelay(self)  # requests of the other host's clients, and of ours to that host
        self.doors: list[Door] = []  # who is told when the guest is served elsewhere
        self._deaf = False  # what the link's session brings is not for us: a disk was or has become ill

    @property
    def serves(self) -> bool:
        """Whether the guest is active here and takes requests, now: a lease may have run out meanwhile."""
        taken = not (self.paused or self.closed or self.leaves_for)
        return taken and bool(self.session.sources) and self.leased()

    def pause(self, paused: bool) -> None:
        """Take nothing for the moment, or go on (called by who changes the role)."""
        self.paused = paused
        self.turn()

    def turn(self) -> None:
        """Who serves the guest, this host or the peer, may have changed."""
        self.relay.serve(self.session.term if self.serves else None)
        for door in self.doors:
            door.turn()
        self.doors = self.doors[1:] + self.doors[:1]  # another one comes first to what room there is

    def start_soon(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run it for as long as the guest is open."""
        if self._nursery is None:
            raise InternalError(f"guest {self.name} does not live")
        self._nursery.start_soon(work, *arguments)

    def _make_session(self, role: Role, term: int, *, ill: bool = False) -> Session:
        config = self._config
        return Session(
            guest=config.name,
            pair_id=config.pair_id,
            role=role,
            term=term,
            boot_id=boot_id(),
            volumes=[] if ill else [replica.setup for replica in self._disks.replicas],
            draw_tag=self.draw_tag,
            arbitrated=self.arbiter is not None,
        )

    def _make_performer(self) -> Performer:
        disks = self._disks
        return Performer(
            self.session,
            disks.replicas,
            disks.lanes,
            self.emit,
            self._ask_alone,
            self.handover.failed,
            self._network.now_ns,
            self.perform,
        )

    def _ask_alone(self) -> None:
        if self.arbiter is not None:
            self.arbiter.ask_alone()

    def leave_for(self, ailment: Ailment | None, *, silent: bool = False) -> None:
        """Take nothing any more because of a disk, and, ``silent``, say and hear nothing; None: go on."""
        self.leaves_for = ailment
        if silent:
            self._performer.leaving = self._deaf = True
        elif self._performer.leaving:  # in a new session: nobody knows what was not said in this one
            self._performer.leaving = False
            self.leave_session("the guest stays on this host")
        self.turn()

    @property
    def name(self) -> str:
        """The guest's name."""
        return self._config.name

    @property
    def role(self) -> Role:
        """Whether it runs here."""
        return self.session.role

    @property
    def link(self) -> Link | None:
        """The link to the peer host."""
        return self._performer.link

    def now_ns(self) -> int:
        """The clock of all that concerns this guest."""
        return self._network.now_ns()

    def volume(self, name: str) -> Volume:
        """The volume of that name; `ConfigError` if there is none."""
        try:
            return self.volumes[name]
        except KeyError:
            known = ", ".join(self.volumes)
            raise ConfigError(f"guest {self.name} has no volume {name!r}; it has {known}") from None

    def replica(self, name: str) -> Replica:
        """This host's replica of that volume, for what lies beside it: overlays, digests."""
        self.volume(name)
        for replica in self._disks.replicas:
            if replica.name == name:
                return replica
        raise BackendError(f"volume {name}: its disk is being opened anew")

    # ------------------------------------------------------------------ events and figures

    def subscribe(self) -> Subscription:
        """A stream of what happens from now on; see `Subscription`."""
        return self._events.subscribe()

    @property
    def in_sync(self) -> bool:
        """Whether every volume is in sync with the peer."""
        return self.session.in_sync

    @property
    def ill(self) -> bool:
        """Whether a disk of this standby has failed and is being opened anew."""
        return bool(self.ailments)

    async def wait_in_sync(self) -> None:
        """Return when every volume is in sync (it may be over a moment later); `ClosedError` if never."""
        with self.subscribe() as subscription:
            while not self.in_sync:
                await subscription.receive()

    @property
    def ailments(self) -> Mapping[str, str]:
        """Why a standby takes no part, by volume; empty while its disks are well."""
        return {} if self._mender is None else self._mender.ailments

    def statistics(self) -> GuestStatistics:
        """A moment's view."""
        return statistics_of(self)

    async def in_data_lane(self, index: int, job: Callable[[], T]) -> T:
        """Run ``job`` between two writes of that volume."""
        return await self._disks.lanes[index].data.run(job)

    def perform(self) -> None:
        """Perform what the session machine wants done; called after every input to it."""
        if self._performer.perform() and self.session.sources:
            for volume in self.volumes.values():
                volume.wake_writers()

    def emit(self, event: Event) -> None:
        """Tell the subscribers, and whoever looks after the disks."""
        if self._mender is not None and isinstance(event, TroubleEvent):
            self._mender.note(event.volume, event.reason)
            self._deaf = True
        if not isinstance(event, ProgressEvent):
            _log.info("%s: %s", self.name, event.describe())
        self._events.publish(event)

    # ------------------------------------------------------------------ the link (io.LinkHandler)

    def connected(self, session: SessionInfo) -> None:
        """The link has a session."""
        _log.info("%s: session over path %s, protocol %d", self.name, session.path, session.protocol)
        self.turn()
        self.relay.connected()
        if self.arbiter is not None:
            self.arbiter.link_up()
        self._deaf = self.paused or self.ill or self._performer.leaving
        if self._deaf:
            return
        self.session.connected(self.now_ns())
        self.perform()

    def received(self, messages: list[Message]) -> None:
        """Messages of the peer."""
        if not RELAY_MESSAGES.isdisjoint(map(type, messages)):
            self.relay.received([each for each in messages if type(each) in RELAY_MESSAGES])
            messages = [each for each in messages if type(each) not in RELAY_MESSAGES]
        if self._deaf or not messages:
            return
        if self._mender is not None:
            self._mender.busy = True
        self.session.received(messages, self.now_ns())
        self.perform()

    def lost(self, reason: str) -> None:
        """The link's session is over."""
        self._deaf = False
        self.session.lost(reason, self.now_ns())
        self.perform()
        self.relay.lost()

    def path_changed(self, path: str, up: bool, reason: str) -> None:
        """A path came up or went down."""
        self.emit(PathEvent(path, up, reason))

    # ------------------------------------------------------------------ life

    def attach(self, link: Link) -> None:
        """Use ``link`` from now on (once)."""
        self._performer.link = link
        link.set_handler(self)

    async def use_threads(self, volume: str) -> None:
        """From now on the disk of that volume may keep its callers waiting, though it lies in memory.

        For devices that change their nature while they are open (`pairsync.testing.faulty`).
        """
        self.volume(volume)
        await self._disks.use_threads(list(self.volumes).index(volume))

    def draw_tag(self) -> int:
        """64 random bits."""
        return int.from_bytes(self._network.entropy(8), "big")

    def draw_fraction(self) -> float:
        """A random number in [0, 1), for back-offs."""
        return int.from_bytes(self._network.entropy(4), "big") / (1 << 32)

    def permitted(self, *, alone: bool, insisted: bool = False) -> None:
        """The grant register has said whether this host may acknowledge without its peer."""
        self.session.permitted(self.now_ns(), alone=alone, insisted=insisted)
        self.perform()

    def start_mending(self, ailments: Sequence[tuple[str, str]] = ()) -> None:
        """Look after the disks from now on: an owner's are left, a standby's mended (``ailments``: known)."""
        self._mending = trio.CancelScope()
        if self.role is Role.ACTIVE:
            self.start_soon(self._mend, partial(self.handover.watch, self._disks), self._mending)
            return
        self._mender = Mender(self, self._disks, ailments)
        self.start_soon(self._mend, self._mender.run, self._mending)

    async def _mend(self, work: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        with scope:
            await work()

    def stop_mending(self) -> None:
        """Leave the disks alone from now on."""
        self._mending.cancel()
        self._mender = None

    def leave_session(self, reason: str) -> None:
        """Begin a new session of the link; what this one still brings is not heard."""
        self._deaf = self.link is not None and self.link.session is not None
        if self.link is not None:
            self.link.renew_session(reason)

    def renew(self, role: Role | None = None, term: int = 0, *, ill: bool = False) -> None:
        """Begin anew with disks that have been opened anew: another session machine, the same link.

        In another ``role`` or under a higher ``term``, if given.  ``ill``: its disks are still to be opened.
        """
        link = self.link
        self.leaves_for = None
        # An empty disk has forgotten the term: terms only grow.
        role = self.role if role is None else role
        self.session = self._make_session(role, max(term, self.session.term), ill=ill)
        self._performer = self._make_performer()
        self._performer.link = link
        for replica in () if ill else self._disks.replicas:
            self.volumes[replica.name].use(replica)

    def rejoin(self, reason: str) -> None:
        """Take part again after `renew`, in a new session of the link: in this one the peer was heard."""
        self.perform()
        self.leave_session(reason)

    async def halt(self, *, in_order: bool, within_s: float = CLOSE_S) -> bool:
        """Serve nothing from now on; see `guest.roles.halt`."""
        return await halt(self, self._disks, in_order=in_order, within_s=within_s)

    async def become(self, role: Role, term: int, *, in_order: bool, in_sync: bool = False) -> bool:
        """Change the role; see `guest.roles.change_role`."""
        return await change_role(self, self._disks, role, term, in_order=in_order, in_sync=in_sync)

    async def _run(self) -> None:
        """Look at bounds and deadlines, and tell how far a resync is."""
        while True:
            await trio.sleep(TICK_S)
            now_ns = self.now_ns()
            if not self._deaf:
                self.session.tick(now_ns)
            self.perform()
            for door in self.doors:
                door.tick(now_ns)
            for kept in kept_events([each.keeper for each in self._disks.replicas]):
                self.emit(kept)
            if now_ns - self._progress_ns >= PROGRESS_NS:
                self._progress_ns = now_ns
                for event in progress_of(self.session.sources, now_ns):
                    self.emit(event)

    async def _close(self) -> None:
        """Flush, and write the exact dirty map; the link tells the peer that it was closed."""
        self.closed = True  # nothing new is taken; what was taken gets its real answer
        self.turn()
        for door in self.doors:
            door.tick(self.now_ns())
        await finish(self)
        self._events.close()


@asynccontextmanager
async def open_guest(
    config: GuestConfig,
    *,
    network: Network | None = None,
    opener: Opener = open_replica,
    opener_may_block: bool = True,
) -> AsyncIterator[Guest]:
    """Open a guest on this host: its replicas, its link, its tasks; closed in order when the block is left.

    ``network`` and ``opener`` replace sockets, clock and disks (the simulator does); one that may block is
    called in a thread.  A standby whose disks cannot be opened, or not soon, is open without, and its
    `ailments` say why.  Raises `ConfigError` for settings that cannot be, `BusyError`, and where the guest is
    active `MismatchError`, `MetadataError` or `BackendError` where a replica cannot be opened,
    `ArbitrationError` where it may not be.  What is raised in the block comes out as it is; in a group only
    if something else failed beside it.
    """
    world: Network = TcpNetwork() if network is None else network
    stop = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            opening = partial(open_disks, opener=opener, opener_may_block=opener_may_block)
            guest: Guest = await nursery.start(_live, config, world, opening, stop)
            try:
                yield guest
            finally:
                stop.set()
    except BaseExceptionGroup as group:  # our nurseries are nobody else's concern
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from error.__cause__


async def _live(
    config: GuestConfig,
    world: Network,
    opening: Callable[[GuestConfig], AbstractAsyncContextManager[Disks]],
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[Guest],
) -> None:
    """A guest's life, in a task of its own.

    Once it is open, a cancellation from outside does not reach it: lanes and link are needed until the guest
    has been closed in order, which ``stop`` asks for and `CLOSE_S` bounds.
    """
    config.check()
    config = config.shared_out()
    with trio.CancelScope() as scope:
        async with AsyncExitStack() as stack:
            disks = await stack.enter_async_context(opening(config))
            guest = Guest(config, disks, world)
            nursery = guest._nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)  # once the link is closed
            nursery.start_soon(guest._run)  # the guest's own factory
            guest.start_mending([] if disks.unopened is None else [disks.unopened.ailment])
            guest.perform()
            if config.link is not None:
                guest.attach(await stack.enter_async_context(open_link(config.link, network=world)))
            scope.shield = True
            task_status.started(guest)
            await stop.wait()
            await guest._close()
