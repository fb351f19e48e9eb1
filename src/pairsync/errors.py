"""The one exception tree: whose fault it is, is in the type.

::

    PairsyncError
    ├── CallerError          the embedder, the operator or the configuration asked for what cannot be
    │   ├── ConfigError      a setting is missing, malformed or contradicts another one
    │   ├── ClosedError      the object was closed by its owner
    │   └── BusyError        two tasks use what only one may use at a time
    ├── PeerError            the other host, or a client, broke its word
    │   ├── ProtocolError    bytes or messages that the protocol does not allow
    │   ├── RefusedError     the peer, or we, declined the connection, with the reason
    │   └── PeerLost         the peer fell silent or hung up
    ├── BackendError         a disk, a file or the operating system failed (carries the errno)
    │   ├── MetadataError    metadata is damaged, or from a newer version
    │   └── MismatchError    a volume of another size, or of another pair
    ├── ArbitrationError     this host may not do that now: stale term, two owners, diverged replicas
    └── InternalError        our own bug: an invariant does not hold; all bets are off

The abstract classes (`PairsyncError`, `CallerError`, `PeerError`) are for ``except`` clauses and are
never raised themselves.  A root cause is always chained (``raise ... from``), never only stringified.
Safety checks raise `InternalError` or `ArbitrationError` explicitly; ``assert`` disappears under ``-O``.
"""

from __future__ import annotations

import errno as _errno

__all__ = [
    "ArbitrationError",
    "BackendError",
    "BusyError",
    "CallerError",
    "ClosedError",
    "ConfigError",
    "InternalError",
    "MetadataError",
    "MismatchError",
    "PairsyncError",
    "PeerError",
    "PeerLost",
    "ProtocolError",
    "RefusedError",
]


class PairsyncError(Exception):
    """Root of the tree; abstract."""

    def __init__(self, message: str) -> None:
        if type(self) in _ABSTRACT:
            raise TypeError(f"{type(self).__name__} is abstract: raise one of its subclasses")
        super().__init__(message)


class CallerError(PairsyncError):
    """The caller (embedder, operator, configuration) is at fault; abstract."""


class ConfigError(CallerError):
    """A setting is missing, malformed or contradicts another one."""


class ClosedError(CallerError):
    """The object was closed by its owner and cannot be used any more."""


class BusyError(CallerError):
    """Two tasks use what only one may use at a time, or a volume is open already."""


class PeerError(PairsyncError):
    """The other end of a connection is at fault; abstract."""


class ProtocolError(PeerError):
    """The other end sent what the protocol does not allow."""


class RefusedError(PeerError):
    """A connection was declined, by the other end or by us; the message says why."""


class PeerLost(PeerError):
    """The other end fell silent or hung up."""


class BackendError(PairsyncError):
    """A disk, a file or the operating system failed.

    ``errno`` is a positive number of the `errno` module (``EIO`` where nothing better is known): what an
    NBD client is told.
    """

    def __init__(self, message: str, errno: int = _errno.EIO) -> None:
        super().__init__(message)
        self.errno = errno


class MetadataError(BackendError):
    """The metadata beside a volume is damaged, or was written by a newer version."""


class MismatchError(BackendError):
    """A volume has another size, or belongs to another pair."""


class ArbitrationError(PairsyncError):
    """This host may not do that now: its term is stale, there are two owners, or replicas diverged."""


class InternalError(PairsyncError):
    """Our own bug: an invariant does not hold."""


_ABSTRACT: frozenset[type[PairsyncError]] = frozenset({PairsyncError, CallerError, PeerError})
