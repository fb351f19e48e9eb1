"""Watching disks: what hangs, what works no more though nobody uses it, and when not to judge.

How a standby and an owner live with it: `test_reopen` and `test_handover`.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import BackendError
from pairsync.guest.disks import Disks
from pairsync.guest.guest import Guest
from pairsync.guest.performer import Lanes
from pairsync.guest.watch import GRACE_NS, PROBE_NS, STALL_NS, Ailment, DiskWatch
from pairsync.storage.lane import InlineLane

STEP_NS = 100 * NS_PER_MS


class Bench:
    """A guest with one volume, whose disk does what the test says."""

    def __init__(self) -> None:
        self.now_ns = 7 * NS_PER_S
        self.overdue = 0
        self.name = "vda"
        self.read_age_ns = 0
        self.volumes = {"vda": self}
        self.device = self
        self.replicas = [self]
        self.lanes = [Lanes(InlineLane(), InlineLane(), InlineLane())]
        self.fails = False
        self.flushes = 0
        self.unused = [0]

    def overdue_ns(self, index: int, read_age_ns: int) -> int:
        assert index == 0
        return max(self.overdue, read_age_ns)

    def flush(self) -> None:
        self.flushes += 1
        if self.fails:
            raise BackendError("no", 5)

    def watch(self) -> DiskWatch:
        class Clock:
            volumes = self.volumes
            now_ns = lambda _: self.now_ns  # noqa: E731 - the clock of the bench

        return DiskWatch(cast("Guest", Clock()), cast("Disks", cast("Any", self)), lambda: self.unused)

    def pass_time(self, watch: DiskWatch, duration_ns: int) -> list[Ailment]:
        found = []
        for _ in range(duration_ns // STEP_NS):
            self.now_ns += STEP_NS
            ailment = watch.look()
            if ailment is not None:
                found.append(ailment)
        return found


@pytest.mark.parametrize("what", ["overdue", "read_age_ns"])
def test_what_hangs_is_found(what: str) -> None:
    bench = Bench()
    watch = bench.watch()
    assert bench.pass_time(watch, NS_PER_S) == []
    setattr(bench, what, 6 * NS_PER_S)
    ailment = bench.pass_time(watch, STEP_NS)[0]
    assert ailment == Ailment("vda", "the disk hangs: an operation has been running for 6.0 s")


def test_who_slept_does_not_judge_for_a_while() -> None:
    bench = Bench()
    watch = bench.watch()
    bench.overdue = 6 * NS_PER_S
    bench.now_ns += STALL_NS
    assert watch.look() is None
    assert bench.pass_time(watch, GRACE_NS - STEP_NS) == []
    assert len(bench.pass_time(watch, STEP_NS)) == 1


def test_a_disk_that_nobody_uses_is_asked_now_and_then() -> None:
    bench = Bench()
    watch = bench.watch()
    assert bench.pass_time(watch, 5 * PROBE_NS) == []
    assert bench.flushes == 5
    bench.unused = []
    assert bench.pass_time(watch, 5 * PROBE_NS) == []
    assert bench.flushes == 5
    bench.unused, bench.fails = [0], True
    found = bench.pass_time(watch, PROBE_NS)
    assert found[0] == Ailment("vda", "it was asked whether it works: EIO")
    bench.lanes = []  # its disks are closed
    bench.pass_time(watch, PROBE_NS)
    assert bench.flushes == 6
