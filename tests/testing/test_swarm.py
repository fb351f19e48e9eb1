"""What both simulators draw and when their faults strike."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from pairsync.core.units import NS_PER_S
from pairsync.testing.shellsim.profile import draw_profile as draw_shell_profile
from pairsync.testing.sim.profile import draw_profile as draw_core_profile
from pairsync.testing.swarm import START_KINDS, Storm, SwarmProfile, between, draw_faults

FAULTS = {"rain": 1.0, "hail": 3.0, "fog": 0.5, "frost": 0.5}


class Timers:
    """Simulated time, run by hand."""

    def __init__(self) -> None:
        self.now = 0
        self.queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, delay_ns: int, call: Callable[..., None], /, *arguments: Any) -> None:
        heapq.heappush(self.queue, (self.now + delay_ns, len(self.queue), call, arguments))

    def run_until(self, until_ns: int) -> None:
        while self.queue and self.queue[0][0] <= until_ns:
            self.now, _, call, arguments = heapq.heappop(self.queue)
            call(*arguments)
        self.now = until_ns


class Host:
    up = True


class Weather(Storm[Host]):
    """Everything that happened, with its time."""

    def __init__(self, profile: SwarmProfile, timers: Timers) -> None:
        super().__init__(profile, Random(1), timers)
        self.clock = timers
        self.log: list[tuple[int, str]] = []
        self._actions["hail"] = lambda: self._tell("hailed")

    def _tell(self, what: str) -> None:
        self.log.append((self.clock.now, what))

    def _mend(self) -> None:
        self._tell("mended")

    def _note(self, kind: str) -> None:
        self._tell(kind)

    def _count(self, kind: str) -> None:
        self._tell(kind)

    def _arm(self, kind: str) -> None:
        self._tell(f"armed {kind}")

    def _kill(self, host: Host, *, power: bool) -> None:
        host.up = False
        self._restart_later(host)

    def _restart(self, host: Host) -> None:
        host.up = True

    def trap(self, kind: str, delay_ns: int, likelier: float = 1.0) -> None:
        self._ambush(likelier, lambda: (delay_ns, kind))

    def kill_both(self, hosts: tuple[Host, Host], *, power: bool) -> None:
        self._kill_both(hosts, power=power)


def weather(**changes: Any) -> tuple[Weather, Timers]:
    timers = Timers()
    drawn = draw_core_profile(Random(0))
    settings = {"faults": FAULTS, "storm_ns": NS_PER_S, "ambush": 1.0, "restart_ns": NS_PER_S, **changes}
    return Weather(dataclasses.replace(drawn, **settings), timers), timers


@pytest.mark.parametrize("draw", [draw_core_profile, draw_shell_profile])
def test_a_seed_always_draws_the_same_and_together_they_draw_everything(
    draw: Callable[[Random], SwarmProfile],
) -> None:
    profiles = [draw(Random(seed)) for seed in range(200)]
    assert profiles == [draw(Random(seed)) for seed in range(200)]
    assert {profile.start for profile in profiles} == set(START_KINDS)
    assert len({profile.options.level for profile in profiles}) == 2
    assert len({kind for profile in profiles for kind in profile.habits.kinds}) == 4


def test_subsets_of_faults() -> None:
    drawn = [draw_faults(Random(seed), FAULTS) for seed in range(300)]
    assert all(FAULTS[kind] == weight for each in drawn for kind, weight in each.items())
    assert {len(each) for each in drawn} == {0, 1, 2, 3, 4}
    assert len([each for each in drawn if len(each) == 1]) > 300 * 4 / 16  # more than chance alone gives


def test_between_is_log_uniform() -> None:
    chance = Random(3)
    drawn = [between(chance, 10, 1000) for _ in range(2000)]
    assert all(10 <= each <= 1000 for each in drawn)
    assert 900 < sum(each < 100 for each in drawn) < 1100


def test_a_storm_lasts_from_its_begin_to_its_end() -> None:
    storm, timers = weather()
    timers.run_until(100 * NS_PER_S)
    assert storm.log == []
    storm.begin()
    timers.run_until(1100 * NS_PER_S)
    kinds = [what for _, what in storm.log]
    assert 800 < sum(kind in FAULTS for kind in kinds) < 1200
    assert kinds.count("hail") == kinds.count("hailed") > 2 * kinds.count("rain")  # by weight; its own action
    assert kinds.count("fog") == kinds.count("armed fog") > 0
    storm.end()
    assert storm.log[-1] == (1100 * NS_PER_S, "mended")
    timers.run_until(2000 * NS_PER_S)
    assert storm.log[-1] == (1100 * NS_PER_S, "mended")


def test_without_faults_nothing_strikes() -> None:
    storm, timers = weather(faults={})
    storm.begin()
    assert not timers.queue


def test_one_ambush_at_a_time_and_none_outside_the_storm() -> None:
    storm, timers = weather(storm_ns=10**18)
    storm.trap("rain", 0)
    storm.begin()
    storm.trap("rain", 5)
    storm.trap("fog", 1)
    timers.run_until(10)
    assert storm.log == [(5, "rain"), (5, "armed rain")]
    storm.trap("fog", 1)
    storm.end()
    timers.run_until(20)
    assert storm.log[2:] == [(10, "mended")]


def test_ambushes_are_as_likely_as_was_drawn() -> None:
    storm, timers = weather(storm_ns=10**18, ambush=0.1)
    storm.begin()
    for likelier, expected in ((1.0, 100), (3.0, 300)):
        storm.log.clear()
        for _ in range(1000):
            storm.trap("hail", 0, likelier)
            timers.run_until(timers.now + 1)
        assert 0.7 * expected < len(storm.log) / 2 < 1.3 * expected


def test_both_die_or_none_and_come_back() -> None:
    storm, timers = weather()
    hosts = Host(), Host()
    storm.kill_both(hosts, power=True)
    assert [host.up for host in hosts] == [False, False]
    storm.kill_both(hosts, power=False)
    assert storm.log == [(0, "power-both")]
    timers.run_until(60 * NS_PER_S)
    assert [host.up for host in hosts] == [True, True]
