"""The one inequality: what is derived keeps it, what does not is refused, and it means what it says."""

from __future__ import annotations

import dataclasses
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.timing import (
    FAILOVER_NS_DEFAULT,
    FAILOVER_NS_MAX,
    FAILOVER_NS_MIN,
    MILLION,
    RATE_PPM_MAX,
    Allowances,
    Timing,
    check,
    derive,
    lengthened,
    promise_of,
    smallest_failover_ns,
    stated_failover_ns,
)
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import ConfigError

failovers = st.integers(FAILOVER_NS_MIN, FAILOVER_NS_MAX)
rates = st.integers(0, RATE_PPM_MAX)
unit = st.fractions(0, 1)


def test_the_default_is_the_promised_one() -> None:
    timing = derive()
    assert timing.failover_ns == FAILOVER_NS_DEFAULT == 5 * NS_PER_S
    assert timing.rate_ppm == 1000
    assert timing.watchdog_s == 4
    assert derive(FAILOVER_NS_MIN).watchdog_s == 1


@given(failovers)
def test_every_failover_time_gives_a_coherent_set(failover_ns: int) -> None:
    timing = derive(failover_ns)
    check(timing)
    slack_ns = failover_ns - (
        timing.delay_ns + timing.promise_ns + timing.stall_ns + timing.witness_ns + timing.open_ns
    )
    assert 0 <= slack_ns < failover_ns // 100 + 10 * NS_PER_MS, "the failover time is made use of"


@given(failovers, failovers)
def test_more_time_gives_more_of_everything(one_ns: int, other_ns: int) -> None:
    short, long = (derive(each) for each in sorted((one_ns, other_ns)))
    for field in dataclasses.fields(Timing):
        if field.name not in {"rate_ppm", "silence_ns", "lease_ns", "promise_ns"}:
            assert getattr(short, field.name) <= getattr(long, field.name), field.name
    for name in ("silence_ns", "lease_ns", "promise_ns"):  # these take what rounding leaves
        assert getattr(short, name) <= getattr(long, name) + 10 * NS_PER_MS, name


def _some_ns(limit_ns: int) -> st.SearchStrategy[int]:
    return st.integers(0, limit_ns)


needs = st.builds(
    Allowances,
    delay_ns=_some_ns(2 * NS_PER_S),
    stall_ns=_some_ns(2 * NS_PER_S),
    stop_ns=_some_ns(2 * NS_PER_S),
    witness_wait_ns=_some_ns(4 * NS_PER_S),
    open_ns=_some_ns(5 * NS_PER_S),
)


@given(needs, rates)
def test_the_smallest_failover_time_is_the_smallest(need: Allowances, rate_ppm: int) -> None:
    smallest_ns = smallest_failover_ns(need, rate_ppm)
    timing = derive(smallest_ns, at_least=need, rate_ppm=rate_ppm)
    for field in dataclasses.fields(Allowances):
        assert getattr(timing.allowances, field.name) >= getattr(need, field.name)
    with pytest.raises(ConfigError):
        derive(smallest_ns - 1, at_least=need, rate_ppm=rate_ppm)


def test_a_witness_at_one_second_is_usable_by_default() -> None:
    timing = derive(at_least=Allowances(witness_wait_ns=NS_PER_S))
    assert timing.witness_wait_ns >= NS_PER_S
    with pytest.raises(ConfigError, match=r"no less than 4\.7\d+ s can be kept"):
        derive(4 * NS_PER_S, at_least=Allowances(witness_wait_ns=NS_PER_S))


def test_a_failover_time_that_is_stated() -> None:
    assert stated_failover_ns(1) == FAILOVER_NS_MIN
    assert stated_failover_ns(2.5) == 2_500_000_000
    assert stated_failover_ns(60.0) == FAILOVER_NS_MAX
    for seconds in (0.0, 0.999, -1.0, 60.1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"failover time of {seconds:g} s: from 1 to 60 s are possible"):
            stated_failover_ns(seconds)


