"""Values of a witness store: what is a key, what is behind, what fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.witness import (
    GUEST_NAME_BYTES_MAX,
    VALUE_BYTES_MAX,
    VERSION_MAX,
    Snapshot,
    WitnessKey,
    check_value,
    first_version,
)
from pairsync.errors import ConfigError, InternalError

PAIR = b"one pair of two!"


def test_a_key_is_a_pair_and_a_name() -> None:
    assert WitnessKey(PAIR, "db1") == WitnessKey(PAIR, "db1")
    WitnessKey(PAIR, "x" * GUEST_NAME_BYTES_MAX)
    for pair_id, guest in (
        (PAIR[1:], "db1"),
        (PAIR, ""),
        (PAIR, "x" * 256),
        (PAIR, "\N{SNOWMAN}" * 86),
        (PAIR, "\ud800"),
    ):
        with pytest.raises(ConfigError, match="witness"):
            WitnessKey(pair_id, guest)


def test_behind_is_told_within_an_incarnation_only() -> None:
    seen = Snapshot(b"12345678", 7, b"x")
    assert Snapshot(b"12345678", 6, None).is_behind(seen)
    assert not Snapshot(b"12345678", 7, b"y").is_behind(seen)
    assert not Snapshot(b"87654321", 1, None).is_behind(seen)


def test_a_value_is_short() -> None:
    check_value(bytes(VALUE_BYTES_MAX))
    with pytest.raises(ConfigError, match="1025 bytes"):
        check_value(bytes(VALUE_BYTES_MAX + 1))


@given(st.binary(min_size=8, max_size=8))
def test_a_first_version_leaves_room_to_count(entropy: bytes) -> None:
    assert 0 <= first_version(entropy) <= VERSION_MAX // 2


def test_a_first_version_is_not_drawn_from_less() -> None:
    with pytest.raises(InternalError):
        first_version(b"1234567")
