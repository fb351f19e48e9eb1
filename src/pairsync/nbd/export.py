"""What the front door needs of a disk: the `Export` that an embedder gives it, one a name.

The server never looks behind this interface, and a volume never sees a socket.  Reads that the page cache
can answer and all writes are plain calls (no task switch); only what waits for a disk or the peer is async.

The multi-connection promise.  The server always announces ``NBD_FLAG_CAN_MULTI_CONN``, so an export must keep
its word ("Transmission flags"): one cache for all connections, a write that is done is seen by every later
read, and `Export.flush` and a ``fua`` write cover every write that was done before, whoever sent it.

Errors.  A `BackendError` carries the errno that the client is told; `ClosedError` says that the export goes
away (``NBD_ESHUTDOWN``); any other `PairsyncError` but `InternalError` becomes ``NBD_EIO``.
`InternalError` is our own bug and ends the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from pairsync.core.messages import WriteOp

__all__ = ["STALE_S", "Done", "Export", "HungUp"]

STALE_S = 0.1
"""What has waited for longer is not done for a client that has hung up: far less than it takes to start its
machine anew.  Sooner it is, for a client may send, say that it disconnects, and leave."""

Done: TypeAlias = Callable[[Sequence[int] | None], None]
"""``done(None)``: every op succeeded.  ``done([errno, ...])``: one number an op, 0 is success."""

HungUp: TypeAlias = Callable[[], bool]
"""Whether the client has closed its side, so that nobody waits for its requests any more."""


class Export(Protocol):
    """One disk, shared by all its connections.

    The server checks every request against `size_bytes` and `read_only` before it calls anything here, so
    offsets and lengths are in range and lengths are positive.  The attributes do not change while a client
    is connected (disconnect its clients first: `NbdServer.disconnect`).
    """

    @property
    def name(self) -> str:
        """The name that a client asks for; UTF-8, at most 4096 bytes, no NUL."""

    @property
    def description(self) -> str:
        """A line for people; may be empty."""

    @property
    def size_bytes(self) -> int:
        """Size of the disk.  `BackendError` while it is not known: who asks for the export is hung up on."""

    @property
    def read_only(self) -> bool:
        """Whether writes are refused (with ``NBD_EPERM``, by the server)."""

    @property
    def fast_zero(self) -> bool:
        """Whether ZERO and ZERO_ALLOCATE are quicker than writing zeroes; else FAST_ZERO is refused."""

    def meta_contexts(self) -> Mapping[str, str]:
        """Names that BLOCK_STATUS can be asked for, such as ``base:allocation``, in order.

        For each the context that `block_status` is given for a client that has selected it: the same name,
        or another one where the name may come to mean something else meanwhile.
        """

    def read_nowait(self, offset: int, into: memoryview) -> bool:
        """Fill ``into`` from ``offset`` if that needs no waiting; False if it would block.

        After False or an exception the content of ``into`` is unspecified.
        """

    async def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``.  May be cancelled."""

    def submit(self, ops: Sequence[WriteOp], done: Done, hung_up: HungUp | None = None) -> None:
        """Take a batch of writes, zeroes and trims, in this order; never blocks.

        What had to wait, for `STALE_S`, for another host or for this process, is not done if ``hung_up`` says
        so then: whoever has taken the client's place may have written since.

        ``done`` is called exactly once, on the trio thread, possibly before `submit` returns, unless
        `submit` raises: then never.  It may come after the client has gone.  The data of an op belongs to
        the batch: nobody changes or reuses it, so it may be kept for as long as it takes.
        """

    @property
    def writable(self) -> bool:
        """Whether `wait_writable` would return at once, now."""

    async def wait_writable(self) -> None:
        """Back-pressure: return when `submit` is welcome.  May be cancelled."""

    async def flush(self) -> None:
        """Make durable all writes that were done before this call.  May be cancelled (then: unknown)."""

    async def cache(self, offset: int, length: int) -> None:
        """A hint that the range will be read soon.  May be cancelled."""

    async def block_status(
        self, context: str, offset: int, length: int, extents_max: int
    ) -> list[tuple[int, int]]:
        """``(length, flags)`` of consecutive extents from ``offset``: at least one, at most ``extents_max``.

        They may cover less than ``length``, or more (the server cuts).  May be cancelled.
        """
