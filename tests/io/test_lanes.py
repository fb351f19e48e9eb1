"""Both ends derive the same lane, and only they."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import trio
from tests.io.harness import connections

from pairsync.errors import PeerLost, ProtocolError
from pairsync.io.gate import Gate
from pairsync.io.lanes import LaneTerms, make_lane, send_preamble
from pairsync.wire.frames import parse_record
from pairsync.wire.hello import LANE_PREAMBLE_BYTES, parse_lane_preamble

TERMS = LaneTerms(
    version=1,
    session_id=b"s" * 16,
    lane_id=b"l" * 16,
    dialer_fingerprint=b"d" * 32,
    listener_fingerprint=b"r" * 32,
    dialer_secret=b"1" * 32,
    listener_secret=b"2" * 32,
)


async def test_both_ends_open_what_the_other_sealed() -> None:
    near, far = connections()
    dialer = make_lane(TERMS, near, Gate(), dialing=True, who="listener")
    listener = make_lane(TERMS, far, Gate(), dialing=False, who="dialer")
    dialer.transmit(0, 5, [])
    listener.transmit(0, 6, [])
    with trio.fail_after(5):
        assert parse_record(await listener.receive_first()).acknowledged == 5
        assert parse_record(await dialer.receive_first()).acknowledged == 6


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(LaneTerms)])
async def test_terms_that_differ_in_anything_do_not_meet(field: str) -> None:
    value = getattr(TERMS, field)
    changed: Any = value + 1 if isinstance(value, int) else value[:-1] + b"?"
    other = dataclasses.replace(TERMS, **{field: changed})
    near, far = connections()
    make_lane(TERMS, near, Gate(), dialing=True, who="listener").transmit(0, 0, [])
    with pytest.raises(ProtocolError, match="fails its seal"):
        await make_lane(other, far, Gate(), dialing=False, who="dialer").receive_first()


async def test_an_end_does_not_open_its_own_records() -> None:
    near, far = connections()
    make_lane(TERMS, near, Gate(), dialing=True, who="listener").transmit(0, 0, [])
    with pytest.raises(ProtocolError, match="fails its seal"):
        await make_lane(TERMS, far, Gate(), dialing=True, who="mirror").receive_first()


async def test_the_preamble_goes_out_whole_or_not_at_all() -> None:
    near, far = connections()
    send_preamble(near, b"l" * 16, "listener")
    assert parse_lane_preamble(far.buffer) == b"l" * 16
    narrow, _ = connections(capacity_bytes=LANE_PREAMBLE_BYTES - 1)
    with pytest.raises(PeerLost, match="did not take"):
        send_preamble(narrow, b"l" * 16, "listener")
    near.close()
    with pytest.raises(PeerLost, match="listener"):
        send_preamble(near, b"l" * 16, "listener")


def test_secrets_are_not_shown() -> None:
    assert "1111" not in repr(TERMS)
