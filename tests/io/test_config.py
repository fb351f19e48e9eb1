"""What a link is told is checked as a whole, and the culprit is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.io.harness import Pair

from pairsync.core.stream import WINDOW_BYTES_MIN
from pairsync.errors import ConfigError
from pairsync.io import LinkTimings, PathConfig
from pairsync.io.config import WINDOW_BYTES_MAX

TIMINGS = LinkTimings()
PEER = ("10.0.0.2", 7000)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pair_id": b"short"}, "pair id"),
        ({"paths": tuple(PathConfig(str(n), PEER) for n in range(5))}, "5 paths"),
        ({"paths": (PathConfig("a", PEER), PathConfig("a", PEER))}, "same name"),
        ({"paths": (PathConfig("", PEER),)}, "no name"),
        ({"paths": (PathConfig("a\n", PEER),)}, "no name"),
        ({"paths": (PathConfig("ä" * 40, PEER),)}, "no name"),
        ({"window_bytes": WINDOW_BYTES_MIN - 1}, "window"),
        ({"window_bytes": WINDOW_BYTES_MAX + 1}, "window"),
        ({"protocol_min": 2, "protocol_max": 1}, "versions 2..1"),
        ({"protocol_max": 70_000}, "versions"),
        ({"software": "x" * 129}, "software"),
        ({"timings": dataclasses.replace(TIMINGS, heartbeat_ns=0)}, "two heartbeats"),
        ({"timings": dataclasses.replace(TIMINGS, silence_ns=TIMINGS.heartbeat_ns)}, "two heartbeats"),
        ({"timings": dataclasses.replace(TIMINGS, lane_silence_ns=1)}, "lane"),
        ({"timings": dataclasses.replace(TIMINGS, backoff_first_ns=0)}, "back-off"),
        ({"timings": dataclasses.replace(TIMINGS, backoff_limit_ns=1)}, "back-off"),
        ({"timings": dataclasses.replace(TIMINGS, handshake_ns=0)}, "handshake"),
    ],
)
def test_what_cannot_be_is_refused(pair: Pair, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        pair.dialer_config(PEER, **changes).check()


def test_the_defaults_are_good(pair: Pair) -> None:
    pair.dialer_config(PEER).check()
    pair.listener_config().check()
    TIMINGS.check()


def test_a_key_is_not_shown(pair: Pair) -> None:
    assert "PRIVATE KEY" not in repr(pair.dialer_config(PEER))
