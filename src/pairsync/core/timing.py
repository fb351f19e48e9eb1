"""Every time of failover, derived from the one number that the operator states, by one inequality.

The number is the **failover time** F: from the moment a host stops until the other one serves its guest.  Two
hosts must never run the guest at once (rule 10), the loss of a standby must not stop the guest, and all of it
must fit into F.  All three are on one line.  The owner's last request that the peer received leaves at 0; the
worst case is that the owner, or the peer, dies just then::

    owner  0├ heartbeat ┼ round trip ┼ silence ┼ stall ┼ witness ┤            the peer is out by grant, or
            ├───────────────────── yield ────────────────────────┼ stop ┤     the host stops the guest, or
            ├───────────────────── guard ───────────────────────────────┼ stall ┼ stop ┤  the guard kills it
            ├───────────────────── lease ──────────────────────────────────────────────┤  nothing is left

    peer    ├ delay ┼─────────────── promise ────────────────────────────────┼ stall ┼ witness ┼ open ┤
            ├───────────────────── failover time ─────────────────────────────────────────────────────┤ serves

**The inequality**, with ``delay`` the time of a message one way, ``(x)`` lengthened by the clock-rate bound
of one clock and ``((x))`` by that of two::

    silence  >=  3 heartbeat + 2 delay + stall                        two lost heartbeats are no death
    yield    >=  heartbeat + silence + (2 delay + stall + witness)    a dead peer is out in time
    lease    >=  yield + stop + stall + stop                          who lost it has stopped by its end
    promise  >=  ((lease))                                            and only then the other may start
    failover >=  delay + (promise) + stall + witness + open           which fits what was stated

* **lease**: what the owner asks for.  It ends so long after the request was *sent*, on the owner's clock.
* **promise**: how long the peer does not try to become owner, from *receipt*, on the peer's clock.  Nothing
  is received before it is sent, so with both clocks within ``rate_ppm`` of true time it ends after the lease.
* **yield**: when the owner itself begins to stop a guest whose lease was not renewed (`yield_after_ns`).
* **stop**: from the decision (or SIGKILL) until nothing of the guest runs.  It counts twice: the host tries
  first, and what it has not done by then the guard does (`guard_after_ns`), without asking anybody.
* **stall**: by so much a timer of any process of ours may be late.
* **witness**: `WITNESS_ROUNDS` round trips of ``witness_wait_ns``: one decides, unless what is known of the
  witness's record is stale; that it was stale is learnt by the first.
* **open**: from the grant until the other host answers the guest's first request.

All clocks are CLOCK_BOOTTIME: it runs on while a machine is suspended, and nobody can set it.  The bound on
its rate, 1000 ppm, is what NTP may slew (500 ppm) and as much again for the quartz.

Of the failover time every term first gets its least value, which together fit `FAILOVER_NS_MIN`; the rest is
shared out by fixed parts.  A term that is known to need more (a witness far away) is raised by ``at_least``,
at the cost of the others.  `check` is the judge of any set, wherever it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from pairsync.errors import ConfigError

from .units import NS_PER_MS, NS_PER_S

__all__ = [
    "FAILOVER_NS_DEFAULT",
    "FAILOVER_NS_MAX",
    "FAILOVER_NS_MIN",
    "RATE_PPM",
    "RATE_PPM_MAX",
    "WITNESS_ROUNDS",
    "Allowances",
    "Timing",
    "check",
    "derive",
    "lengthened",
    "promise_of",
    "smallest_failover_ns",
    "stated_failover_ns",
]

FAILOVER_NS_DEFAULT = 5 * NS_PER_S
FAILOVER_NS_MIN = 1 * NS_PER_S
FAILOVER_NS_MAX = 60 * NS_PER_S
"""A longer one is a mistake of units; writes may stand still for a quarter of it while a peer is silent."""

RATE_PPM = 1000
"""By so many millionths the rate of a host's clock may differ from that of true time."""

RATE_PPM_MAX = 10_000
"""A clock that is worse is broken."""

WITNESS_ROUNDS = 2
"""Round trips to the witness that a decision may take."""

HEARTBEATS_SILENT = 3
"""Heartbeats that must be missing before a peer counts as silent."""

WITNESS_PROBE_NS_MIN = 500 * NS_PER_MS
WITNESS_PROBE_SHARE = 5
"""The witness is asked whether it is there once in a fifth of the failover time, but not oftener than that:
it bears a thousand pairs."""

MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowances:
    """What machines and networks are given: terms that are measured, not chosen.  Nanoseconds.

    ``delay_ns``: a message between the hosts, one way; ``witness_wait_ns``: one round trip to the witness;
    ``stall_ns``, ``stop_ns``, ``open_ns``: see the module.
    """

    delay_ns: int = 0
    stall_ns: int = 0
    stop_ns: int = 0
    witness_wait_ns: int = 0
    open_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All times of one host's arbitration, in nanoseconds; for the meaning of each see the module.

    ``witness_wait_ns``
        How long an answer of the witness is waited for before it is asked again, or the alternate one is.
        A late answer counts all the same.
    ``witness_probe_ns``, ``witness_lost_ns``
        How often the witness is asked at rest; how long it may be silent before owner and peer agree to go on
        without it (rule 4).
    """

    failover_ns: int
    heartbeat_ns: int
    silence_ns: int
    lease_ns: int
    promise_ns: int
    stop_ns: int
    stall_ns: int
    rate_ppm: int
    witness_wait_ns: int
    witness_lost_ns: int
    witness_probe_ns: int
    delay_ns: int
    open_ns: int

    @property
    def yield_after_ns(self) -> int:
        """So long after it sent its last answered request a host begins to stop its guest by itself."""
        return self.guard_after_ns - self.stop_ns

    @property
    def guard_after_ns(self) -> int:
        """So long after that request the guard kills: the deadline that `GuardClient.arm` is given."""
        return self.lease_ns - self.stall_ns - self.stop_ns

    @property
    def watchdog_s(self) -> int:
        """What a watchdog device is set to; it takes whole seconds: no fewer than the lease has."""
        return -(-self.lease_ns // NS_PER_S)

    @property
    def witness_ns(self) -> int:
        """A decision at the witness."""
        return WITNESS_ROUNDS * self.witness_wait_ns

    @property
    def allowances(self) -> Allowances:
        """What is granted to machines and networks."""
        return Allowances(**{each.name: getattr(self, each.name) for each in fields(Allowances)})


def lengthened(duration_ns: int, rate_ppm: int) -> int:
    """The longest that a duration by one clock may be by another, true one (or the other way round)."""
    return -(-duration_ns * MILLION // (MILLION - rate_ppm))


def promise_of(lease_ns: int, rate_ppm: int) -> int:
    """How long the receiver of a request for ``lease_ns`` must keep still, on its own clock, from receipt.

    Both clocks may be off, in opposite directions: the owner's by so much slow, ours by so much fast.
    """
    return -(-lease_ns * (MILLION + rate_ppm) // (MILLION - rate_ppm))


@dataclass(frozen=True, slots=True)
class _Term:
    least_ns: int
    """At the shortest failover time."""
    permille: int
    """Of the failover time beyond what all the least values take."""


_TERMS = {
    "heartbeat_ns": _Term(50 * NS_PER_MS, 50),
    "silence_ns": _Term(250 * NS_PER_MS, 250),
    "delay_ns": _Term(15 * NS_PER_MS, 10),
    "stall_ns": _Term(50 * NS_PER_MS, 35),
    "stop_ns": _Term(50 * NS_PER_MS, 45),
    "witness_wait_ns": _Term(50 * NS_PER_MS, 90),
    "open_ns": _Term(150 * NS_PER_MS, 95),
}
# As often as they stand in the inequality (delay and stall thrice, stop twice, the witness four times) the
# parts make 980; what remains goes into the silence.


def _assembled(failover_ns: int, rate_ppm: int, terms: dict[str, int]) -> Timing:
    """The set with these terms, lease and promise as short as the inequality allows."""
    witness_ns = WITNESS_ROUNDS * terms["witness_wait_ns"]
    true_ns = 2 * terms["delay_ns"] + terms["stall_ns"] + witness_ns
    yield_ns = terms["heartbeat_ns"] + terms["silence_ns"] + lengthened(true_ns, rate_ppm)
    lease_ns = yield_ns + 2 * terms["stop_ns"] + terms["stall_ns"]
    probe_ns = max(WITNESS_PROBE_NS_MIN, failover_ns // WITNESS_PROBE_SHARE)
    return Timing(
        failover_ns=failover_ns,
        lease_ns=lease_ns,
        promise_ns=promise_of(lease_ns, rate_ppm),
        rate_ppm=rate_ppm,
        witness_probe_ns=probe_ns,
        witness_lost_ns=2 * (probe_ns + terms["witness_wait_ns"]),
        **terms,
    )


def _takes_ns(timing: Timing) -> int:
    """From an owner's death until the other host serves, at the worst."""
    promise_ns = lengthened(timing.promise_ns, timing.rate_ppm)
    return timing.delay_ns + promise_ns + timing.stall_ns + timing.witness_ns + timing.open_ns