@pytest.mark.parametrize("failover_ns", [0, -1, FAILOVER_NS_MIN - 1, FAILOVER_NS_MAX + 1])
def test_a_failover_time_out_of_range_is_refused(failover_ns: int) -> None:
    with pytest.raises(ConfigError, match="1 s to 60 s are allowed"):
        derive(failover_ns)


@pytest.mark.parametrize("rate_ppm", [-1, RATE_PPM_MAX + 1])
def test_a_clock_rate_out_of_range_is_refused(rate_ppm: int) -> None:
    with pytest.raises(ConfigError, match="clock-rate bound"):
        derive(rate_ppm=rate_ppm)


def test_a_negative_allowance_is_refused() -> None:
    with pytest.raises(ConfigError, match="stop_ns -1 is negative"):
        derive(at_least=Allowances(stop_ns=-1))


@pytest.mark.parametrize(
    ("field", "by_ns", "reason"),
    [
        ("heartbeat_ns", NS_PER_S, "a peer that is merely late would be taken for dead"),
        ("silence_ns", 20 * NS_PER_MS, "the loss of the standby would stop the guest"),
        ("silence_ns", -NS_PER_S, "a peer that is merely late would be taken for dead"),
        ("witness_wait_ns", 5 * NS_PER_MS, "the loss of the standby would stop the guest"),
        ("stop_ns", 20 * NS_PER_MS, "the loss of the standby would stop the guest"),
        ("lease_ns", -NS_PER_MS, "the loss of the standby would stop the guest"),
        ("lease_ns", NS_PER_MS, "two hosts could run the guest"),
        ("promise_ns", -1, "two hosts could run the guest"),
        ("promise_ns", 100 * NS_PER_MS, "it could not be kept"),
        ("rate_ppm", 1000, "the loss of the standby would stop the guest"),
        ("failover_ns", -100 * NS_PER_MS, "it could not be kept"),
        ("open_ns", 100 * NS_PER_MS, "it could not be kept"),
        ("delay_ns", -200 * NS_PER_S, "delay_ns is -.*: it must be positive"),
        ("rate_ppm", RATE_PPM_MAX, "at most 10000"),
        ("witness_lost_ns", -2 * NS_PER_S, "a witness that answers in time would be taken for lost"),
    ],
)
def test_an_incoherent_set_is_refused_with_the_reason(field: str, by_ns: int, reason: str) -> None:
    timing = derive()
    spoilt = dataclasses.replace(timing, **{field: getattr(timing, field) + by_ns})
    with pytest.raises(ConfigError, match=reason):
        check(spoilt)


@given(st.integers(1, 10**12), rates)
def test_lengthening_is_exact(duration_ns: int, rate_ppm: int) -> None:
    rate = Fraction(rate_ppm, MILLION)
    exact = duration_ns / (1 - rate)
    assert exact <= lengthened(duration_ns, rate_ppm) < exact + 1
    both = duration_ns * (1 + rate) / (1 - rate)
    assert both <= promise_of(duration_ns, rate_ppm) < both + 1


# -- the worst case, in exact arithmetic, told in true time --------------------------------------------------


def _rate(fraction: Fraction, timing: Timing) -> Fraction:
    """Of a clock: from the slowest that the bound allows (0) to the fastest (1)."""
    return 1 + (2 * fraction - 1) * Fraction(timing.rate_ppm, MILLION)


@given(failovers, rates, unit, unit, unit, unit, unit, st.integers(0, 10**12))
def test_the_owner_has_stopped_before_the_peer_may_start(
    failover_ns: int,
    rate_ppm: int,
    owner_clock: Fraction,
    peer_clock: Fraction,
    late: Fraction,
    stopping: Fraction,
    silent: Fraction,
    delay_ns: int,
) -> None:
    timing = derive(failover_ns, rate_ppm=rate_ppm)
    owner, peer = _rate(owner_clock, timing), _rate(peer_clock, timing)
    # the guard wakes up late, and the guest takes its time to die
    killed = timing.guard_after_ns / owner + late * timing.stall_ns
    stopped = killed + stopping * timing.stop_ns
    # the request may have been under way for any time, and the peer keeps still from its receipt on
    may_start = delay_ns + timing.promise_ns / peer
    assert stopped <= may_start
    # a host that is quick stops by itself, and is not killed
    by_itself = timing.yield_after_ns / owner + stopping * timing.stop_ns * owner
    assert by_itself <= timing.guard_after_ns / (1 - Fraction(rate_ppm, MILLION))


