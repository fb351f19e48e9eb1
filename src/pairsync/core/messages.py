"""The vocabulary of two hosts: frozen values, no encoding (that is ``wire``), no behaviour.

Those of which there is one a write are named tuples: to make a frozen dataclass takes ten times as long.

All of these travel in one ordered, exactly-once stream a guest (see ``core.stream``), so that a message
never overtakes the writes before it.  The order of a session::

    both      Introduce                      who am I, what have I lived through
    active    Begin                          how each volume is brought to the same state (or needs not be)
    standby   Marked* Begun                  its own dirty blocks; it has recorded that it is being written to
    active    Write* Barrier*                live writes and resync blocks in one order
    standby   Applied* BarrierDone*
    active    Prove*                         what digests do you have? (`core.prover`)
    standby   Proof*
    active    Fetch*                         what do you hold there?  (Once in sync: this host has lost it.)
    standby   (Write | Unfetched)*
    active    Remember                       now is a moment to remember (once in sync; `core.points`)
    standby   Remembered
    active    KeepOnly*                      drop all other points
    active    Grow (standby: Grown)          the volume is to have that size (recorded, or no room)
    active    Adopt                          nothing is missing any more: take over this lineage
    standby   Adopted                        durable: from now on the standby is in sync
    either    Failed | Leave                 a volume of mine is in trouble | I refuse to go on

Beside that order, from the first moment of a link's session on, whatever the replicas are to each other, a
host serves the clients of the other one (`core.relay`)::

    owner     Serving                        I serve the guest | I do not any more
    other     (Relay | RelayRead | RelayFlush)*
    owner     (Relayed | Relay)*             the end of each request | what a read has found

What changes data carries its term; a receiver refuses a lower one (DESIGN rule 6).  `Renew` is of the link.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from .remembering import KeepOnly, PointMark, Remember, Remembered, is_point_name
from .states import Condition, Generation, Introduce, Role, VolumeState
from .stream import Renew

__all__ = [
    "Adopt",
    "Adopted",
    "Applied",
    "Barrier",
    "BarrierDone",
    "Begin",
    "Begun",
    "Buffer",
    "Condition",
    "Failed",
    "Fetch",
    "Generation",
    "Grow",
    "Grown",
    "Introduce",
    "KeepOnly",
    "Leave",
    "Marked",
    "Message",
    "OpKind",
    "PointMark",
    "Proof",
    "Prove",
    "Relay",
    "RelayFlush",
    "RelayRead",
    "Relayed",
    "Remember",
    "Remembered",
    "Role",
    "Serving",
    "SyncMode",
    "Unfetched",
    "VolumePlan",
    "VolumeState",
    "Write",
    "WriteOp",
    "is_point_name",
]

Buffer: TypeAlias = bytes | bytearray | memoryview


class SyncMode(enum.IntEnum):
    """How a standby's volume is brought to the state of the active's."""

    NOTHING = 0
    """Both are the same already."""
    INCREMENTAL = 1
    """Only the blocks of the dirty map."""
    FULL = 2
    """Every block that is not known to read as zero on both."""


class OpKind(enum.IntEnum):
    """What a write does to its range."""

    DATA = 0
    ZERO = 1
    """Reads as zero afterwards; the space may be given back."""
    TRIM = 2
    """The content does not matter any more; reads as zero afterwards here, so that replicas stay equal."""
    ZERO_ALLOCATE = 3
    """Reads as zero afterwards and keeps its space (NBD's NO_HOLE)."""


class WriteOp(NamedTuple):
    """One range of a write: ``data`` is present for `OpKind.DATA` only and has ``length`` bytes."""

    kind: OpKind
    offset: int
    length: int
    data: Buffer | None = None
    fua: bool = False


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """How one volume is brought to the same state, with the rule of ``core.lineage`` that decided it."""

    mode: SyncMode
    rule: str
    target: Generation  # the generation that the standby will have afterwards


@dataclass(frozen=True, slots=True)
class Begin:
    """The active's plan for one volume; again within a session when the standby fell too far behind."""

    term: int
    volume: int
    plan: VolumePlan


@dataclass(frozen=True, slots=True)
class Marked:
    """Blocks that the *standby's* own dirty map holds: it may have written them alone in an earlier role.

    Sent before `Begun`, in pieces; the active copies the union of both maps (DESIGN section 4).
    """

    volume: int
    extents: tuple[tuple[int, int], ...]  # half-open runs of blocks


@dataclass(frozen=True, slots=True)
class Begun:
    """The standby agrees with the plan and has recorded it durably."""

    volume: int


class Write(NamedTuple):
    """A batch of ranges of one volume, to be applied in this order.

    ``number`` counts the batches of the volume from 1 within a session.  ``digest`` is xxh3_64 over the
    payload (the data of all ops, joined); 0 where there is none.
    """

    term: int
    volume: int
    number: int
    resync: bool
    ops: Sequence[WriteOp]
    digest: int = 0


class Applied(NamedTuple):
    """The standby holds all batches of ``volume`` up to and including ``number`` (not yet durable)."""

    volume: int
    number: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """Make durable, on ``volume``, all that came before this message.

    ``point``: the write-intent generation that this closes, whose blocks leave the dirty map with the answer:
    their digests have to be durable as well, and ``milestone``.  0 for a flush that closes none.
    """

    term: int
    volume: int
    barrier: int
    point: int = 0
    milestone: int | None = None


@dataclass(frozen=True, slots=True)
class BarrierDone:
    """All that came before that `Barrier` is durable."""

    volume: int
    barrier: int


@dataclass(frozen=True, slots=True)
class Prove:
    """What digests of ``level`` does the standby have for the nodes ``first <= node < stop``?

    As of all that came before this message.  ``question`` never repeats.  ``read``: compare the content of
    these nodes with the digests first (a scrub).
    """

    term: int
    volume: int
    question: int
    level: int
    first: int
    stop: int
    read: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """``digests``: 8 bytes a node, for a first part of what was asked, or all of it.

    ``bad``: blocks of that part whose content is not what the standby's own digest says.
    """

    volume: int
    question: int
    digests: bytes
    bad: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetch:
    """What does the standby hold in these blocks, after all that came before this message?

    Answered by a `Write` with that ``number`` to the active host, or `Unfetched`.
    """

    term: int
    volume: int
    number: int
    extents: tuple[tuple[int, int], ...]  # half-open runs of blocks


@dataclass(frozen=True, slots=True)
class Unfetched:
    """That `Fetch` cannot be answered: the standby's disk said ``errno``."""

    volume: int
    number: int
    errno: int


@dataclass(frozen=True, slots=True)
class Grow:
    """``volume`` is to have ``size_bytes``, more than it has; what is added reads as zero."""

    term: int
    volume: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Grown:
    """That size is recorded durably; or there is no room for it: ``errno``, and nothing has changed."""

    volume: int
    size_bytes: int
    errno: int = 0


@dataclass(frozen=True, slots=True)
class Adopt:
    """The standby's ``volume`` is complete and durable: it takes over this lineage, and ``milestone``."""

    term: int
    volume: int
    lineage: tuple[Generation, ...]
    milestone: int | None = None


@dataclass(frozen=True, slots=True)
class Adopted:
    """The lineage is recorded durably; from here on the standby counts as in sync for that volume."""

    volume: int
    generation: Generation


@dataclass(frozen=True, slots=True)
class Failed:
    """A replica cannot go on: the sender's disk said ``errno``; ``reason`` is for people."""

    volume: int
    errno: int
    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The sender refuses to go on, and says why; the session ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Serving:
    """The sender owns the guest under ``term`` and serves the other host's clients, or not any more.

    With ``serves`` false nothing that was asked for before will be answered: its outcome is unknown.
    ``names``: of the guest, and of its volumes in the order in which requests number them; None: not said.
    """

    term: int
    serves: bool
    names: tuple[str, ...] | None = None


class Relay(NamedTuple):
    """To the owner: a batch of a client's ranges, in this order, answered by `Relayed`.

    From the owner: what the `RelayRead` with that ``number`` has found, one range of data.  ``term`` is that
    of `Serving`; ``number`` counts the requests of this host, of all kinds and volumes, and never repeats.
    ``digest`` as in `Write`.
    """

    term: int
    volume: int
    number: int
    ops: Sequence[WriteOp]
    digest: int = 0


@dataclass(frozen=True, slots=True)
class RelayRead:
    """A client wants to read: answered by `Relay`, or by `Relayed` with its error."""

    term: int
    volume: int
    number: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RelayFlush:
    """A client's flush: all that was acknowledged to any client before; answered by `Relayed`."""

    term: int
    volume: int
    number: int


@dataclass(frozen=True, slots=True)
class Relayed:
    """That request has ended: an errno for each of its ranges, or one; none at all: all is well."""

    number: int
    errnos: tuple[int, ...] = ()


Message: TypeAlias = (
    Introduce
    | Begin
    | Begun
    | Marked
    | Write
    | Applied
    | Barrier
    | BarrierDone
    | Prove
    | Proof
    | Fetch
    | Unfetched
    | Remember
    | Remembered
    | KeepOnly
    | Grow
    | Grown
    | Adopt
    | Adopted
    | Failed
    | Leave
    | Serving
    | Relay
    | RelayRead
    | RelayFlush
    | Relayed
    | Renew
)