def _least_terms(at_least: Allowances | None) -> dict[str, int]:
    """Of each term the least, raised as asked for; a silence that no longer fits its heartbeats grows too."""
    terms = {name: term.least_ns for name, term in _TERMS.items()}
    for each in fields(Allowances) if at_least is not None else ():
        asked_ns = getattr(at_least, each.name)
        if asked_ns < 0:
            raise ConfigError(f"timing: {each.name} {asked_ns} is negative")
        terms[each.name] = max(terms[each.name], -(-asked_ns // NS_PER_MS) * NS_PER_MS)
    silence_ns = HEARTBEATS_SILENT * terms["heartbeat_ns"] + 2 * terms["delay_ns"] + terms["stall_ns"]
    terms["silence_ns"] = max(terms["silence_ns"], silence_ns)
    return terms


def stated_failover_ns(seconds: float) -> int:
    """The failover time that somebody states, in nanoseconds; `ConfigError` for one that cannot be."""
    least, most = FAILOVER_NS_MIN / NS_PER_S, FAILOVER_NS_MAX / NS_PER_S
    if not least <= seconds <= most:  # nor is it, where it is no number
        raise ConfigError(f"a failover time of {seconds:g} s: from {least:g} to {most:g} s are possible")
    return int(seconds * NS_PER_S)


def smallest_failover_ns(at_least: Allowances | None = None, rate_ppm: int = RATE_PPM) -> int:
    """The shortest failover time, in nanoseconds, that `derive` takes with these."""
    return max(FAILOVER_NS_MIN, _takes_ns(_assembled(0, rate_ppm, _least_terms(at_least))))


def derive(
    failover_ns: int = FAILOVER_NS_DEFAULT, *, at_least: Allowances | None = None, rate_ppm: int = RATE_PPM
) -> Timing:
    """All times from the one that the operator states.

    ``at_least``: what machines and networks are known to need.  Raises `ConfigError`, with the shortest
    failover time that would do, if it does not fit.
    """
    if not 0 <= rate_ppm <= RATE_PPM_MAX:
        raise ConfigError(f"timing: a clock-rate bound of {rate_ppm} ppm: 0 to {RATE_PPM_MAX} are allowed")
    if not FAILOVER_NS_MIN <= failover_ns <= FAILOVER_NS_MAX:
        raise ConfigError(
            f"failover time of {_s(failover_ns)}: {_s(FAILOVER_NS_MIN)} to {_s(FAILOVER_NS_MAX)} are allowed"
        )
    terms = _least_terms(at_least)
    spare_ns = failover_ns - _takes_ns(_assembled(failover_ns, rate_ppm, terms))
    if spare_ns < 0:
        raise ConfigError(
            f"failover time of {_s(failover_ns)}: with the delays that are given no less than "
            f"{_s(smallest_failover_ns(at_least, rate_ppm))} can be kept"
        )
    spare_ns = spare_ns * (MILLION - 4 * rate_ppm) // MILLION  # clocks lengthen the terms again
    for name, term in _TERMS.items():
        terms[name] += spare_ns * term.permille // 1000
    rest_ns = failover_ns - _takes_ns(_assembled(failover_ns, rate_ppm, terms))
    terms["silence_ns"] += rest_ns * (MILLION - 4 * rate_ppm) // MILLION
    timing = _assembled(failover_ns, rate_ppm, {name: _whole_ms(value) for name, value in terms.items()})
    check(timing)
    return timing


def check(timing: Timing) -> None:
    """Refuse a set that does not keep the inequality: `ConfigError` with the line that is broken."""
    for each in fields(timing):
        value = getattr(timing, each.name)
        if value < 0 or (value == 0 and each.name != "rate_ppm"):
            raise ConfigError(f"timing: {each.name} is {value}: it must be positive")
    if timing.rate_ppm > RATE_PPM_MAX:
        raise ConfigError(f"timing: a clock-rate bound of {timing.rate_ppm} ppm: at most {RATE_PPM_MAX}")
    ppm = timing.rate_ppm
    answer_ns = 2 * timing.delay_ns + timing.stall_ns
    _hold(
        "silence",
        timing.silence_ns,
        "three heartbeats, a round trip and a stall",
        HEARTBEATS_SILENT * timing.heartbeat_ns + answer_ns,
        "a peer that is merely late would be taken for dead",
    )
    _hold(
        "what is left of the lease before the guest is stopped",
        timing.yield_after_ns,
        "heartbeat, silence, a round trip, a stall and the witness",
        timing.heartbeat_ns + timing.silence_ns + lengthened(answer_ns + timing.witness_ns, ppm),
        "the loss of the standby would stop the guest",
    )
    _hold(
        "promise",
        timing.promise_ns,
        "the lease, lengthened for the clock-rate bound",
        promise_of(timing.lease_ns, ppm),
        "two hosts could run the guest",
    )
    _hold(
        "failover time",
        timing.failover_ns,
        "delay, promise, stall, witness and opening",
        _takes_ns(timing),
        "it could not be kept",
    )
    _hold(
        "how long the witness may be silent",
        timing.witness_lost_ns,
        "a probe and its wait",
        timing.witness_probe_ns + timing.witness_wait_ns,
        "a witness that answers in time would be taken for lost",
    )


def _hold(what: str, have_ns: int, need: str, need_ns: int, consequence: str) -> None:
    if have_ns < need_ns:
        raise ConfigError(
            f"timing: {what} ({_s(have_ns)}) is shorter than {need} ({_s(need_ns)}): {consequence}"
        )


def _whole_ms(value_ns: int) -> int:
    return value_ns // NS_PER_MS * NS_PER_MS


def _s(value_ns: int) -> str:
    return f"{value_ns / NS_PER_S:.9f}".rstrip("0").rstrip(".") + " s"
