"""The relay between the front doors of two hosts and the guest's owner: the shell of ``core.relay``.

It uses the link's session beside the replicas' own (``core.session``), from its first moment to its last: a
host whose disk is ill takes no part in replication, and its clients are served by the owner all the same.

What the other host asks for is done on this host's own volumes, as if a client had asked here.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from pairsync.core.messages import Message, OpKind, Relay, Relayed, RelayFlush, RelayRead, Serving, WriteOp
from pairsync.core.relay import Answer, Job, RelayClient, RelayServer
from pairsync.core.window import FRAME_DATA_BYTES_MAX
from pairsync.errors import ArbitrationError, BackendError, ClosedError, PairsyncError, ProtocolError

if TYPE_CHECKING:
    from .guest import Guest
    from .volume import Volume

__all__ = ["GuestRelay"]

REFUSAL_CHARACTERS_MAX = 400
"""Of a reason that travels."""

R = TypeVar("R", Relay, RelayRead, RelayFlush)


class GuestRelay:
    """Both halves of one guest on this host; see the module."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        names = (guest.name, *guest.volumes)
        self._client = RelayClient(names)
        self._server = RelayServer(names, self._size_of)
        self._room = trio.lowlevel.ParkingLot()  # reads and flushes that wait for room
        self._gathered: list[Message] | None = None  # to be sent together

    def _volume(self, index: int) -> Volume | None:
        volumes = list(self._guest.volumes.values())
        return volumes[index] if index < len(volumes) else None

    def _size_of(self, index: int) -> int | None:
        volume = self._volume(index)
        return volume.size_bytes if volume is not None and volume.known else None

    def _send(self, messages: Sequence[Message]) -> None:
        link = self._guest.link
        if self._gathered is not None:
            self._gathered.extend(messages)
        elif messages and link is not None and link.session is not None:
            link.send(messages)

    # ------------------------------------------------------------------ the link

    def connected(self) -> None:
        """A session has begun."""
        self._send(self._server.connected())

    def lost(self) -> None:
        """It is over."""
        self._server.lost()
        self._client.lost()
        self._turn()

    def received(self, messages: Sequence[Message]) -> None:
        """Some of `RELAY_MESSAGES`; what breaks the protocol ends the session."""
        self._gathered = []
        try:
            for message in messages:
                self._take(message)
        except ProtocolError as error:
            link = self._guest.link
            if link is not None:  # not renewed: who breaks the protocol has to wait
                link.drop_session(f"relay: {error}"[:REFUSAL_CHARACTERS_MAX])
        finally:
            gathered, self._gathered = self._gathered, None
        self._send(gathered)
        self._turn()

    def _take(self, message: Message) -> None:
        if isinstance(message, Serving):
            self._client.heard(message, self._guest.session.term)
        elif isinstance(message, Relayed) or (isinstance(message, Relay) and self.open):
            # A peer that serves asks for nothing: what it sends are answers.
            self._client.answered(message)
        elif isinstance(message, Relay | RelayRead | RelayFlush):
            job = self._server.take(message)
            if job is not None:
                self._begin(job)

    def serve(self, term: int | None) -> None:
        """The guest is served on this host under ``term``, or (None) not any more."""
        self._send(self._server.serve(term))

    def _turn(self) -> None:
        self._room.unpark_all()
        self._guest.turn()

    # ------------------------------------------------------------------ asking

    @property
    def open(self) -> bool:
        """Whether the peer serves the guest."""
        return self._client.term is not None

    def write(self, volume: int, ops: Sequence[WriteOp], answer: Answer) -> bool:
        """Ask for a batch of one message; False, and nothing happens, where there is no room for it now."""
        if not self._client.room(sum(op.length for op in ops if op.data is not None)):
            return False
        self._send([self._client.write(volume, ops, answer)])
        return True

    async def read_into(self, volume: int, offset: int, into: memoryview) -> bool:
        """Fill ``into``; False where nobody answers any more.  Raises `BackendError` as the owner says."""
        for at in range(0, len(into), FRAME_DATA_BYTES_MAX):
            piece = into[at : at + FRAME_DATA_BYTES_MAX]
            answer = await self._ask(
                partial(self._client.read, volume, offset + at, len(piece)), len(piece), "read"
            )
            if not isinstance(answer, Relay):
                return False
            (op,) = answer.ops
            if op.data is not None:
                piece[:] = op.data
        return True

    async def flush(self, volume: int) -> bool:
        """As `read_into`."""
        return await self._ask(partial(self._client.flush, volume), 0, "flush") is not None

    async def _ask(self, ask: Callable[[Answer], R], data_bytes: int, what: str) -> Relay | Relayed | None:
        while self.open and not self._client.room(data_bytes):
            await self._room.park()
        if not self.open:
            return None
        ended = trio.Event()
        found: list[Relay | Relayed | None] = []

        def answer(message: Relay | Relayed | None) -> None:
            found.append(message)
            ended.set()

        self._send([ask(answer)])
        await ended.wait()
        (message,) = found
        if isinstance(message, Relayed) and any(message.errnos):
            error = next(each for each in message.errnos if each)
            raise BackendError(f"{what} at the owner: {errno.errorcode.get(error, error)}", error)
        return message

    # ------------------------------------------------------------------ being asked

    def _begin(self, job: Job) -> None:
        request = job.request
        volume = self._volume(request.volume)
        if volume is None:
            return  # `RelayServer.take` has refused it
        if isinstance(request, Relay):
            try:
                volume.submit(request.ops, partial(self._written, job))
            except PairsyncError as error:
                self._written(job, [_errno_of(error)] * len(request.ops))
        elif isinstance(request, RelayFlush):
            self._guest.start_soon(self._answer, job, partial(_flush, volume, request))
        else:
            self._read(job, volume, request)

    def _written(self, job: Job, errnos: Sequence[int] | None) -> None:
        self._end(job, Relayed(job.request.number, () if errnos is None else tuple(errnos)))

    def _read(self, job: Job, volume: Volume, request: RelayRead) -> None:
        content = bytearray(request.length)
        try:
            if volume.read_nowait(request.offset, memoryview(content)):
                self._end(job, _content(request, content))
                return
        except PairsyncError:
            pass  # the slow way says what is wrong
        self._guest.start_soon(self._answer, job, partial(_read, volume, request, content))

    async def _answer(self, job: Job, work: Callable[[], Awaitable[Relay | Relayed]]) -> None:
        """Of what has to wait for a disk, or for the peer."""
        try:
            answer = await work()
        except PairsyncError as error:
            answer = Relayed(job.request.number, (_errno_of(error),))
        self._end(job, answer)

    def _end(self, job: Job, answer: Relay | Relayed) -> None:
        self._send(self._server.ended(job, answer))


async def _flush(volume: Volume, request: RelayFlush) -> Relayed:
    await volume.flush()
    return Relayed(request.number)


async def _read(volume: Volume, request: RelayRead, content: bytearray) -> Relay:
    await volume.read_into(request.offset, memoryview(content))
    return _content(request, content)


def _content(request: RelayRead, content: bytearray) -> Relay:
    op = WriteOp(OpKind.DATA, request.offset, request.length, memoryview(content))
    return Relay(request.term, request.volume, request.number, [op])


def _errno_of(error: PairsyncError) -> int:
    if isinstance(error, BackendError):
        return error.errno or errno.EIO
    return errno.ESHUTDOWN if isinstance(error, ClosedError | ArbitrationError) else errno.EIO
