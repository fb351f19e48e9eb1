"""What a pure machine wants done: the effects of one bundle, performed by the shell in the given order.

Every effect with a ``token`` is answered, once, through the method named beside it; an answer may come late,
after the session or the generation it belonged to has ended: the machines keep the token and drop answers
they no longer wait for.  Order that the shell must keep, a volume:

* `Apply`, `Read`, `Examine`, `Extend` and the moment of a `MakePoint` come strictly one after the other, in
  the order of the bundle; a `DropPoints` concerns no point that is made behind it;
* `Journal`, `SavePages` and `Persist` likewise, in a queue of their own;
* a `Persist` with a larger size than the last one is reported once the open files have that size, which they
  get between two applies;
* `Flush` covers every `Apply` that was *answered* before it was issued, and may run beside later ones;
* `Send` keeps the order of messages of the whole session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from .events import Event
from .messages import Message, PointMark, WriteOp
from .superblock import Superblock
from .units import Extent

__all__ = [
    "Apply",
    "AskAlone",
    "Complete",
    "DiskFailed",
    "DropPoints",
    "DropSession",
    "Effect",
    "Emit",
    "Examine",
    "Extend",
    "Flush",
    "Journal",
    "MakePoint",
    "MapAllocation",
    "Persist",
    "Read",
    "SavePages",
    "Send",
]


class Journal(NamedTuple):
    """Record the intent to write ``extents`` durably: `Source.journaled`."""

    volume: int
    token: object
    segment: int
    generation: int
    extents: Sequence[Extent]


class Apply(NamedTuple):
    """Write ``ops`` to the local volume, in order: `applied`."""

    volume: int
    token: object
    ops: Sequence[WriteOp]


class Read(NamedTuple):
    """Find out about the blocks of ``extents``, which ascend: data, or that they read as zero: `read_done`.

    Either one extent of any length, of which a first part is answered (a hole, or up to ``piece_bytes``), or
    several that are small together (`PIECE_BYTES`).
    """

    volume: int
    number: int
    extents: Sequence[Extent]
    piece_bytes: int


class Examine(NamedTuple):
    """Find out the digests of the nodes ``first <= node < stop`` of ``level``: `examined`.

    Blocks whose digest is unknown are read; with ``read`` all are, and compared with their digests.
    """

    volume: int
    token: object
    level: int
    first: int
    stop: int
    read: bool


class Extend(NamedTuple):
    """Make room, durably, for a volume of that size that reads as zero behind its present end: `extended`.

    Nothing that counts has changed before a `Persist` with that size.
    """

    volume: int
    token: object
    size_bytes: int


class Flush(NamedTuple):
    """Make durable all that was applied: `flushed`.

    ``digests``: those of what was applied too, and with them the milestone that the owner has given, if any.
    """

    volume: int
    token: object
    digests: bool = False
    milestone: int | None = None


class SavePages(NamedTuple):
    """Write pages of the dirty bitmap durably, then give up journal segments: `saved`.

    ``release``: segments whose intents are not needed any more once the pages are durable.
    """

    volume: int
    token: object
    pages: Mapping[int, bytes]
    release: tuple[int, ...] = ()


class Persist(NamedTuple):
    """Replace the superblock durably: `persisted`."""

    volume: int
    token: object
    superblock: Superblock


class MakePoint(NamedTuple):
    """Keep what the volume holds now, after every `Apply` before, under this mark, durably: `point_made`.

    In place of one of the same name.
    """

    volume: int
    token: object
    mark: PointMark


class DropPoints(NamedTuple):
    """Drop all points but those of the tags in ``keep``, durably: `points_dropped`."""

    volume: int
    token: object
    keep: tuple[int, ...]


class MapAllocation(NamedTuple):
    """Find the runs of blocks that may hold anything but zeroes: `Source.mapped`."""

    volume: int
    token: object


class Send(NamedTuple):
    """Hand to the link, behind everything sent before."""

    messages: Sequence[Message]


class AskAlone(NamedTuple):
    """The guest has to go on without its peer: `Session.permitted`, once the grant register allows it."""


class DiskFailed(NamedTuple):
    """This host's disk cannot do what it should; comes before whatever ends with an error for it.

    If the guest is moved to the peer now, nobody has to hear of that error.
    """

    volume: int
    reason: str


class Complete(NamedTuple):
    """The request that the embedder gave ``ticket`` to has ended: an errno for each op, or None: all well."""

    ticket: object
    errnos: Sequence[int] | None


class DropSession(NamedTuple):
    """End the session: ``reason`` for people; ``refused`` if trying again soon is pointless."""

    reason: str
    refused: bool


class Emit(NamedTuple):
    """Tell the subscribers."""

    event: Event


Effect: TypeAlias = (
    Journal
    | Apply
    | Read
    | Examine
    | Extend
    | Flush
    | SavePages
    | Persist
    | MakePoint
    | DropPoints
    | MapAllocation
    | Send
    | AskAlone
    | DiskFailed
    | Complete
    | DropSession
    | Emit
)
