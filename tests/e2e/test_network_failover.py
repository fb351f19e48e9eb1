"""A pair and its witness whose cables are pulled more than one at a time, and one of which hears nobody.

What the failure table leaves out: it pulls one cable for each failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from pairsync.node.labfile import NAMESPACES
from pairsync.testing.failuretable.runner import Runner
from pairsync.testing.failuretable.table import watched_lab
from pairsync.testing.failuretable.watch import Watch, longest_gap
from pairsync.testing.lab import RunningLab
from pairsync.testing.programs import run_program

FAILOVER_S = 2.0
SEED = 9
PATIENCE_S = 30.0
LOOK_S = 0.02
SLACK_S = 1.0
"""Beyond the failover time: the machine is busy with others."""


@dataclass
class Bench:
    """A lab that is whole, and a writer at each of its doors."""

    lab: RunningLab
    watch: Watch
    runner: Runner

    async def firewall(self, host: str, *words: str) -> None:
        """Change what that host lets in."""
        inside = ("nsenter", f"--net=/proc/{await self.lab.pid(host)}/ns/net")
        await run_program(*inside, "iptables", "--wait", *words)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(PATIENCE_S):
            while not condition():
                await trio.sleep(LOOK_S)
            return
        raise self.lab.error(f"not within {PATIENCE_S:g} s: {what}: {self.watch.latest}")

    async def until_moved(self, since_s: float, to: str) -> None:
        """The guest has moved in time."""
        await self.until(lambda: self.watch.active() == to, f"the guest runs on {to}")
        answers = self.watch.writers[to].answers
        await self.until(lambda: any(each > since_s for each in answers), "it is served")
        assert longest_gap(answers, since_s, trio.current_time()) < FAILOVER_S + SLACK_S

    async def until_mended(self) -> None:
        """All that was acknowledged is there, and two have never served at once."""
        active = await self.runner.until_whole()
        async with await self.lab.connect(host=active) as client:
            assert not await self.watch.check(client, seconds=PATIENCE_S)
        self.watch.judge()
        assert not self.watch.errors
        self.watch.forget()

    def in_sync(self, host: str) -> list[str]:
        """The replicas that are, by the grant that a host knows of."""
        return list((self.watch.grant(host) or {}).get("in_sync", ()))


async def isolate_the_active(bench: Bench, active: str, other: str) -> None:
    """It stops by itself, and the other one takes over."""
    since_s = trio.current_time()
    await bench.lab.cut("a-b")
    await bench.lab.cut(f"{active}-witness")
    await bench.until_moved(since_s, other)
    await bench.lab.heal("all")
    await bench.until_mended()


async def make_deaf(bench: Bench, active: str, other: str) -> None:
    """The active host hears nobody, though all hear it: it cannot know that, and gives up all the same."""
    since_s = trio.current_time()
    await bench.firewall(active, "-A", "INPUT", "-j", "DROP")
    await bench.until_moved(since_s, other)
    await bench.firewall(active, "-F", "INPUT")
    await bench.until_mended()


async def isolate_the_witness(bench: Bench, active: str) -> None:
    """Neither its loss stops or moves anything, nor that of the link some time after."""
    for host in "ab":
        await bench.lab.cut(f"{host}-witness")
    await bench.until(lambda: bool((bench.watch.grant(active) or {}).get("sole")), "the owner decides alone")
    await bench.lab.cut("a-b")
    await bench.until(lambda: bench.in_sync(active) == ["here"], "alone")
    assert bench.watch.active() == active
    await bench.lab.heal("all")
    await bench.until_mended()


async def pull_all(bench: Bench) -> None:
    """Nobody may run then; afterwards one of them does."""
    await bench.lab.cut("all")
    await bench.until(lambda: bench.watch.active() is None, "nobody serves")
    await trio.sleep(FAILOVER_S)
    assert bench.watch.active() is None
    await bench.lab.heal("all")
    await bench.until_mended()


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.tools("ip", "iptables")
async def test_cables_are_pulled_and_the_guest_runs_once(lab_directory: Path) -> None:
    async with watched_lab(lab_directory, FAILOVER_S, SEED, NAMESPACES) as (lab, watch, runner):
        bench = Bench(lab, watch, runner)
        await isolate_the_active(bench, "a", "b")
        await make_deaf(bench, "b", "a")
        await isolate_the_witness(bench, "a")
        await pull_all(bench)
