"""A chain: what is done to a lab, in order, as text that a person can write and a seed can draw.

::

    kill a; wait 0.2; cut a-b; mend 0; settle; move; kill a b; mend 1

=====================  ======================================================================================
``kill X ...``         SIGKILL these at once (``a``, ``b``, ``witness``, ``lab``: everything, and `up` again)
``guard X``            SIGKILL the guard of a host
``pause X``            SIGSTOP
``cut CABLE``          pull a cable
``disk X V STATE``     a disk fails, hangs, is full; ``replace`` only where the other host has everything
``move``               a planned move, not waited for; so are the next ones
``scrub``, ``grow``    of one volume, with repair; by some blocks
``point``              made and dropped again
``restart``            the lab ended in order, and `up` again
``mend N``             the N-th of what is broken, counted from the oldest
``wait S``             seconds
``settle``             until what was done has been dealt with: the next failure is foretold by `status`
=====================  ======================================================================================
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from pairsync.errors import ConfigError
from pairsync.node.labfile import CABLES, HOSTS, WITNESS

__all__ = ["LAB", "VOLUMES", "Step", "draw", "parse"]

LAB: Final = "lab"
"""In place of a process: all of them."""

VOLUMES: Final = ("vda", "vdb")

FAULTS_MIN: Final = 3
FAULTS_MAX: Final = 5

_WORDS: Final = {
    "kill": (1, 4),
    "guard": (1, 1),
    "pause": (1, 1),
    "cut": (1, 1),
    "disk": (3, 3),
    "move": (0, 0),
    "scrub": (0, 0),
    "grow": (0, 0),
    "point": (0, 0),
    "restart": (0, 0),
    "mend": (1, 1),
    "wait": (1, 1),
    "settle": (0, 0),
}
"""How many words follow."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done."""

    what: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.what, *self.words))


def parse(text: str) -> list[Step]:
    """The chain of a text; `ConfigError` for what is no step."""
    steps = []
    for part in text.split(";"):
        what, *words = part.split() or [""]
        fewest, most = _WORDS.get(what, (1, 0))
        if not fewest <= len(words) <= most:
            raise ConfigError(f"no step {part.strip()!r}")
        steps.append(Step(what, tuple(words)))
    return steps


def draw(seed: int, *, failover_s: float) -> list[Step]:
    """The chain of a seed: some faults, with pauses, repairs and orders of a person between them."""
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    steps: list[Step] = []
    broken = 0
    for _ in range(rng.randint(FAULTS_MIN, FAULTS_MAX)):
        if rng.random() < 0.3:
            steps += [_order(rng), _pause(rng, failover_s)]
        fault = _fault(rng)
        broken += fault.what != "guard"
        steps += [fault, _pause(rng, failover_s)]
        while broken and rng.random() < 0.35:
            steps += [Step("mend", (str(rng.randrange(broken)),)), _pause(rng, failover_s)]
            broken -= 1
    return steps


def _pause(rng: random.Random, failover_s: float) -> Step:
    kind = rng.random()
    if kind < 0.25:
        return Step("settle")
    longest_s = 0.1 if kind < 0.5 else failover_s if kind < 0.85 else 3 * failover_s
    return Step("wait", (f"{rng.uniform(0, longest_s):.2f}",))


def _order(rng: random.Random) -> Step:
    return Step(rng.choice(("move", "move", "move", "scrub", "grow", "point")))


def _fault(rng: random.Random) -> Step:
    host = rng.choice(HOSTS)
    match rng.choices(
        ("kill", "both", "witness", "cut", "pause", "guard", "disk", "all"), (20, 10, 10, 22, 12, 5, 18, 3)
    )[0]:
        case "kill":
            return Step("kill", (host,))
        case "both":
            others = rng.choice((HOSTS, HOSTS, (*HOSTS, WITNESS), (host, WITNESS)))
            return Step("kill", others)
        case "witness":
            return Step("kill", (WITNESS,))
        case "cut":
            return Step("cut", (rng.choice(CABLES),))
        case "pause":
            return Step("pause", (rng.choice((*HOSTS, WITNESS)),))
        case "guard":
            return Step("guard", (host,))
        case "disk":
            state = rng.choice(("fail", "fail", "hang", "full", "replace"))
            return Step("disk", (host, rng.choice(VOLUMES), state))
        case _:
            return rng.choice((Step("kill", (LAB,)), Step("restart")))
