"""Limits imply each other: what the largest message needs, a frame has; what a frame has, a record has."""

from __future__ import annotations

from typing import get_type_hints

from pairsync.core.messages import Condition, Generation, Introduce, Marked, Role, VolumeState
from pairsync.core.units import VOLUME_BYTES_MAX
from pairsync.wire import limits
from pairsync.wire.codec import encode
from pairsync.wire.frames import make_frame, pack_record
from pairsync.wire.limits import (
    FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    FRAME_PREFIX_BYTES,
    KEY_BYTES_MAX,
    LINEAGE_GENERATIONS_MAX,
    MARKED_EXTENTS_MAX,
    NAME_BYTES_MAX,
    NUMBER_MAX,
    RECORD_BYTES_MAX,
    RECORD_COALESCE_BYTES,
    RECORD_PLAINTEXT_BYTES_MAX,
    TAG_BYTES,
    VOLUMES_MAX,
)

LARGEST = Generation(NUMBER_MAX, NUMBER_MAX, (1 << 64) - 1)


def test_the_largest_introduction_fits_a_header() -> None:
    values: dict[str, object] = {
        "name": "n" * NAME_BYTES_MAX,
        "volume_id": bytes(16),
        "size_bytes": VOLUME_BYTES_MAX,
        "condition": Condition.CONSISTENT,
        "lineage": (LARGEST,) * LINEAGE_GENERATIONS_MAX,
    }
    for name, hint in get_type_hints(VolumeState).items():
        values.setdefault(name, {int: NUMBER_MAX, int | None: NUMBER_MAX, bool: True}.get(hint, LARGEST))
    state = VolumeState(**values)  # type: ignore[arg-type]  # by name, whatever fields there are
    introduce = Introduce(bytes(16), "g" * NAME_BYTES_MAX, Role.ACTIVE, NUMBER_MAX, (state,) * VOLUMES_MAX)
    (header,) = encode(introduce)
    assert len(header) <= FRAME_HEADER_BYTES_MAX


def test_the_largest_dirty_map_piece_fits_a_header() -> None:
    (header,) = encode(Marked(VOLUMES_MAX - 1, ((NUMBER_MAX - 1, NUMBER_MAX),) * MARKED_EXTENTS_MAX))
    assert len(header) <= FRAME_HEADER_BYTES_MAX


def test_the_largest_frame_fits_a_record_that_was_about_to_close() -> None:
    nearly = make_frame([b"h", bytes(RECORD_COALESCE_BYTES - FRAME_PREFIX_BYTES - 2)])
    largest = make_frame([bytes(FRAME_HEADER_BYTES_MAX), bytes(FRAME_PAYLOAD_BYTES_MAX)])
    assert nearly.size_bytes == RECORD_COALESCE_BYTES - 1
    plaintext = pack_record(0, 0, [nearly, largest])
    assert len(plaintext) <= RECORD_PLAINTEXT_BYTES_MAX
    assert RECORD_BYTES_MAX == RECORD_PLAINTEXT_BYTES_MAX + TAG_BYTES
    assert KEY_BYTES_MAX > RECORD_PLAINTEXT_BYTES_MAX


def test_all_limits_are_exported_and_positive() -> None:
    constants = {name for name in vars(limits) if name.isupper()} - {"GIB", "KIB", "MIB"}
    assert constants == set(limits.__all__)
    assert all(getattr(limits, name) > 0 for name in constants)
