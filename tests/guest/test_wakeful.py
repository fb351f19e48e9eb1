"""Whether a process has stood still of late."""

from __future__ import annotations

from pairsync.guest.wakeful import STILL_NS, WAKING_NS, Wakeful


def test_it_has_stood_still_from_when_it_has_not_looked_for_long_until_all_is_read() -> None:
    now_ns = 7
    wakeful = Wakeful(lambda: now_ns)
    for _ in range(3):
        now_ns += STILL_NS
        assert not wakeful.stood_still
        wakeful.look()
    now_ns += STILL_NS + 1
    assert wakeful.stood_still, "though nobody has looked yet"
    wakeful.look()
    for _ in range(WAKING_NS // STILL_NS):
        assert wakeful.stood_still
        now_ns += STILL_NS
        wakeful.look()
    assert not wakeful.stood_still


def test_by_default_it_looks_at_the_machine() -> None:
    assert not Wakeful().stood_still
