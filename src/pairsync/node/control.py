"""The control socket: one JSON object a line in, one a line out.

A request is ``{"do": NAME, ...}``; the answer ``{"ok": true, ...}`` or ``{"ok": false, "error": TEXT}``.
Requests of one connection are answered in order.  Who hangs up, or only ends its half, has given up: what it
waits for is cancelled, so that nobody holds one of the few places for clients who has left.  Nor does anybody
who neither asks nor takes the answer: such a client is hung up on after a while, and soon when others wait
for a place.  Waiting for an answer takes as long as it takes.  The socket belongs to its owner (mode 0600):
whoever can open it may do what the owner may.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import trio

from pairsync.core.units import KIB
from pairsync.errors import BackendError, ConfigError, PairsyncError, PeerLost, ProtocolError
from pairsync.nbd.listen import NbdListener, open_unix_listener

__all__ = ["LINE_BYTES_MAX", "Answer", "Handler", "ask", "serve_control"]

LINE_BYTES_MAX = 1 << 20
"""A status of 64 volumes takes 30 KB."""

RECEIVE_BYTES = 64 * KIB
"""Asked for at once: more than most answers."""

CONNECTIONS_MAX = 32
"""Clients at once; more wait in the kernel."""

IDLE_S = 60.0
"""A client's time for a whole request, and to take an answer: for somebody who types them."""

IDLE_CROWDED_S = 1.0
"""The same while others wait for a place: programs need milliseconds."""

ACCEPT_RETRY_S = 0.1
"""Between two attempts to take in a client."""

Answer: TypeAlias = dict[str, Any]
Handler: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Answer]]


async def serve_control(
    path: Path,
    handlers: Mapping[str, Handler],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled.  A handler's `PairsyncError` or `OSError` becomes the error of the answer."""
    listener = open_unix_listener(path)
    places = _Places()
    try:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await trio.lowlevel.wait_readable(listener.socket)
                await places.take()
                nursery.start_soon(_serve_one, await _accept(listener), handlers, places)
    finally:
        listener.close()


class _Places:
    """The places for clients, and which of them are idle: it is the client's turn to read or to write."""

    def __init__(self) -> None:
        self._slots = trio.Semaphore(CONNECTIONS_MAX)
        self._crowded = False  # somebody waits for a place
        self._idle: dict[trio.CancelScope, float] = {}  # one for each idle client, and since when

    async def take(self) -> None:
        """Return when there is a place."""
        self._crowded = not self._slots.value
        for scope, since in self._idle.items():
            if self._crowded:
                scope.deadline = min(scope.deadline, since + IDLE_CROWDED_S)
        try:
            await self._slots.acquire()
        finally:
            self._crowded = False

    def give_back(self) -> None:
        """A client is gone."""
        self._slots.release()

    @contextmanager
    def idle(self) -> Iterator[trio.CancelScope]:
        """What a client does in its own time; ``cancelled_caught`` if it took too long."""
        since = trio.current_time()
        scope = trio.CancelScope(deadline=since + (IDLE_CROWDED_S if self._crowded else IDLE_S))
        self._idle[scope] = since
        try:
            with scope:
                yield scope
        finally:
            del self._idle[scope]


async def _accept(listener: NbdListener) -> trio.SocketStream:
    server = trio.socket.from_stdlib_socket(listener.socket)
    while True:
        try:
            accepted, _ = await server.accept()
        except OSError:  # the client is gone already, or descriptors are short: no reason to end the host
            await trio.sleep(ACCEPT_RETRY_S)
        else:
            return trio.SocketStream(accepted)


async def _serve_one(stream: trio.SocketStream, handlers: Mapping[str, Handler], places: _Places) -> None:
    try:
        async with stream:
            lines = _Lines(stream)
            while True:
                request: Mapping[str, Any] | None = None  # also if none came in time
                with places.idle():
                    request = await lines.next()
                if request is None:
                    return
                answer = await _answer_unless_gone(lines, request, handlers)
                if answer is None:
                    return
                with places.idle() as scope:
                    await stream.send_all(json.dumps(answer).encode() + b"\n")
                if scope.cancelled_caught:
                    return
    except (trio.BrokenResourceError, ProtocolError):
        return  # the client is gone, or speaks something else
    finally:
        places.give_back()


async def _answer_unless_gone(
    lines: _Lines, request: Mapping[str, Any], handlers: Mapping[str, Handler]
) -> Answer | None:
    """The answer; None if the client hung up before there was one."""
    answer: Answer | None = None
    broken: list[ProtocolError] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            try:
                await lines.wait_end()
            except ProtocolError as error:
                broken.append(error)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        answer = await _answer(request, handlers)
        nursery.cancel_scope.cancel()
    if broken:
        raise broken[0]
    return answer


async def _answer(request: Mapping[str, Any], handlers: Mapping[str, Handler]) -> Answer:
    handler = handlers.get(str(request.get("do")))
    if handler is None:
        return {"ok": False, "error": f"unknown request {request.get('do')!r}"}
    try:
        return {"ok": True, **await handler(request)}
    except (PairsyncError, OSError) as error:  # the latter where descriptors are short
        return {"ok": False, "error": str(error)}


class _Lines:
    """JSON objects, a line each."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def _more(self) -> bool:
        """Take in what comes; False at the end."""
        if len(self._buffer) > LINE_BYTES_MAX:
            raise ProtocolError(f"more than {LINE_BYTES_MAX} bytes that wait for an answer")
        received = await self._stream.receive_some(RECEIVE_BYTES)
        self._buffer += received
        return bool(received)

    async def wait_end(self) -> None:
        """Return when nothing can come any more; further requests are kept for `next`."""
        try:
            while await self._more():
                pass
        except trio.BrokenResourceError:
            return

    async def next(self) -> dict[str, Any] | None:
        """The next object; None at the end."""
        while (end := self._buffer.find(b"\n")) < 0:
            if not await self._more():
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # the latter for brackets within brackets
            raise ProtocolError("a line that is not JSON") from error
        if not isinstance(value, dict):
            raise ProtocolError("a line that is not a JSON object")
        return value


async def ask(path: Path, request: Mapping[str, Any]) -> Answer:
    """Send one request and return the answer.

    Raises `PeerLost` if nobody serves there or it hangs up, `ConfigError` with the answer's error.
    """
    try:
        stream = await trio.open_unix_socket(path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise PeerLost(f"nobody answers at {path}") from error
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}", error.errno or 5) from error
    async with stream:
        try:
            await stream.send_all(json.dumps(dict(request)).encode() + b"\n")
            answer = await _Lines(stream).next()
        except (trio.BrokenResourceError, ProtocolError) as error:
            raise PeerLost(f"{path}: hung up") from error
    if answer is None:
        raise PeerLost(f"{path}: hung up")
    if not answer.get("ok"):
        raise ConfigError(str(answer.get("error")))
    return answer
