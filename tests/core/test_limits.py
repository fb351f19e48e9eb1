"""The options of a volume: what cannot be is refused when it is asked for, naming the culprit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pairsync.core.limits import VolumeOptions
from pairsync.core.tracker import WINDOW_BYTES_DEFAULT
from pairsync.core.units import MIB
from pairsync.errors import ConfigError


def test_the_defaults_are_the_promised_ones() -> None:
    options = VolumeOptions()
    assert (options.level, options.at_bound) == ("sync", "throttle")
    assert options.intent_window_bytes == WINDOW_BYTES_DEFAULT == 64 * MIB


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"level": "quorum"}, "acknowledgement level 'quorum': sync or async"),
        ({"at_bound": "panic"}, "'panic': throttle or fall-behind"),
        ({"lag_bytes": MIB - 1}, "lag_bytes"),
        ({"inflight_bytes": MIB - 1}, "inflight_bytes"),
        ({"intent_window_bytes": 4 * MIB - 1}, "intent_window_bytes"),
        ({"lag_ns": 0}, "lag_ns must be positive"),
        ({"latency_goal_ns": -1}, "latency_goal_ns must be positive"),
        ({"peer_deadline_ns": 0}, "peer_deadline_ns must be positive"),
        ({"disk_deadline_ns": 0}, "disk_deadline_ns must be positive"),
        ({"flush_after_ns": 0}, "flush_after_ns must be positive"),
        ({"tickets_max": 0}, "tickets_max must be positive"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        VolumeOptions(**settings)


def test_the_least_values_are_accepted() -> None:
    VolumeOptions(
        level="async",
        at_bound="fall-behind",
        lag_bytes=MIB,
        inflight_bytes=MIB,
        intent_window_bytes=4 * MIB,
        lag_ns=1,
        latency_goal_ns=1,
        peer_deadline_ns=1,
        disk_deadline_ns=1,
        flush_after_ns=1,
        tickets_max=1,
    )


def test_every_option_is_explained() -> None:
    text = VolumeOptions.__doc__ or ""
    for field in dataclasses.fields(VolumeOptions):
        assert f"``{field.name}``" in text, field.name
