"""The superblock's bytes: strict msgpack, one way to write every value.

The payload of the superblock slots is a map of the file's *layout* (fixed when the file is made) and of
`core.superblock.Superblock`.  Decoding accepts exactly what encoding gives: the same keys, types, ranges and
bytes.  Any change of the fields is a new format version (``storage.slots``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgpack

from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import LINEAGE_GENERATIONS_MAX, Superblock
from pairsync.core.units import VOLUME_BYTES_MAX, block_count_of
from pairsync.errors import ConfigError, InternalError, MetadataError, MismatchError

from .records import RECORD_BYTES

__all__ = [
    "BOOT_ID_BYTES_MAX",
    "ID_BYTES",
    "NAME_BYTES_MAX",
    "PAYLOAD_BYTES_MAX",
    "Layout",
    "check_identity",
    "check_new",
    "decode_superblock",
    "encode_superblock",
]

ID_BYTES: Final = 16
NAME_BYTES_MAX: Final = 255
"""UTF-8 bytes of a volume's name: what a file name may have."""
BOOT_ID_BYTES_MAX: Final = 64
"""The kernel's boot id has 36."""
PAYLOAD_BYTES_MAX: Final = 4000
"""A longest name and boot id and 64 generations of 28 bytes, keys included, need less; one page with the
slot's header, so that a superblock is one page on disk."""

_U64_MAX: Final = (1 << 64) - 1
_SEGMENT_BYTES_MAX: Final = 1 << 30


class Layout(NamedTuple):
    """What is fixed when a metadata file is made."""

    segment_bytes: int
    """Room of one journal segment, whole records."""
    seed: int
    """Sets the digests of this file apart from those of any other, 64 bits."""


class _Refused(Exception):
    """What is wrong with a value; becomes `MetadataError` when decoding, `InternalError` when encoding."""


def encode_superblock(layout: Layout, superblock: Superblock) -> bytes:
    """The payload of a superblock slot; `InternalError` for a value that could not be read back."""
    try:
        _check(layout, superblock)
    except _Refused as error:
        raise InternalError(f"superblock: {error}") from error
    payload = _pack(layout, superblock)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise InternalError(f"superblock of {len(payload)} bytes")
    return payload


def check_new(superblock: Superblock) -> None:
    """`ConfigError` for what a caller gave that no replica can have, before anything is made of it."""
    kinds = {"pair_id": bytes, "volume_id": bytes, "name": str, "size_bytes": int}
    for key, kind in kinds.items():
        value = getattr(superblock, key)
        if type(value) is not kind:
            raise ConfigError(f"{key} of a new replica: must be {kind.__name__}, not {type(value).__name__}")
    try:
        _check(Layout(RECORD_BYTES, 0), superblock)
    except _Refused as error:
        raise ConfigError(f"a new replica: {error}") from error


def decode_superblock(payload: bytes) -> tuple[Layout, Superblock]:
    """The inverse; `MetadataError` for anything that `encode_superblock` does not give."""
    try:
        layout, superblock = _unpack(payload)
        _check(layout, superblock)
        if _pack(layout, superblock) != payload:
            raise _Refused("not in the one form that is written")  # noqa: TRY301
    except _Refused as error:
        raise MetadataError(f"damaged: superblock: {error}") from error
    return layout, superblock


def _pack(layout: Layout, superblock: Superblock) -> bytes:
    base, target = superblock.map_base, superblock.sync_target
    seldom: dict[str, object] = {}
    if superblock.parted is not None:
        seldom["parted"] = superblock.parted
    if superblock.outdated:
        seldom["outdated"] = True
    packed: bytes = msgpack.packb(
        {
            "segment_bytes": layout.segment_bytes,
            "seed": layout.seed,
            "pair_id": superblock.pair_id,
            "volume_id": superblock.volume_id,
            "name": superblock.name,
            "size_bytes": superblock.size_bytes,
            "term": superblock.term,
            "condition": int(superblock.condition),
            "lineage": [list(generation) for generation in superblock.lineage],
            "sync_target": None if target is None else list(target),
            "peer_in_sync": superblock.peer_in_sync,
            "map_base": None if base is None else list(base),
            "clean": superblock.clean,
            "boot_id": superblock.boot_id,
            **seldom,
        }
    )
    return packed


_KEYS: Final = frozenset({"segment_bytes", "seed", *Superblock.__dataclass_fields__})
_SELDOM: Final = frozenset({"parted", "outdated"})
"""Written only where they say something: a version that does not know them reads all other superblocks."""


