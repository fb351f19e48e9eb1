"""The bars: how long nobody serves when the active host is killed, and during a planned move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from pairsync.node.labfile import HOSTS
from pairsync.testing.lab import RunningLab
from pairsync.testing.programs import ProgramError

from .report import percentile
from .runner import Runner
from .table import SEED, watched_lab
from .watch import Watch, longest_gap

__all__ = ["measure"]

SERVED_S = 0.3
"""So long clients are watched after a move: an interruption that comes late would be seen."""

LOOK_S = 0.01
"""Between two looks at what clients were answered."""

ANSWER_S = 60.0
"""How long an answer may take to come at all."""


async def measure(
    directory: Path, *, failover_s: float, network: str, kills: int, moves: int, tell: Callable[[str], None]
) -> dict[str, object]:
    """Kill the active host so many times, and move the guest; times in seconds.

    ``killed_s``: from the kill until a client of the other host's door is answered again, the longest gap.
    ``moved_s``: the longest time without an answer, for clients of the new and of the old owner's door.
    """
    killed: list[float] = []
    moved: dict[str, list[float]] = {"new": [], "old": []}
    async with watched_lab(directory, failover_s, SEED, network) as (lab, watch, runner):
        for _ in range(moves):
            active, other = await _whole(runner)
            watch.forget()
            since_s = trio.current_time()
            await lab.request("move")
            await _until_answered(watch, (active, other), trio.current_time() + SERVED_S)
            until_s = trio.current_time()
            for name, host in (("new", other), ("old", active)):
                moved[name].append(longest_gap(watch.writers[host].answers, since_s, until_s))
        for _ in range(kills):
            killed.append(await _killed(lab, watch, runner))
            tell(f"killed: {killed[-1]:.3f} s")
    return {
        "failover_s": failover_s,
        "network": network,
        "killed_s": _summary(killed),
        "moved_s": {name: _summary(values) for name, values in moved.items()},
    }


async def _whole(runner: Runner) -> tuple[str, str]:
    active = await runner.until_whole()
    return active, HOSTS[1 - HOSTS.index(active)]


async def _killed(lab: RunningLab, watch: Watch, runner: Runner) -> float:
    active, other = await _whole(runner)
    watch.forget()
    since_s = trio.current_time()
    await lab.kill(active)
    await lab.wait_active(other)
    await _until_answered(watch, (other,), trio.current_time())
    gap_s = longest_gap(watch.writers[other].answers, since_s, trio.current_time())
    await lab.start(active)
    return gap_s


async def _until_answered(watch: Watch, hosts: tuple[str, ...], after_s: float) -> None:
    """Clients of these doors have been answered after that moment."""
    with trio.move_on_after(ANSWER_S):
        while not all(any(each > after_s for each in watch.writers[host].answers) for host in hosts):  # noqa: ASYNC110
            await trio.sleep(LOOK_S)
        return
    raise ProgramError(f"clients of {' and '.join(hosts)} have not been answered for {ANSWER_S:g} s")


def _summary(values: list[float]) -> dict[str, object]:
    if not values:
        return {"count": 0}
    return {
        "count": len(values),
        "p50": round(percentile(values, 50), 3),
        "p99": round(percentile(values, 99), 3),
        "max": round(max(values), 3),
    }
