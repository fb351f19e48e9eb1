"""The shapes of messages in all protocol versions: what peers of before there were milestones are sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pairsync.core.messages import (
    Adopt,
    Barrier,
    Begun,
    Condition,
    Generation,
    Introduce,
    Message,
    Prove,
    Role,
    Serving,
    VolumeState,
)
from pairsync.errors import ProtocolError
from pairsync.wire.catalogue import BEFORE_MILESTONES, TABLE, VOLUME_STATE
from pairsync.wire.codec import decode, encode
from pairsync.wire.hello import PROTOCOL_MILESTONES

GENERATION = Generation(3, 1, 99)
STATE = VolumeState("vda", bytes(16), 1 << 20, Condition.CONSISTENT, (GENERATION,), reached=7, given=5)


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize(
    ("message", "before"),
    [
        (
            Introduce(bytes(16), "g", Role.ACTIVE, 3, (STATE, STATE)),
            Introduce(bytes(16), "g", Role.ACTIVE, 3, (replace(STATE, reached=None, given=0),) * 2),
        ),
        (Barrier(3, 0, 1, 2, milestone=9), Barrier(3, 0, 1, 2)),
        (Adopt(3, 0, (GENERATION,), milestone=9), Adopt(3, 0, (GENERATION,))),
        (Serving(3, serves=True, names=("g", "vda")), Serving(3, serves=True)),
    ],
)
def test_a_peer_of_before_milestones_neither_gets_nor_gives_any(
    message: Message, before: Message, protocol: int
) -> None:
    (header,) = encode(message, protocol)
    assert decode(header, b"", protocol) == before
    with pytest.raises(ProtocolError, match="fields, expected"):
        decode(header, b"", PROTOCOL_MILESTONES)
    (header,) = encode(message, PROTOCOL_MILESTONES)
    assert decode(header, b"", PROTOCOL_MILESTONES) == message
    with pytest.raises(ProtocolError, match="fields, expected"):
        decode(header, b"", protocol)


def test_what_did_not_change_is_the_same_in_all_versions() -> None:
    for message in (Begun(1), Prove(3, 0, 1, 0, 0, 1, read=False)):
        assert encode(message, 1) == encode(message, PROTOCOL_MILESTONES)


def test_what_changed_is_in_both_tables_and_the_fields_of_a_replica_stand_in_their_order() -> None:
    assert set(BEFORE_MILESTONES) < set(TABLE)
    assert [name for name, _ in VOLUME_STATE] == list(VolumeState.__slots__[:-2])
