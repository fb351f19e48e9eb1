"""What all rows share: the settings of a pass, who takes part, taking turns, and holding ours against others.

Invariant: all samples of a contest are taken in turns (A B A B ...) while every contender is up, so sample
``i`` of one and sample ``i`` of another are neighbours in time.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import peers
from benchmarks.ours import Lab
from benchmarks.peers import Contender
from benchmarks.report import Figure, Judge

__all__ = [
    "ALONE",
    "MIB",
    "NO_DIGESTS",
    "NO_WITNESS",
    "OURS",
    "SETTLE_S",
    "Bench",
    "Goal",
    "Sizes",
    "alternate",
    "hold",
    "mirrors",
    "pair",
]

MIB = 1 << 20
OURS = "pairsync"
ALONE = "pairsync, no replication"
NO_DIGESTS = "pairsync, no digests"
NO_WITNESS = "pairsync, no witness"
SETTLE_S = 120.0
"""How long a pair may take to be in sync where that is not what is measured."""

_Sample = TypeVar("_Sample")


@dataclass(frozen=True)
class Sizes:
    """The sizes of the volumes, in bytes."""

    random: int = 256 * MIB
    sequential: int = 512 * MIB
    full_sync: int = 1024 * MIB
    scattered: int = 4096 * MIB
    sparse: int = 1 << 40
    sparse_data: int = 4096 * MIB
    resynced: int = 3072 * MIB
    pairs: int = 1000
    """Not bytes: pairs of one witness."""

    def shrunk(self, divisor: int) -> Sizes:
        """For trying the harness: everything but the sparse volume smaller by `divisor`."""
        return Sizes(
            random=self.random // divisor,
            sequential=self.sequential // divisor,
            full_sync=self.full_sync // divisor,
            scattered=self.scattered // divisor,
            sparse_data=self.sparse_data // divisor,
            resynced=self.resynced // divisor,
            pairs=max(self.pairs // divisor, 1),
        )


@dataclass(frozen=True)
class Bench:
    """The settings of a pass: where the volumes lie, how often and how long, and our command (or None)."""

    base: Path
    rounds: int
    seconds: float
    sizes: Sizes
    command: str | None

    @contextlib.contextmanager
    def directory(self, name: str) -> Iterator[Path]:
        """Lend a path below the working directory that does not exist yet; remove what is there at the end.

        Logs lie beside it and stay until the end of the pass, to be quoted when a row fails.
        """
        taken = sum(1 for entry in self.base.iterdir() if entry.name.startswith(name))
        path = self.base / f"{name}-{taken}"
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def heavy_rounds(self) -> int:
        """How often a row is repeated whose rounds are long."""
        return min(3, self.rounds)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a row is held against: a `Figure` without its samples."""

    row: str
    what: str
    unit: str
    judge: Judge
    bar: float | None
    aim: float | None

    def figure(
        self,
        *,
        ours: Sequence[float] = (),
        peer: Sequence[float] = (),
        peer_name: str = "",
        judged: bool = True,
        details: Mapping[str, Any] | None = None,
    ) -> Figure:
        """Return the figure with these samples; without a bar, for information, if not `judged`."""
        return Figure(
            row=self.row,
            what=self.what,
            unit=self.unit,
            judge=self.judge,
            ours=ours,
            peer=peer,
            peer_name=peer_name,
            bar=self.bar if judged else None,
            aim=self.aim if judged else None,
            details=dict(details or {}),
        )


def alternate(
    contenders: Sequence[Contender], rounds: int, measure: Callable[[Contender, int], _Sample]
) -> dict[str, list[_Sample]]:
    """Let the contenders take turns; `measure` is given one and the number of the round."""
    samples: dict[str, list[_Sample]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        for contender in contenders:
            samples[contender.name].append(measure(contender, turn))
    return samples


def hold(goal: Goal, samples: Mapping[str, Sequence[float]], details: Mapping[str, Any]) -> list[Figure]:
    """Hold ours against the strongest of the others; ours against the rest is shown for information."""
    others = {name: values for name, values in samples.items() if name != OURS}
    ranked = sorted(others, key=lambda name: statistics.median(others[name]), reverse=True)
    return [
        goal.figure(
            ours=samples.get(OURS, ()),
            peer=others[name],
            peer_name=name,
            judged=name == ranked[0],
            details=details if name == ranked[0] else None,
        )
        for name in ranked
    ]


@contextlib.contextmanager
def pair(
    bench: Bench,
    size_bytes: int,
    *,
    name: str = OURS,
    single: bool = False,
    digests: bool = True,
    witness: str = "builtin",
) -> Iterator[tuple[Lab, Contender] | None]:
    """Our pair, in sync (or one host without replication); None if the peers are measured alone."""
    if bench.command is None:
        yield None
        return
    with (
        bench.directory("single" if single else "pair") as directory,
        Lab(
            bench.command,
            directory,
            {"vda": size_bytes},
            single=single,
            digests=digests,
            witness=witness,
        ) as lab,
    ):
        if not single:
            lab.wait_in_sync(SETTLE_S)
        yield lab, Contender(ALONE if single else name, lab.uri(), lab.pids)


@contextlib.contextmanager
def mirrors(bench: Bench, size_bytes: int) -> Iterator[list[Contender]]:
    """Ours, if there is one, and both forms of QEMU's mirror, all filled."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(pair(bench, size_bytes))
        contenders = [ours[1]] if ours else []
        for remote in ("nbdkit", "qemu-nbd"):
            base = stack.enter_context(bench.directory("quorum"))
            mirror = peers.quorum(base, size_bytes=size_bytes, remote=remote)
            contenders.append(stack.enter_context(mirror))
        for contender in contenders:
            contender.fill(size_bytes)
        yield contenders