def test_the_bounds_are_tight() -> None:
    """A promise that is a thousandth shorter lets two hosts run: the property above can fail."""
    timing = derive()
    owner, peer = _rate(Fraction(0), timing), _rate(Fraction(1), timing)
    stopped = timing.guard_after_ns / owner + timing.stall_ns + timing.stop_ns
    assert stopped <= timing.promise_ns / peer
    assert stopped > timing.promise_ns * Fraction(998, 1000) / peer


@given(failovers, rates, unit, unit, unit)
def test_failover_fits(
    failover_ns: int, rate_ppm: int, clock: Fraction, owner_clock: Fraction, used: Fraction
) -> None:
    timing = derive(failover_ns, rate_ppm=rate_ppm)
    peer, owner = _rate(clock, timing), _rate(owner_clock, timing)
    # the owner dies with its request just sent
    asks = used * timing.delay_ns + timing.promise_ns / peer + used * timing.stall_ns
    assert asks + used * (timing.witness_ns + timing.open_ns) <= failover_ns
    # the standby dies just after an answer: it is out by grant before the owner has to stop
    last_heard = timing.heartbeat_ns / owner + 2 * timing.delay_ns
    out = last_heard + timing.silence_ns / owner + timing.stall_ns + timing.witness_ns
    assert out <= timing.yield_after_ns / owner


@pytest.mark.parametrize("seed", range(20))
def test_a_life_of_leases(seed: int) -> None:
    """Random delays, losses and clocks: the peer may never start while the guest runs."""
    rng = random.Random(seed)
    timing = derive(rng.randrange(FAILOVER_NS_MIN, 10 * NS_PER_S))
    owner, peer = (_rate(Fraction(rng.randint(0, 100), 100), timing) for _ in range(2))
    runs_until = may_start = Fraction(0)  # true time
    sent = Fraction(0)
    for _ in range(200):
        sent += timing.heartbeat_ns / owner
        if runs_until and sent > runs_until:
            break  # the guest was stopped
        if rng.random() < 0.4:
            continue  # lost
        received = sent + int(rng.randrange(2 * timing.failover_ns) * rng.random() ** 8)
        if may_start and received >= may_start:
            continue  # the peer has begun to be owner, and refuses
        may_start = max(may_start, received + timing.promise_ns / peer)
        if rng.random() < 0.8:  # the answer arrives, whenever: the deadline counts from the request
            deadline = sent + timing.guard_after_ns / owner
            runs_until = max(runs_until, deadline + timing.stall_ns + timing.stop_ns)
        assert runs_until <= may_start
    assert may_start > 0


# -- the documentation ---------------------------------------------------------------------------------------


def test_the_table_of_the_documentation_is_what_is_derived() -> None:
    text = (Path(__file__).parents[2] / "docs" / "timing.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip("`"): cells[1:6]
        for line in text.splitlines()
        if re.match(r"\| `\w+` \|", line)
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    names = {field.name for field in dataclasses.fields(Timing)} - {"failover_ns", "rate_ppm"}
    names |= {"yield_after_ns", "guard_after_ns"}
    assert {f"{name}" for name in rows} == names
    for column, seconds in enumerate((1, 2, 5, 10, 30)):
        timing = derive(seconds * NS_PER_S)
        for name, cells in rows.items():
            assert cells[column] == f"{getattr(timing, name) / NS_PER_MS:.0f}", (seconds, name)
