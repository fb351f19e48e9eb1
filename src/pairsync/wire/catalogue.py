"""The shapes of all messages of ``core.messages`` but those of the hot path, which ``codec`` has by hand."""

from __future__ import annotations

from typing import Any

from pairsync.core.fetcher import FETCH_BLOCKS_MAX
from pairsync.core.messages import (
    Adopt,
    Adopted,
    Barrier,
    BarrierDone,
    Begin,
    Begun,
    Condition,
    Failed,
    Fetch,
    Generation,
    Grow,
    Grown,
    Introduce,
    KeepOnly,
    Leave,
    Marked,
    Message,
    PointMark,
    Proof,
    Prove,
    Relayed,
    RelayFlush,
    RelayRead,
    Remember,
    Remembered,
    Role,
    Serving,
    SyncMode,
    Unfetched,
    VolumePlan,
    VolumeState,
    is_point_name,
)
from pairsync.core.questions import ANSWER_NODES_MAX, BAD_BLOCKS_MAX, DIGEST_BYTES, LEVEL_TOP
from pairsync.core.stream import Renew
from pairsync.core.units import VOLUME_BYTES_MAX
from pairsync.errors import ProtocolError

from .limits import (
    FRAME_PAYLOAD_BYTES_MAX,
    LINEAGE_GENERATIONS_MAX,
    MARKED_EXTENTS_MAX,
    NAME_BYTES_MAX,
    NUMBER_MAX,
    POINT_NAME_BYTES_MAX,
    POINT_TAGS_MAX,
    REASON_BYTES_MAX,
    VOLUMES_MAX,
    WRITE_OPS_MAX,
)
from .shapes import (
    Shape,
    binary,
    boolean,
    bounded_binary,
    choice,
    optional,
    sequence,
    structure,
    text,
    unsigned,
)

__all__ = ["BEFORE_MILESTONES", "TABLE", "VOLUME_STATE"]

_number = unsigned(NUMBER_MAX)
_size = unsigned(VOLUME_BYTES_MAX, minimum=1)
_word64 = unsigned((1 << 64) - 1)
_volume = unsigned(VOLUMES_MAX - 1)
_name = text(NAME_BYTES_MAX)
_reason = text(REASON_BYTES_MAX)
_generation: Shape[Generation] = structure(
    Generation, ("term", _number), ("epoch", _number), ("tag", _word64)
)
_lineage = sequence(_generation, LINEAGE_GENERATIONS_MAX)
VOLUME_STATE: tuple[tuple[str, Shape[Any]], ...] = (
    ("name", _name),
    ("volume_id", binary(16)),
    ("size_bytes", _size),
    ("condition", choice(Condition)),
    ("lineage", _lineage),
    ("sync_target", optional(_generation)),
    ("map_base", optional(_generation)),
    ("dirty_blocks", _number),
    ("proves", boolean),
    ("points", sequence(_word64, POINT_TAGS_MAX)),
)
_MILESTONES: tuple[tuple[str, Shape[Any]], ...] = (("reached", optional(_number)), ("given", _number))


def _make_point(name: str, tag: int, created_s: int) -> PointMark:
    if not is_point_name(name):
        raise ProtocolError(f"{name!r} is no name of a point")
    return PointMark(name, tag, created_s)


_point = structure(
    _make_point, ("name", text(POINT_NAME_BYTES_MAX)), ("tag", _word64), ("created_s", _number)
)
_volume_plan = structure(VolumePlan, ("mode", choice(SyncMode)), ("rule", _reason), ("target", _generation))


def _make_extent(start: int, stop: int) -> tuple[int, int]:
    if start >= stop:
        raise ProtocolError(f"extent {start}..{stop} is empty")
    return start, stop


_extent = structure(_make_extent, ("start", _number), ("stop", _number))

_INTRODUCE: tuple[tuple[str, Shape[Any]], ...] = (
    ("pair_id", binary(16)),
    ("guest", _name),
    ("role", choice(Role)),
    ("term", _number),
)
_BARRIER = (("term", _number), ("volume", _volume), ("barrier", _number), ("point", _number))
_SERVING: tuple[tuple[str, Shape[Any]], ...] = (("term", _number), ("serves", boolean))
_ADOPT: tuple[tuple[str, Shape[Any]], ...] = (("term", _number), ("volume", _volume), ("lineage", _lineage))
_MILESTONE = ("milestone", optional(_number))


