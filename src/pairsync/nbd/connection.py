"""One client in the transmission phase.

Theory of operation.  The task of `Connection.run` receives, parses and, as far as it can, answers without a
task switch; while nothing has to be waited for, not even that task is needed (`Transport.attend`)::

    receive ─> RequestParser ─> reads that need no waiting ─> one send for all of them
                             ─> all writes that are here   ─> one `Export.submit`; `done` posts the replies
                             ─> the rest                   ─> at most `slow_requests_max` child tasks

Replies go through an `Outbox`.  Data read synchronously goes through one scratch buffer that the connections
of a server share: it is filled and handed to the kernel without a wait in between, and what the kernel does
not take is copied out.

Back-pressure: the socket is not read while too many requests, too many of their bytes, or too many unsent
replies are in flight, here or in the whole server (`flight`, `limits`).  An export that is full stops the
reader in `Export.wait_writable`.  A client that stops in the middle of a request, or takes none of its
replies, is cut off after a while; a task that looks at it from time to time finds out (`stall`).

The end.  After DISC, or when the client closed its side, what is in flight is waited for and answered
("NBD_CMD_DISC": the server MUST handle all outstanding requests), with a deadline.  When the client is gone,
or broke the protocol, or the server is cancelled, the connection ends at once; a `done` that comes later is
only counted.  Either way no write is partial: the parser hands out whole ones only.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence

import trio

from pairsync.errors import InternalError, PairsyncError, PeerError, PeerLost

from . import constants as c
from .budget import Budget
from .export import STALE_S
from .flight import Flight
from .limits import NbdLimits
from .negotiation import Chosen
from .outbox import Outbox
from .replies import (
    DIRECT_READ_BYTES_MAX,
    GATHERED_BYTES,
    SHARED_READ_BYTES_MAX,
    SIMPLE_READ,
    SIMPLE_READ_HEAD,
    STRUCTURED_READ,
    STRUCTURED_READ_HEAD,
    block_status_reply,
    cut_extents,
    done_replies,
    error_of,
    error_reply,
    nbd_error,
    read_reply,
)
from .requests import Batch, Read, Request, RequestParser, RequestRules
from .stall import LOOKS_MAX, Stall
from .traffic import Traffic
from .transport import Transport

__all__ = ["Connection"]


class Connection:
    """See the module's theory.  ``chosen`` is the outcome of the handshake; ``scratch`` is shared."""

    def __init__(
        self,
        transport: Transport,
        chosen: Chosen,
        *,
        limits: NbdLimits,
        budget: Budget,
        traffic: Traffic,
        scratch: memoryview,
    ) -> None:
        export = chosen.export
        self.export = export
        self.stalled: str | None = None
        """Why the client was cut off, if it stopped in the middle of something."""
        self._transport = transport
        self._limits = limits
        self._budget = budget
        self._flight = Flight(limits, budget)
        self._traffic = traffic
        self._scratch = scratch
        self._structured = chosen.structured
        self._contexts = chosen.contexts
        self._early = chosen.early
        self._parser = RequestParser(
            RequestRules(
                size_bytes=export.size_bytes,
                read_only=export.read_only,
                structured=chosen.structured,
                fast_zero=export.fast_zero,
                block_status=bool(chosen.contexts),
            )
        )
        self._outbox = Outbox(transport, on_lost=self._on_lost, on_change=self._flight.unsent_changed)
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._handled = 0  # requests that were whole; only grows
        self._workers = 0  # child tasks of _work
        self._backlog: deque[Request | Read] = deque()  # waits for a worker; entered in _flight
        self._in_submit = False  # `done` need not send: the reader will, once it has handled the batch
        self._lost: PeerLost | None = None
        self._closed = False  # by the client, in order, with nothing left to be handled
        self._disconnected = False  # it has said that it goes: what follows is ignored
        self._over = False  # nothing can be answered any more

    async def run(self) -> str:
        """Serve until the end; returns why, for the log.  Raises `ProtocolError` and `PeerLost`."""
        reason = "hung up by the server"
        failure: PeerError | None = None
        with self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._outbox.run)
                    nursery.start_soon(self._watch)
                    try:
                        reason = await self._serve()
                        with trio.move_on_after(self._limits.drain_deadline_s):
                            await self._flight.wait_idle()
                    except PeerError as error:
                        failure = error
                    nursery.cancel_scope.cancel()
            finally:
                self._end()
        failure = failure or self._lost
        if failure is not None:
            try:
                raise failure
            finally:
                failure = self._lost = None  # it refers to this frame: see `_end`
        return reason

    def cancel(self) -> None:
        """Hang up at once."""
        self._scope.cancel()

    async def drain(self) -> None:
        """Answer what is in flight, refuse what is new with NBD_ESHUTDOWN, then hang up."""
        self._parser.shutting_down = True
        await self._flight.wait_idle()
        self._scope.cancel()

    # -- receiving -------------------------------------------------------------------------------------------

    async def _serve(self) -> str:
        parser, transport = self._parser, self._transport
        if self._early:
            parser.feed(self._early)
            await self._handle()
        while not self._disconnected:
            window = parser.window()
            if window is None:
                await transport.attend(self._take)
                if self._closed:
                    return "the client closed the connection"
            else:
                count = await transport.receive_into(window)
                if not count:
                    return "the client closed the connection in the middle of a write"
                parser.filled(count)
            await self._handle()
        return "disconnected"

    def _take(self, data: bytes) -> bool:
        """Handle what was received; False if the task is to go on, because something has to be waited for."""
        if not data:
            self._closed = True
            return False
        self._parser.feed(data)
        if self._flight.full or not self.export.writable:
            return False
        batch = self._next()
        if batch.writes:
            self._submit(batch)
        self._finish(batch)
        return not (batch.more or batch.disconnect) and self._parser.window() is None

    async def _handle(self) -> None:
        """Handle all that the parser has."""
        while not self._disconnected:
            if self._flight.full:
                await self._flight.wait_room()
            batch = self._next()
            if batch.writes:
                await self._write(batch)
            self._finish(batch)
            if not batch.more:
                return
            # what one buffer asks for may be much: let others have their turn
            await trio.lowlevel.checkpoint()

    def _next(self) -> Batch:
        """Take a batch off the parser: its reads are answered, and its writes are in flight from here on."""
        flight, parser, traffic = self._flight, self._parser, self._traffic
        batch = parser.take(flight.room_requests, self._limits.batch_bytes_max)
        if parser.window() is not None:
            self._take_more(batch)
        if parser.arriving_bytes != flight.arriving_bytes:
            flight.arriving(parser.arriving_bytes)
        count, writes = len(batch), len(batch.writes)
        traffic.requests += count
        self._handled += count
        self._disconnected = batch.disconnect
        if batch.reads:
            self._read(batch.reads)
            if writes:
                self._outbox.push()
        if writes:
            traffic.writes += writes
            traffic.bytes_written += batch.payload_bytes
            flight.enter(writes, batch.payload_bytes)
        return batch

    def _take_more(self, batch: Batch) -> None:
        """Large writes: take in what is here already, so that a few of them go on together."""
        parser, flight, bytes_max = self._parser, self._flight, self._limits.batch_bytes_max
        left = bytes_max - batch.payload_bytes
        while left > 0 and (window := parser.window()) is not None:
            count = self._transport.receive_nowait_into(window[:left])
            if not count:
                return  # the end, if it is that, will be seen by who waits for more
            left -= count
            parser.filled(count)
            parser.take(flight.room_requests, bytes_max, batch)

    def _finish(self, batch: Batch) -> None:
        """Do what is neither a read nor a write, and send what was answered."""
        for rejection in batch.rejections:
            self._post_error(rejection.cookie, rejection.error, rejection.message)
        for request in batch.others:
            self._start(request, 0)
        self._outbox.push()

    # -- the three kinds of work -----------------------------------------------------------------------------

    def _read(self, reads: Sequence[Read]) -> None:
        """Answer from the page cache, through the scratch buffer; the others get a task."""
        scratch, position = self._scratch, 0
        read_nowait = self.export.read_nowait
        structured = self._structured
        header_bytes = STRUCTURED_READ.size if structured else SIMPLE_READ.size
        total_bytes = 0
        for read in reads:
            cookie, offset, length = read
            total_bytes += length
            if length > SHARED_READ_BYTES_MAX:
                self._read_large(read)
                continue
            body = position + header_bytes
            stop = body + length
            try:
                filled = read_nowait(offset, scratch[body:stop])
            except PairsyncError as error:
                self._post_error(cookie, error_of(error), str(error))
                continue
            if not filled:
                self._start(read, length)
                continue
            if structured:
                STRUCTURED_READ.pack_into(scratch, position, STRUCTURED_READ_HEAD, cookie, length + 8, offset)
            else:
                SIMPLE_READ.pack_into(scratch, position, SIMPLE_READ_HEAD, cookie)
            position = stop
            if position >= GATHERED_BYTES:
                self._outbox.send(scratch[:position])
                position = 0
        if position:
            self._outbox.send(scratch[:position])
        self._traffic.reads += len(reads)
        self._traffic.bytes_read += total_bytes

    def _read_large(self, read: Read) -> None:
        """One read into memory of its own; by a child task if it has to wait or takes long."""
        cookie, offset, length = read
        if length > DIRECT_READ_BYTES_MAX:
            self._start(read, length)
            return
        reply, body = read_reply(cookie, offset, length, structured=self._structured)
        try:
            filled = self.export.read_nowait(offset, body)
        except PairsyncError as error:
            self._post_error(cookie, error_of(error), str(error))
            return
        if filled:
            self._outbox.post(reply)
            self._outbox.push()
        else:
            self._start(read, length)

    async def _write(self, batch: Batch) -> None:
        """Submit the writes of a batch once the export has room for them."""
        welcome, began = False, trio.current_time()
        try:
            await self.export.wait_writable()
            welcome = trio.current_time() - began <= STALE_S or not self._hung_up()
        except PairsyncError as error:
            self._post_results(batch.write_cookies, [error_of(error)] * len(batch.writes), str(error))
            return
        finally:
            if not welcome:
                self._flight.leave(len(batch.writes), batch.payload_bytes)
        if welcome:
            self._submit(batch)
        else:
            self._on_lost(PeerLost("it hung up while its writes waited"))  # and what follows

    def _submit(self, batch: Batch) -> None:
        """Hand the writes of a batch, which are in flight, to the export."""
        cookies, payload_bytes = batch.write_cookies, batch.payload_bytes
        accepted = False
        try:
            self._in_submit = True
            done = functools.partial(self._written, cookies, payload_bytes)
            self.export.submit(batch.writes, done, self._hung_up)
            accepted = True
        except PairsyncError as error:
            self._post_results(cookies, [error_of(error)] * len(cookies), str(error))
        finally:
            self._in_submit = False
            if not accepted:
                self._flight.leave(len(cookies), payload_bytes)

    def _written(self, cookies: Sequence[bytes], payload_bytes: int, errors: Sequence[int] | None) -> None:
        """The export is done with a batch of writes; called from anywhere on the trio thread."""
        if not self._over:
            if errors is None:
                self._outbox.post(done_replies(cookies))
            else:
                self._post_results(cookies, errors, "the write failed")
            if not self._in_submit:
                self._outbox.push()
        self._flight.leave(len(cookies), payload_bytes)

    def _post_results(self, cookies: Sequence[bytes], errors: Sequence[int], message: str) -> None:
        if len(errors) != len(cookies):
            raise InternalError(f"the export reports {len(errors)} results for {len(cookies)} writes")
        good = [cookie for cookie, error in zip(cookies, errors, strict=True) if not error]
        if good:
            self._outbox.post(done_replies(good))
        for cookie, error in zip(cookies, errors, strict=True):
            if error:
                self._post_error(cookie, nbd_error(error), message)

    def _start(self, work: Request | Read, length: int) -> None:
        """Give work that may wait to a child task, or to the next one that is free."""
        self._flight.enter(1, length)
        if self._workers >= self._limits.slow_requests_max:
            self._backlog.append(work)
        elif self._nursery is not None:
            self._workers += 1
            self._nursery.start_soon(self._work, work)

    async def _work(self, work: Request | Read) -> None:
        while True:
            length = 0 if isinstance(work, Request) else work[2]
            try:
                if isinstance(work, Request):
                    self._outbox.post(await self._perform(work))
                else:
                    self._outbox.post(await self._read_slowly(work))
            except PairsyncError as error:
                self._post_error(work[0], error_of(error), str(error))
            finally:
                self._flight.leave(1, length)
            self._outbox.push()
            if not self._backlog:
                break
            work = self._backlog.popleft()
        self._workers -= 1

    async def _read_slowly(self, read: Read) -> bytearray:
        """A read that may wait for a disk, or takes long."""
        cookie, offset, length = read
        reply, body = read_reply(cookie, offset, length, structured=self._structured)
        for start in range(0, length, DIRECT_READ_BYTES_MAX):
            if start:
                await trio.lowlevel.checkpoint()
            into = body[start : start + DIRECT_READ_BYTES_MAX]
            tried = length <= DIRECT_READ_BYTES_MAX  # by the reader, in vain
            if tried or not self.export.read_nowait(offset + start, into):
                await self.export.read(offset + start, into)
        return reply

    async def _perform(self, request: Request) -> bytes:
        export = self.export
        if request.kind == c.CMD_FLUSH:
            await export.flush()
        elif request.kind == c.CMD_CACHE:
            await export.cache(request.offset, request.length)
        else:
            return await self._block_status(request)
        return done_replies([request.cookie])

    async def _block_status(self, request: Request) -> bytes:
        """One chunk a selected context; all of them share the bound on extents."""
        extents_max = 1 if request.one_extent else max(1, self._limits.extents_max // len(self._contexts))
        answers = []
        for context_id, name in self._contexts:
            extents = await self.export.block_status(name, request.offset, request.length, extents_max)
            answers.append((context_id, cut_extents(extents, request.length, extents_max)))
        return block_status_reply(request.cookie, answers)

    def _post_error(self, cookie: bytes, error: int, message: str) -> None:
        self._traffic.errors += 1
        self._outbox.post(error_reply(cookie, error, message, structured=self._structured))

    # -- the end ---------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Cut the client off if it stops in the middle of something."""
        stall = Stall()
        while self.stalled is None:
            await trio.sleep(self._limits.stall_deadline_s / LOOKS_MAX)
            self.stalled = stall.look(
                unfinished=self._parser.unfinished and self._flight.waits_for_client,
                handled=self._handled,
                unsent=self._outbox.held_bytes > 0,
                sends=self._outbox.sends,
                crowded=self._budget.exhausted,
            )
        self.cancel()

    def _hung_up(self) -> bool:
        return self._over or self._transport.hung_up()

    def _on_lost(self, error: PeerLost) -> None:
        self._lost = error
        self._scope.cancel()

    def _end(self) -> None:
        """Nothing can be answered any more; writes that the export still has are counted until it is done.

        What refers to each other is taken apart here, so that megabytes of unsent replies and half payloads
        are freed now, and not when the collector of cycles comes by: it counts objects, not bytes.
        """
        self._over = True
        self._nursery = None
        self._flight.arriving(0)
        self._outbox.close()
        while self._backlog:
            work = self._backlog.popleft()
            self._flight.leave(1, 0 if isinstance(work, Request) else work[2])
