"""Refusals: all are counted, few are logged."""

from __future__ import annotations

import pytest

from pairsync.core.units import NS_PER_S
from pairsync.io.refusals import LOG_BURST, Refusals


def test_counted_by_kind_and_logged_in_bursts(caplog: pytest.LogCaptureFixture) -> None:
    now_ns = 10 * NS_PER_S
    refusals = Refusals(lambda: now_ns)
    for number in range(LOG_BURST + 30):
        refusals.refuse("noise", f"stranger {number}")
    assert len(caplog.records) == LOG_BURST
    assert "stranger 0" in caplog.text
    now_ns += NS_PER_S
    refusals.refuse("handshake", "another")
    assert refusals.counts() == {"noise": LOG_BURST + 30, "handshake": 1}
    assert [record.getMessage() for record in caplog.records[-2:]] == [
        "30 refusals were not logged",
        "refused (handshake): another",
    ]
