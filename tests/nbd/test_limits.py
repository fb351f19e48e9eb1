"""Bounds: a useless one is refused by its name, and the defaults keep what the protocol asks for."""

from __future__ import annotations

import dataclasses

import pytest

from pairsync.errors import ConfigError
from pairsync.nbd import constants as c
from pairsync.nbd.limits import OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, PAYLOAD_SKIP_BYTES_MAX, NbdLimits


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(NbdLimits)])
def test_every_limit_is_positive(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(ConfigError, match=name):
            NbdLimits(**{name: value})


def test_handshakes_are_connections() -> None:
    with pytest.raises(ConfigError, match="handshakes_max"):
        NbdLimits(connections_max=10)
    assert NbdLimits(connections_max=10, handshakes_max=10).handshakes_max == 10


def test_the_hard_limit_is_above_the_other() -> None:
    with pytest.raises(ConfigError, match="total_bytes_hard_max"):
        NbdLimits(total_bytes_in_flight_max=2 << 30)
    NbdLimits(total_bytes_in_flight_max=2 << 30, total_bytes_hard_max=2 << 30)


def test_defaults_leave_room_for_what_is_allowed() -> None:
    limits = NbdLimits()
    assert limits.bytes_in_flight_max >= c.PAYLOAD_BYTES_MAX
    assert limits.total_bytes_in_flight_max > limits.bytes_in_flight_max
    assert limits.extents_max <= 1 << 20  # "Structured reply types", NBD_REPLY_TYPE_BLOCK_STATUS
    assert OPTION_BYTES_MAX > 2 * c.STRING_BYTES_MAX
    assert OPTION_SKIP_BYTES_MAX > OPTION_BYTES_MAX
    assert PAYLOAD_SKIP_BYTES_MAX > c.PAYLOAD_BYTES_MAX
