"""The front door of a volume: it serves on both hosts, and its clients never see that ownership moves.

A request is done by this host's own volume while the guest is active here, by the peer (``guest.relay``)
while it is active there, and waits while it is active nowhere, `WAIT_S` at most.  What was under way when the
role changed, the session was lost or the owner's disk failed is done again by whoever owns then; what the
owner has answered is answered, an error of the request itself too.

**Why a write may be done twice.**  NBD promises nothing of the order of requests that are not answered, and a
write that is not answered may be there or not, in any part.  So doing it again is one more way in which the
first may have been late, as long as two things hold:

* *FLUSH covers what was answered before it*: the answer comes from the copy that has succeeded, and what an
  owner has acknowledged its successor has, by rule 2.
* *No first copy comes late*: none may be applied after the second was answered, or it would overwrite what
  was written after that.  Wherever the first copy may be:

  - queued for the disk of this host, which was the owner: a role is taken up again only when no job of the
    disk runs any more (``guest.roles``, ``guest.reopen``), and a replica that has left takes part again as a
    standby, by a resync from the owner of then.  Its dirty map holds the blocks of that copy, for an intent
    is durable before its write is begun: they are copied over.  A job that hangs for hours changes nothing
    in that: until it ends the replica is ill, and takes no part.
  - on its way to the other replica: it is in the stream of a session, and that host has left the session and
    ended its writes before it became the owner.
  - at the peer, which was asked to do it and is the owner still: it serves nobody again before all it had
    taken has ended (`core.relay`).
  - at the peer, which is not the owner any more: as in the first case.

**Not for the dead.**  A write that waits, or is to be done again, is done only for a client that is still
there.  One that has hung up, because a guard or a person has ended it, may run on the other host by then, and
what it had asked for last would come after what it has written there.  Nor is one that has lain in the socket
while this process stood still (``guest.wakeful``): its client may have given it up, and ask elsewhere.

**An owner whose lease has run out** while it stood still serves nobody from the first request on, for it may
have a successor.  The lease is looked at where that costs little, once for a batch (`Guest.leased`: what the
process's own guard has confirmed):

* before a batch of reads that need not wait, and after one that had to: what was read may be old by now;
* before a batch of writes is taken up, for in ``async`` nobody else would have to agree;
* not before an acknowledgement leaves.  What is acknowledged is on every replica of the grant, a successor's
  own among them, whenever it is told.

**Reads** have nothing to be done twice.  Those that wait for a disk are left behind when the role changes:
they read into memory of their own, for nobody knows when their thread will end.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from pairsync.core.messages import Relay, Relayed, WriteOp
from pairsync.core.tracker import ops_bytes
from pairsync.core.units import MIB, NS_PER_S
from pairsync.core.window import FRAME_DATA_BYTES_MAX
from pairsync.errors import ArbitrationError, BackendError, ClosedError
from pairsync.nbd.export import STALE_S, HungUp

from .export import VolumeExport, unknown_state
from .pieces import Done, parts_of
from .wakeful import Wakeful

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["WAIT_S", "Door"]

WAIT_S: Final = 60.0
"""How long a request waits for an owner: a disk of the hypervisor's guest gives up after 30 s to 3 min, and a
failover takes seconds.  After that it ends with EIO."""

QUEUE_BYTES_MAX: Final = 8 * MIB
"""Data of writes that wait here before a client is asked to wait: as much as may be under way."""


class _Write(NamedTuple):
    """Ranges of a client that fit one message, and wait for whoever owns."""

    ops: Sequence[WriteOp]
    done: Done
    since_ns: int  # when they came, or could not be done for the first time; 0: they never had to wait
    hung_up: HungUp | None

    @property
    def data_bytes(self) -> int:
        return ops_bytes(self.ops)

    @property
    def wanted(self) -> bool:
        return self.hung_up is None or not self.hung_up()

    def give_up(self) -> None:
        self.done([errno.EIO] * len(self.ops))


class Door:
    """One volume as an NBD export, on either host; see the module.  Belongs to the trio thread."""

    read_only = False
    fast_zero = True

    def __init__(self, guest: Guest, name: str) -> None:
        self._guest = guest
        self._volume = guest.volume(name)
        self._index = list(guest.volumes).index(name)
        self._local = VolumeExport(self._volume)
        self._here = False  # the guest is active on this host and takes requests; changed by `turn` only
        self._stretch = 0  # counts its changes
        self._queue: deque[_Write] = deque()  # empty, or this host is not the owner, but for `_pump`
        self._queued_bytes = 0  # their data
        self._pumping = False  # `_pump` runs, further up the stack
        self._under_way: set[trio.CancelScope] = set()  # what waits for this host's disk and can be left
        self._turned = trio.lowlevel.ParkingLot()  # those who wait for an owner, or for room
        self._wakeful = Wakeful()
        self.name = self._local.name
        self.description = self._local.description
        guest.doors.append(self)
        self.turn()

    @property
    def size_bytes(self) -> int:
        """Size of the volume."""
        return self._volume.size_bytes

    def meta_contexts(self) -> Mapping[str, str]:
        """What BLOCK_STATUS can be asked for."""
        return self._local.meta_contexts()

    # ------------------------------------------------------------------ who owns

    def turn(self) -> None:
        """Who serves may have changed, or a relayed request has ended (called by the guest)."""
        here = self._guest.serves
        if here is not self._here:
            self._here = here
            self._stretch += 1
            for scope in self._under_way:
                scope.cancel()
        self._pump()
        self._turned.unpark_all()

    def _is_here(self) -> bool:
        """Whether this host may serve now; see the module on leases."""
        if self._here and not self._guest.leased():
            self._guest.turn()
        return self._here

    def tick(self, now_ns: int) -> None:
        """Time has passed: what has waited for too long ends."""
        self._wakeful.look()
        if self._here or (self._guest.relay.open and not self._guest.closed):
            return
        while self._queue and (self._guest.closed or now_ns - self._queue[0].since_ns > WAIT_S * NS_PER_S):
            self._take().give_up()

    async def _wait_turn(self, since_ns: int) -> None:
        """Wait until something has changed; `BackendError` if nobody has owned for too long."""
        guest = self._guest
        if guest.closed:
            raise ClosedError(f"guest {guest.name} is closed")
        left_s = WAIT_S - (guest.now_ns() - since_ns) / NS_PER_S
        with trio.move_on_after(max(left_s, 0)):
            await self._turned.park()
            return
        raise BackendError(f"volume {self.name}: nobody has served it for {WAIT_S:.0f} s", errno.EIO)

    async def _do(self, here: Callable[[], Awaitable[None]], there: Callable[[], Awaitable[bool]]) -> None:
        """Do it where the owner is, again if that changes; ``there`` returns whether it was done."""
        since_ns = self._guest.now_ns()
        while True:
            stretch = self._stretch
            if self._here:
                try:
                    if await self._leaving(here):
                        return
                except (BackendError, ClosedError, ArbitrationError):
                    if stretch == self._stretch or self._guest.closed:
                        raise
            elif self._guest.relay.open:
                if await there():
                    return
            else:
                await self._wait_turn(since_ns)

    async def _leaving(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do it unless this host ceases to own meanwhile; whether it was done."""
        with trio.CancelScope() as scope:
            self._under_way.add(scope)
            try:
                await work()
                return True
            finally:
                self._under_way.discard(scope)
        return False

    # ------------------------------------------------------------------ reading

    @property
    def read_nowait(self) -> Callable[[int, memoryview], bool]:
        """As `Volume.read_nowait`, for a batch of reads: to be asked for anew for the next one."""
        return self._volume.read_nowait if self._is_here() else _not_now

    async def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into``; waits for a disk, for the peer, or for an owner."""
        relay = self._guest.relay
        await self._do(
            partial(self._read_here, offset, into), partial(relay.read_into, self._index, offset, into)
        )

    async def _read_here(self, offset: int, into: memoryview) -> None:
        content = bytearray(len(into))
        await self._volume.read_into(offset, memoryview(content))
        if not self._is_here():
            await trio.lowlevel.checkpoint()  # it is left, as by any change
        into[:] = content

    async def flush(self) -> None:
        """Make durable all that was acknowledged."""
        await self._do(self._volume.flush, partial(self._guest.relay.flush, self._index))

    async def cache(self, offset: int, length: int) -> None:
        """Read ahead, where that is worth it: on the owner."""
        if self._here:
            await self._leaving(partial(self._volume.cache, offset, length))

    async def block_status(
        self, context: str, offset: int, length: int, extents_max: int
    ) -> list[tuple[int, int]]:
        """Extents from ``offset``.  Not on the owner: all data, dirty and changed, which is never wrong."""
        found: list[tuple[int, int]] = []

        async def ask() -> None:
            found.extend(await self._local.block_status(context, offset, length, extents_max))

        stretch = self._stretch
        if self._here:
            try:
                if await self._leaving(ask):
                    return found
            except (BackendError, ClosedError, ArbitrationError):
                if stretch == self._stretch:
                    raise
        await trio.lowlevel.checkpoint()
        return [(length, unknown_state(context))]

    # ------------------------------------------------------------------ writing

    def submit(self, ops: Sequence[WriteOp], done: Done, hung_up: HungUp | None = None) -> None:
        """As `Volume.submit`; what cannot be done now waits, unless the client hangs up, or has already."""
        if hung_up is not None and self._wakeful.stood_still and hung_up():
            done([errno.EIO] * len(ops))
        elif self._is_here() and not self._queue:
            self._volume.submit(ops, partial(self._ended, _Write(ops, done, 0, hung_up)))
        else:
            self._put(_Write(ops, done, self._guest.now_ns(), hung_up))

    @property
    def writable(self) -> bool:
        """Whether this host owns, and a batch is welcome."""
        return self._here and self._volume.writable

    async def wait_writable(self) -> None:
        """Return when a batch is welcome; `BackendError` if nobody owns for too long."""
        since_ns = self._guest.now_ns()
        while True:
            if self._here:
                try:
                    await self._volume.wait_writable()
                except (ClosedError, ArbitrationError):
                    if self._guest.serves or self._guest.closed:
                        raise
                else:
                    return
            elif not self._guest.relay.open:
                await self._wait_turn(since_ns)
            elif self._queued_bytes < QUEUE_BYTES_MAX:
                return
            else:
                await self._turned.park()
                since_ns = self._guest.now_ns()

    def _put(self, write: _Write) -> None:
        """Send on, or keep until that is possible."""
        for ops, done in parts_of(write.ops, write.done, FRAME_DATA_BYTES_MAX):
            part = write._replace(ops=ops, done=done)
            self._queue.append(part)
            self._queued_bytes += part.data_bytes
        self._pump()

    def _take(self) -> _Write:
        write = self._queue.popleft()
        self._queued_bytes -= write.data_bytes
        return write

    def _pump(self) -> None:
        """Send on what waits, as far as there is an owner, and room."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                if self._stale(self._queue[0]):
                    self._take().give_up()
                elif self._here:
                    write = self._take()
                    self._volume.submit(write.ops, partial(self._ended, write))
                elif self._guest.relay.write(
                    self._index, self._queue[0].ops, partial(self._answered, self._queue[0])
                ):
                    self._take()
                else:
                    break
        finally:
            self._pumping = False

    def _stale(self, write: _Write) -> bool:
        """Whether it has waited until nobody waited for it."""
        return self._guest.now_ns() - write.since_ns > STALE_S * NS_PER_S and not write.wanted

    def _again(self, write: _Write) -> None:
        """It is to be done by whoever owns now."""
        self._put(write) if write.wanted else write.give_up()

    def _ended(self, write: _Write, errnos: Sequence[int] | None) -> None:
        """This host's volume has ended a batch."""
        if errnos is None or self._guest.serves or self._guest.closed:
            write.done(errnos)
        else:  # the guest is not active here any more: that is why
            self._again(write._replace(since_ns=write.since_ns or self._guest.now_ns()))

    def _answered(self, write: _Write, answer: Relay | Relayed | None) -> None:
        """The owner has ended what it was asked for, or nobody knows."""
        if isinstance(answer, Relayed):
            write.done(answer.errnos or None)
        else:
            self._again(write)


def _not_now(offset: int, into: memoryview) -> bool:
    """`Door.read_nowait` where the guest is not active."""
    del offset, into
    return False
