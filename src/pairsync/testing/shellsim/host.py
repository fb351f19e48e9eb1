"""A simulated host: its disks, and one life after the other of the real guest on them.

A life is one process: `open_guest` over the host's simulated disks and network, in a task tree of its own.
It ends in order (`Life.stop`), or it **dies**: first its disks and its network are dead, then its tasks are
cancelled, so nothing of what they do on their way out reaches anything.  The next life may begin while the
tasks of the last one are still on their way out.

A death may also strike in the middle of what the guest does with its disks (`CrashMedium.strike_in`), where
no other task could have a turn.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import trio

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Effect
from pairsync.core.messages import Message, Role
from pairsync.core.superblock import Superblock
from pairsync.errors import BackendError, PairsyncError
from pairsync.guest.config import GuestConfig, VolumeConfig
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.replica import Replica, recover_replica
from pairsync.storage.digests import OpenedDigests, digests_path, load_digests
from pairsync.storage.file import RawFile
from pairsync.storage.metadata import load_metadata, metadata_path
from pairsync.storage.overlay import Overlays
from pairsync.testing.disks import SECTOR_BYTES, Fault, PowerCut, SimAction, SimMedium, SimOperation
from pairsync.testing.simfiles import SimDirectory, SimGrowingFile

from .damage import LyingFile
from .network import HostNetwork
from .show import show_effect, show_message

if TYPE_CHECKING:
    from .world import World

__all__ = ["Armed", "CrashMedium", "Life", "SimHost"]

_CHANGES = frozenset({SimAction.WRITE, SimAction.ZERO})

CLOSE_S_MAX = 40.0
"""How long closing in order may take: what the guest allows itself, and the farewells."""

ANSWER_S_MAX = 1.0
"""After a guest was closed in order every request has been answered; its caller needs a turn to notice."""


class CrashMedium(SimMedium):
    """A medium whose host may die at any step of it."""

    def __init__(self) -> None:
        super().__init__()
        self._strike: Callable[[], None] | None = None
        self._steps_left = 0

    def strike_in(self, steps: int, strike: Callable[[], None]) -> None:
        """Call ``strike``, which lets the host die, in the middle of the step that comes so much later."""
        self._strike, self._steps_left = strike, steps

    def process_crash(self) -> None:
        """As `SimMedium.process_crash`."""
        self._strike = None
        super().process_crash()

    def advance(self) -> None:
        """As `SimMedium.advance`."""
        super().advance()
        if self._strike is not None:
            self._steps_left -= 1
            if self._steps_left <= 0:
                self._strike()
                raise PowerCut("the host died in the middle of it")


@dataclass(slots=True)
class Armed:
    """Operations that are going to fail: the next ``count`` on data or metadata."""

    kind: str  # the fault, for the count of what was reached
    metadata: bool
    actions: frozenset[SimAction]
    errno: int
    count: int


class Life:
    """One process."""

    def __init__(self, host: SimHost, number: int, network: HostNetwork) -> None:
        self.host = host
        self.number = number
        self.network = network
        self.scope = trio.CancelScope()
        self.stop = trio.Event()  # close in order
        self.ended = trio.Event()  # no task is left
        self.dead = False
        self.opened = False  # its guest was opened
        self.failed = False  # a volume has stopped serving
        self.guest: Guest | None = None  # while it is open
        self.users: trio.Nursery | None = None  # tasks that use it, as long
        self.replicas: dict[str, Replica] = {}  # that were opened last, by name, in the volumes' order

    def serves(self) -> bool:
        """Whether its guest takes requests."""
        return self.guest is not None and not self.dead and not self.stop.is_set()

    def broken(self) -> bool:
        """Whether something of it does not work until the process is started anew: a standby mends itself."""
        if self.failed or self.host.role is Role.STANDBY:
            return self.failed
        if self.guest is not None and any(source.failed for source in self.guest.session.sources):
            return True  # also what failed before anybody listened
        return self.host.suspect or not all(replica.store.sound for replica in self.replicas.values())

    def open_replica(self, volume: VolumeConfig, pair_id: bytes) -> Replica:
        """The opener of `open_guest`."""
        host = self.host
        name = str(volume.path)
        if volume.name in self.replicas and host.suspect:
            host.lose_cache()  # all files are closed
        file = _growing(host.medium, metadata_path(name))
        try:
            opened = load_metadata(file)
        except BaseException:
            file.close()
            raise

        def open_table(block: Superblock, doubtful: DirtyMap) -> OpenedDigests:
            table = _growing(host.medium, digests_path(metadata_path(name)))
            try:
                return load_digests(
                    table, volume_id=block.volume_id, size_bytes=block.size_bytes, doubtful=doubtful
                )
            except BaseException:
                table.close()
                raise

        index, damage = int(name.removeprefix("vd")), host.world.damage
        replica = recover_replica(
            opened,
            lambda size_bytes: RawFile(LyingFile(host.medium, damage, host, index), size_bytes),
            volume,
            pair_id,
            open_table,
            lambda block: Overlays(SimDirectory(host.medium), name, block.size_bytes),
            lambda: int(trio.current_time()),
        )
        self.replicas[volume.name] = replica
        damage.opened(host, index, replica.device)
        self._tap_store(index, replica)
        host.recovered(index, replica)
        return replica

    def _tap_store(self, index: int, replica: Replica) -> None:
        store, host = replica.store, self.host
        write = store.write_superblock

        def write_superblock(superblock: Superblock) -> None:
            host.superblocks[index] = None  # the old one or the new one
            before = store.superblock
            host.world.checker.about_to_write(host, index, before, superblock)
            write(superblock)
            host.superblocks[index] = superblock
            host.world.checker.superblock_written(host, index, before, superblock)

        store.write_superblock = write_superblock  # type: ignore[method-assign]  # listen in, on this one

    def tap(self, guest: Guest) -> None:
        """Listen in on what the guest wants done, and on what it receives."""
        received, renew = guest.received, guest.renew
        trace, name = self.host.world.trace, self.host.name
        self._tap_session(guest)

        def tapped_received(messages: list[Message]) -> None:
            if not self.dead:
                trace.note(name, "received", " ".join(map(show_message, messages)))
            received(messages)

        def tapped_renew(role: Role | None = None, term: int = 0, *, ill: bool = False) -> None:
            renew(role, term, ill=ill)
            self.host.world.reach("reopened")
            trace.note(name, "reopened")
            self._tap_session(guest)

        guest.received = tapped_received  # type: ignore[method-assign]  # listen in, on this one
        guest.renew = tapped_renew  # type: ignore[method-assign]  # the same

    def _tap_session(self, guest: Guest) -> None:
        take = guest.session.take
        trace, name, checker = self.host.world.trace, self.host.name, self.host.world.checker

        def tapped_take() -> list[Effect]:
            effects = take()
            if not self.dead and effects:
                for effect in effects:
                    trace.note(name, type(effect).__name__, show_effect(effect))
                checker.step(self, effects)
            return effects

        guest.session.take = tapped_take  # type: ignore[method-assign]  # listen in, on this one


class SimHost:
    """See the module."""

    def __init__(self, world: World, name: str, role: Role) -> None:
        self.world = world
        self.name = name
        self.role = role
        self.medium = CrashMedium()
        self.medium.fault = self._fault
        self.life: Life | None = None  # the one that is alive, opening or closing
        self.lives = 0
        self.dying: list[Life] = []  # lives that have died, and may have tasks on their way out
        self.superblocks: dict[
            int, Superblock | None
        ] = {}  # durable ones, by volume; None: a write was cut off
        self.armed: list[Armed] = []
        self.suspect = False  # an operation that was to make data durable has failed: the cache is in doubt
        self._networks: list[HostNetwork] = []  # of lives that ended with the power

    # ------------------------------------------------------------------ life

    @property
    def up(self) -> bool:
        """Whether a process is there."""
        return self.life is not None

    @property
    def guest(self) -> Guest | None:
        """The guest, while it is open."""
        return None if self.life is None else self.life.guest

    def start(self, config: GuestConfig) -> None:
        """Begin a life."""
        world = self.world
        self.lives += 1
        for network in self._networks:
            network.machine_restarts()
        self._networks.clear()
        secret = Random(f"{world.seed} {self.name} {self.lives}")  # noqa: S311 - reproducible on purpose
        network = HostNetwork(world.net, world.timers, self.name, secret)
        self.life = Life(self, self.lives, network)
        world.trace.note(self.name, "starts", f"life {self.lives}")
        world.nursery.start_soon(self._live, self.life, config)

    async def _live(self, life: Life, config: GuestConfig) -> None:
        world = self.world
        try:
            with life.scope:
                await self._run(life, config)
        except BaseException as error:  # noqa: BLE001 - sorted in `_judge`, which raises or explains
            self._judge(life, error)
        finally:
            life.guest = None
            life.ended.set()
        if not life.dead and self.life is life:
            self.life = None
            world.trace.note(self.name, "ended", f"life {life.number}")

    async def _run(self, life: Life, config: GuestConfig) -> None:
        world = self.world
        async with trio.open_nursery() as users:
            opening = open_guest(
                config, network=life.network, opener=life.open_replica, opener_may_block=False
            )
            async with opening as guest:
                life.tap(guest)
                life.guest = guest
                life.opened = True
                if guest.ill:
                    world.reach("begins-ill")
                users.start_soon(self._watch, life, guest)
                world.opened(life, users)
                await life.stop.wait()
                closing_since = trio.current_time()
            life.guest = None
            if trio.current_time() - closing_since > CLOSE_S_MAX:
                world.fail("hang", f"{self.name} took {trio.current_time() - closing_since:.0f} s to close")
            users.cancel_scope.deadline = trio.current_time() + ANSWER_S_MAX
        if not life.dead:
            world.closed(life)

    async def _watch(self, life: Life, guest: Guest) -> None:
        """What a subscriber is told."""
        with guest.subscribe() as events:
            async for event in events:
                if not life.dead:
                    self.world.trace.note(self.name, "event", event.describe())

    def _judge(self, life: Life, error: BaseException) -> None:
        """What a life may raise: anything but our own bugs if it was dead, nothing if it was alive."""
        world = self.world
        if world.nursery.cancel_scope.cancel_called or any(
            isinstance(e, trio.Cancelled) for e in _leaves(error)
        ):
            raise error  # the whole world ends
        if not life.dead and not life.opened and all(type(e) is BackendError for e in _leaves(error)):
            world.trace.note(self.name, "does not open", str(error))
            world.faults.did_not_open(self)  # a disk failed: whoever starts hosts tries again
            return
        expected = (PairsyncError, OSError, PowerCut, trio.ClosedResourceError)
        strange = [leaf for leaf in _leaves(error) if not (life.dead and isinstance(leaf, expected))]
        if strange:
            world.raised(self.name, strange[0])

    def die(self, *, power: bool) -> None:
        """The process ends here and now; with ``power`` the machine too."""
        world, life = self.world, self.life
        if life is None:
            raise RuntimeError(f"{self.name} is down already")
        self.life = None
        life.dead = True
        self.dying = [each for each in self.dying if not each.ended.is_set()] + [life]
        if power or self.suspect:
            self.medium.power_cut(world.keep)
        else:
            self.medium.process_crash()
        life.network.die(power=power)
        if power:
            self._networks.append(life.network)
        life.scope.cancel()
        self.suspect = False
        self.armed.clear()

    def lose_cache(self) -> None:
        """The files are opened anew after a flush has failed: what it did not write may be gone."""
        self.medium.power_cut(self.world.keep)
        self.suspect = False
        self.world.checker.crashed(self, cache_lost=True)

    def recovered(self, index: int, replica: Replica) -> None:
        """A life has opened a volume."""
        self.superblocks[index] = replica.setup.superblock
        self.world.checker.recovered(self, index, replica)

    # ------------------------------------------------------------------ disks that fail

    def _fault(self, operation: SimOperation) -> Fault | None:
        metadata = operation.name.endswith(".pairsync")
        if self.role is Role.STANDBY and not metadata and operation.action in _CHANGES:
            self.world.checker.standby_changes(operation.name)
        for armed in self.armed:
            if armed.metadata is metadata and operation.action in armed.actions:
                break
        else:
            return None
        armed.count -= 1
        if armed.count <= 0:
            self.armed.remove(armed)
        self.world.faults.struck(armed.kind)
        if self.role is Role.STANDBY and armed.errno == errno.ENOSPC:
            self.world.checker.way_back.disk_full(operation.name)
        if not metadata and (operation.durable or operation.action is SimAction.FLUSH):
            self.suspect = True
        done_bytes = self.world.disks.randrange(operation.length + 1) if operation.length else 0
        # Whole sectors: neither a disk nor a page cache leaves a part of one.
        end = (operation.offset + done_bytes) // SECTOR_BYTES * SECTOR_BYTES
        done_bytes = max(end - operation.offset, 0)
        self.world.trace.note(
            self.name, "disk fails", f"{operation.action.value} {errno.errorcode[armed.errno]}"
        )
        return Fault(armed.errno, done_bytes)


def _growing(medium: SimMedium, name: str) -> SimGrowingFile:
    return SimGrowingFile(medium, medium.claim(name))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