def _unpack(payload: bytes) -> tuple[Layout, Superblock]:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise _Refused(f"{len(payload)} bytes")
    try:
        fields = msgpack.unpackb(payload, strict_map_key=True)  # its limits follow from the length
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise _Refused("not msgpack") from error
    if not isinstance(fields, dict) or fields.keys() | _SELDOM != _KEYS:
        raise _Refused("other fields than expected")
    lineage = fields["lineage"]
    if not isinstance(lineage, list) or len(lineage) > LINEAGE_GENERATIONS_MAX:
        raise _Refused("lineage")
    superblock = Superblock(
        pair_id=_typed(fields, "pair_id", bytes),
        volume_id=_typed(fields, "volume_id", bytes),
        name=_typed(fields, "name", str),
        size_bytes=_number(fields, "size_bytes"),
        term=_number(fields, "term"),
        condition=_condition(_number(fields, "condition")),
        lineage=tuple(_generation(each) for each in lineage),
        sync_target=_generation_or_none(fields["sync_target"]),
        peer_in_sync=_typed(fields, "peer_in_sync", bool),
        map_base=_generation_or_none(fields["map_base"]),
        clean=_typed(fields, "clean", bool),
        boot_id=_typed(fields, "boot_id", str),
        parted=_number(fields, "parted") if "parted" in fields else None,
        outdated=_typed(fields, "outdated", bool) if "outdated" in fields else False,
    )
    return Layout(_number(fields, "segment_bytes"), _number(fields, "seed")), superblock


def _typed(fields: Mapping[str, object], key: str, kind: type[Any]) -> Any:
    value = fields[key]
    if type(value) is not kind:
        raise _Refused(key)
    return value


def _number(fields: Mapping[str, object], key: str) -> int:
    value: int = _typed(fields, key, int)
    return value


def _condition(value: int) -> Condition:
    try:
        return Condition(value)
    except ValueError as error:
        raise _Refused("condition") from error


def _generation(value: object) -> Generation:
    if not isinstance(value, list) or len(value) != 3 or any(type(each) is not int for each in value):
        raise _Refused("generation")
    return Generation(*value)


def _generation_or_none(value: object) -> Generation | None:
    return None if value is None else _generation(value)


def _check(layout: Layout, superblock: Superblock) -> None:
    """Ranges, on the way out as on the way in."""
    if len(superblock.pair_id) != ID_BYTES or len(superblock.volume_id) != ID_BYTES:
        raise _Refused(f"an id that has not {ID_BYTES} bytes")
    _check_text("name", superblock.name, NAME_BYTES_MAX)
    _check_text("boot_id", superblock.boot_id, BOOT_ID_BYTES_MAX)
    if not 1 <= superblock.size_bytes <= VOLUME_BYTES_MAX:
        raise _Refused(f"a volume of {superblock.size_bytes} bytes")
    if len(superblock.lineage) > LINEAGE_GENERATIONS_MAX:
        raise _Refused(f"{len(superblock.lineage)} generations")
    single = [each for each in (superblock.sync_target, superblock.map_base) if each is not None]
    numbers = [superblock.term, layout.seed, *(n for g in (*superblock.lineage, *single) for n in g)]
    for number in [*numbers, superblock.parted or 0]:
        if not 0 <= number <= _U64_MAX:
            raise _Refused("a number beyond 64 bits")
    segment_bytes = layout.segment_bytes
    if segment_bytes % RECORD_BYTES or not RECORD_BYTES <= segment_bytes <= _SEGMENT_BYTES_MAX:
        raise _Refused(f"journal segments of {segment_bytes} bytes")


def _check_text(what: str, text: str, bytes_max: int) -> None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise _Refused(what) from error
    if length > bytes_max:
        raise _Refused(f"{what} of {length} bytes")


def check_identity(
    found: Superblock, *, pair_id: bytes, volume_id: bytes | None = None, size_bytes: int | None = None
) -> None:
    """Refuse, with `MismatchError`, metadata of another pair, another volume or another size.

    ``None`` accepts any.  Call it before the volume is touched.
    """
    if found.pair_id != pair_id:
        raise MismatchError(
            f"volume {found.name} belongs to pair {found.pair_id.hex()}, not to {pair_id.hex()}; "
            "nothing was changed"
        )
    if volume_id is not None and found.volume_id != volume_id:
        raise MismatchError(
            f"the metadata is that of volume {found.name} ({found.volume_id.hex()}), "
            f"not of {volume_id.hex()}; nothing was changed"
        )
    if size_bytes is not None and found.size_bytes != size_bytes:
        raise MismatchError(
            f"volume {found.name} has {found.size_bytes} bytes ({block_count_of(found.size_bytes)} blocks) "
            f"by its metadata, {size_bytes} were found; nothing was changed"
        )