def _introduce(*fields: tuple[str, Shape[Any]]) -> Shape[Introduce]:
    """Of replicas with these fields."""
    return structure(
        Introduce, *_INTRODUCE, ("volumes", sequence(structure(VolumeState, *fields), VOLUMES_MAX))
    )


# type number -> (class, shape of the fields behind the type number)
TABLE: dict[int, tuple[type[Message], Shape[Any]]] = {
    1: (Introduce, _introduce(*VOLUME_STATE, *_MILESTONES)),
    2: (Begin, structure(Begin, ("term", _number), ("volume", _volume), ("plan", _volume_plan))),
    3: (Begun, structure(Begun, ("volume", _volume))),
    6: (Barrier, structure(Barrier, *_BARRIER, _MILESTONE)),
    7: (BarrierDone, structure(BarrierDone, ("volume", _volume), ("barrier", _number))),
    8: (Adopt, structure(Adopt, *_ADOPT, _MILESTONE)),
    9: (Adopted, structure(Adopted, ("volume", _volume), ("generation", _generation))),
    10: (Failed, structure(Failed, ("volume", _volume), ("errno", unsigned(0xFFFF)), ("reason", _reason))),
    11: (Leave, structure(Leave, ("reason", _reason))),
    12: (
        Marked,
        structure(Marked, ("volume", _volume), ("extents", sequence(_extent, MARKED_EXTENTS_MAX))),
    ),
    13: (
        Prove,
        structure(
            Prove,
            ("term", _number),
            ("volume", _volume),
            ("question", _number),
            ("level", unsigned(LEVEL_TOP)),
            ("first", _number),
            ("stop", _number),
            ("read", boolean),
        ),
    ),
    14: (
        Proof,
        structure(
            Proof,
            ("volume", _volume),
            ("question", _number),
            ("digests", bounded_binary(ANSWER_NODES_MAX * DIGEST_BYTES)),
            ("bad", sequence(_number, BAD_BLOCKS_MAX)),
        ),
    ),
    15: (
        Fetch,
        structure(
            Fetch,
            ("term", _number),
            ("volume", _volume),
            ("number", unsigned(NUMBER_MAX, minimum=1)),
            ("extents", sequence(_extent, FETCH_BLOCKS_MAX)),
        ),
    ),
    16: (
        Unfetched,
        structure(
            Unfetched,
            ("volume", _volume),
            ("number", unsigned(NUMBER_MAX, minimum=1)),
            ("errno", unsigned(0xFFFF)),
        ),
    ),
    18: (
        Serving,
        structure(Serving, *_SERVING, ("names", optional(sequence(_name, 1 + VOLUMES_MAX)))),
    ),
    19: (
        RelayRead,
        structure(
            RelayRead,
            ("term", _number),
            ("volume", _volume),
            ("number", unsigned(NUMBER_MAX, minimum=1)),
            ("offset", _number),
            ("length", unsigned(FRAME_PAYLOAD_BYTES_MAX, minimum=1)),
        ),
    ),
    20: (
        RelayFlush,
        structure(
            RelayFlush,
            ("term", _number),
            ("volume", _volume),
            ("number", unsigned(NUMBER_MAX, minimum=1)),
        ),
    ),
    21: (
        Relayed,
        structure(
            Relayed,
            ("number", unsigned(NUMBER_MAX, minimum=1)),
            ("errnos", sequence(unsigned(0xFFFF), WRITE_OPS_MAX)),
        ),
    ),
    22: (Remember, structure(Remember, ("term", _number), ("volume", _volume), ("mark", _point))),
    23: (
        Remembered,
        structure(Remembered, ("volume", _volume), ("tag", _word64), ("errno", unsigned(0xFFFF))),
    ),
    24: (
        KeepOnly,
        structure(
            KeepOnly, ("term", _number), ("volume", _volume), ("tags", sequence(_word64, POINT_TAGS_MAX))
        ),
    ),
    25: (Grow, structure(Grow, ("term", _number), ("volume", _volume), ("size_bytes", _size))),
    26: (
        Grown,
        structure(Grown, ("volume", _volume), ("size_bytes", _size), ("errno", unsigned(0xFFFF))),
    ),
    27: (Renew, structure(Renew, ("reason", _reason))),  # from version 2 on
}
BEFORE_MILESTONES: dict[int, Shape[Any]] = {
    1: _introduce(*VOLUME_STATE),
    6: structure(Barrier, *_BARRIER),
    8: structure(Adopt, *_ADOPT),
    18: structure(Serving, *_SERVING),
}
"""The same in protocol versions before 3, where it was another one: what came later is left out."""
