"""Heartbeats: numbers grow, and of the last ones it is known when they were sent."""

from __future__ import annotations

from pairsync.core.heartbeats import BEATS_OPEN_MAX, Heartbeats


def test_of_the_last_ones_it_is_known_when_they_were_sent() -> None:
    beats = Heartbeats(1 << 40)
    numbers = [beats.sends(now_ns) for now_ns in range(2 * BEATS_OPEN_MAX)]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 1 << 40
    assert len(beats) == BEATS_OPEN_MAX
    assert [beats.sent_ns(number) for number in numbers[-2:]] == [
        2 * BEATS_OPEN_MAX - 2,
        2 * BEATS_OPEN_MAX - 1,
    ]
    assert beats.sent_ns(numbers[0]) is None
    assert beats.sent_ns(1) is None
