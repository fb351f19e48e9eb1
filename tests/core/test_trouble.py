"""Trouble: told now and then, the end of it always."""

from __future__ import annotations

from pairsync.core.effects import DiskFailed, Effect, Emit
from pairsync.core.events import TroubleEvent
from pairsync.core.trouble import TROUBLE_EVENT_NS, TroubleLog


def test_it_is_told_once_in_a_while_and_its_end_always() -> None:
    out: list[Effect] = []
    log = TroubleLog(3, "vda", out)
    log.report("one", 5)
    log.report("two", 5 + TROUBLE_EVENT_NS - 1)
    log.report("three", 5 + TROUBLE_EVENT_NS)
    log.fatal("four")
    told = [effect.event for effect in out if isinstance(effect, Emit)]
    assert told == [
        TroubleEvent("vda", fatal=False, reason="one"),
        TroubleEvent("vda", fatal=False, reason="three"),
        TroubleEvent("vda", fatal=True, reason="four"),
    ]


def test_what_the_disk_cannot_do_is_always_said_first() -> None:
    out: list[Effect] = []
    log = TroubleLog(3, "vda", out)
    log.failed("one", 5)
    log.failed("two", 6)
    log.fatal("three")
    assert out == [
        DiskFailed(3, "one"),
        Emit(TroubleEvent("vda", fatal=False, reason="one")),
        DiskFailed(3, "two"),
        DiskFailed(3, "three"),
        Emit(TroubleEvent("vda", fatal=True, reason="three")),
    ]
