"""The rows of digests, proofs, scrubs and resyncs: pairsync against itself.

Two labs in turns, or one lab in two states in turns, so that every ratio is formed of neighbours in time.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import clients
from benchmarks.contest import MIB, NO_DIGESTS, NO_WITNESS, SETTLE_S, Bench, Goal, alternate, hold, pair
from benchmarks.loads import fitting, iops, latencies, lose_standby, sample, sync_again, sync_first, times
from benchmarks.ours import IN_SYNC, RESYNC, CatchUp, Lab
from benchmarks.peers import Contender
from benchmarks.procs import BenchError, log, run
from benchmarks.report import Figure, Judge

__all__ = [
    "latency_beside_resync",
    "proof_at_reconnect",
    "resync_rate",
    "scrub_rate",
    "scrub_under_load",
    "writes_with_arbitration",
    "writes_with_digests",
]

_KIB = 1024

_RUN_BYTES = 4 * MIB
_SMALL_BYTES = 64 * _KIB
_SMALL_SHARE = 8
"""How row 10 fills its volume: one byte in eight in small pieces (metadata, small files), else in runs."""

_ALARM_SECONDS = 15
"""Row 14 runs so many times longer than a timed load: 60 s unless told otherwise."""
_SCRUB_S = 600.0
"""How long a scrub may take before it counts as hung."""
_CAT_S = 300.0


def writes_with_digests(bench: Bench) -> list[Figure]:
    """Row 9: two pairs in turns; for information also on a volume four times the size (longer tables)."""
    goal = Goal(
        row="9",
        what="4 KiB random writes, depth 32, digests kept",
        unit="IOPS",
        judge=Judge.OURS_OVER_PEER,
        bar=0.85,
        aim=0.95,
    )
    wide = Goal(
        row="9 wide",
        what=f"the same on {bench.sizes.full_sync // MIB} MiB",
        unit="IOPS",
        judge=Judge.OURS_OVER_PEER,
        bar=None,
        aim=None,
    )
    less = partial(pair, bench, name=NO_DIGESTS, digests=False)
    figures = _with_and_without(bench, goal, less, bench.sizes.random, bench.rounds)
    return figures + _with_and_without(bench, wide, less, bench.sizes.full_sync, bench.heavy_rounds)


def writes_with_arbitration(bench: Bench) -> list[Figure]:
    """Row 16: leases, votes and a guard beside the writes, against an owner that decides alone."""
    goal = Goal(
        row="16",
        what="4 KiB random writes, depth 32, under a lease",
        unit="IOPS",
        judge=Judge.OURS_OVER_PEER,
        bar=0.97,
        aim=1.0,
    )
    less = partial(pair, bench, name=NO_WITNESS, witness="none")
    return _with_and_without(bench, goal, less, bench.sizes.random, bench.rounds)


def _with_and_without(
    bench: Bench,
    goal: Goal,
    less: Callable[[int], contextlib.AbstractContextManager[tuple[Lab, Contender] | None]],
    size_bytes: int,
    rounds: int,
) -> list[Figure]:
    with pair(bench, size_bytes) as kept, less(size_bytes) as without:
        if kept is None or without is None:
            return [goal.figure(peer_name="pairsync")]
        contenders = [kept[1], without[1]]
        for contender in contenders:
            contender.fill(size_bytes)
        load = clients.Load(job="randwrite", depth=32, size_bytes=size_bytes, seconds=bench.seconds)

        def measure(contender: Contender, turn: int) -> clients.Sample:
            return sample(load, contender, turn)

        samples = alternate(contenders, rounds, measure)
    return hold(goal, iops(samples), latencies(samples))


def proof_at_reconnect(bench: Bench) -> list[Figure]:
    """Row 10: from the standing link to in sync, with nothing to copy: the standby's process new, or the
    link cut for a moment.

    The volume of 1 TiB holds 4 GiB as a file system would have them: runs of 4 MiB and, one byte in eight,
    pieces of 64 KiB, all at random places.  The first round is not taken: what was written last may still be
    in the write-intent log then, and is copied.
    """
    data_bytes = fitting(bench, bench.sizes.sparse_data)
    what = f"proof, 1 TiB with {data_bytes // MIB} MiB"
    goals = [
        Goal(row=row, what=f"{what}, {how}", unit="s", judge=Judge.OURS_ALONE, bar=2.0, aim=0.3)
        for row, how in (("10 cold", "standby started anew"), ("10 flap", "link cut and mended"))
    ]
    with pair(bench, bench.sizes.sparse) as pair_now:
        if pair_now is None:
            return [goal.figure() for goal in goals]
        lab, _ = pair_now
        _sprinkle(lab, bench.sizes.sparse, data_bytes)
        lab.wait_in_sync(SETTLE_S)
        cold, flap = [], []
        for _ in range(1 + bench.rounds):
            lab.kill("b")
            cold.append(_proof(lab, ("start", "b")))
            lab.cut()
            flap.append(_proof(lab, ("heal",)))
    return [
        goal.figure(ours=[one.judged for one in taken[1:]], details=times(taken[1:]))
        for goal, taken in zip(goals, (cold, flap), strict=True)
    ]


def _sprinkle(lab: Lab, size_bytes: int, data_bytes: int) -> None:
    small_bytes = data_bytes // _SMALL_SHARE
    for seed, (piece_bytes, bytes_) in enumerate(
        ((_RUN_BYTES, data_bytes - small_bytes), (_SMALL_BYTES, small_bytes)), start=1
    ):
        clients.sprinkle(lab.uri(), size_bytes=size_bytes, piece_bytes=piece_bytes, bytes_=bytes_, seed=seed)


def _proof(lab: Lab, command: Sequence[str]) -> CatchUp:
    """Bring the standby or the link back, nothing having been written meanwhile."""
    took = lab.catch_up(timeout_s=SETTLE_S, command=command)
    if took.link is None:
        raise BenchError("no event of the standing link")
    log(f"  proof after {' '.join(command)}: {took}")
    return took


def latency_beside_resync(bench: Bench) -> list[Figure]:
    """Row 11: random writes beside a resync of all blocks, and in the same round in sync.

    Each depth has a resync of its own, for half the seconds of a load.  A sample that the resync did not
    outlast is an error, not a good figure.
    """
    depths = (1, 8)
    size_bytes = fitting(bench, bench.sizes.resynced)
    goals = {
        depth: Goal(
            row=f"11 depth {depth}",
            what=f"write latency beside a resync, depth {depth}, 99th percentile",
            unit="us",
            judge=Judge.SHARE_OF_PEER,
            bar=2.0,
            aim=1.3,
        )
        for depth in depths
    }
    beside: dict[int, list[clients.Sample]] = {depth: [] for depth in depths}
    without: dict[int, list[clients.Sample]] = {depth: [] for depth in depths}
    with pair(bench, size_bytes) as pair_now:
        if pair_now is None:
            return [goal.figure(peer_name="in sync") for goal in goals.values()]
        lab, ours = pair_now
        for turn, depth in itertools.product(range(bench.heavy_rounds), depths):
            seconds = bench.seconds / 2
            load = clients.Load(job="randwrite", depth=depth, size_bytes=size_bytes, seconds=seconds)
            lose_standby(lab)
            clients.fill(lab.uri(), size_bytes=size_bytes, seed=1 + len(depths) * turn + depths.index(depth))
            _, seen = lab.events_since(0)
            lab.start("b")
            lab.await_event(RESYNC, seen=seen, timeout_s=SETTLE_S)
            beside[depth].append(sample(load, ours, turn))
            _still_running(lab, seen)
            lab.wait_in_sync(SETTLE_S)
            without[depth].append(sample(load, ours, turn))
    return [
        goals[depth].figure(
            ours=[each.p99_us for each in beside[depth]],
            peer=[each.p99_us for each in without[depth]],
            peer_name="in sync",
            details=latencies({"beside": beside[depth], "in sync": without[depth]}),
        )
        for depth in depths
    ]


def _still_running(lab: Lab, seen: int) -> None:
    events, _ = lab.events_since(seen)
    if any(event.name == IN_SYNC for event in events):
        raise BenchError("the resync was over before the loads beside it: more bytes or fewer seconds")


def resync_rate(bench: Bench) -> list[Figure]:
    """Row 12: every block written anew while the standby is away, against the sync of an empty disk.

    The first round only makes the memory or the disk below the files warm; it is not taken.
    """
    size_bytes = fitting(bench, bench.sizes.full_sync)
    goal = Goal(
        row="12",
        what=f"resync of all of {size_bytes // MIB} MiB, old content kept meanwhile",
        unit="MB/s",
        judge=Judge.OURS_OVER_PEER,
        bar=0.9,
        aim=1.0,
    )
    first: list[CatchUp] = []
    again: list[CatchUp] = []
    with pair(bench, size_bytes) as pair_now:
        if pair_now is None:
            return [goal.figure(peer_name="its first full sync")]
        lab, ours = pair_now
        ours.fill(size_bytes)
        for turn in range(1 + bench.heavy_rounds):
            first.append(sync_first(bench, lab, size_bytes))
            again.append(sync_again(bench, lab, size_bytes, seed=turn + 1))
    return [
        goal.figure(
            ours=[size_bytes / 1e6 / one.judged for one in again[1:]],
            peer=[size_bytes / 1e6 / one.judged for one in first[1:]],
            peer_name="its first full sync",
            details={"first": times(first[1:]), "again": times(again[1:])},
        )
    ]


# ------------------------------------------------------------------ scrub


def _scrubs(bench: Bench) -> bool:
    """Whether our command has a scrub."""
    if bench.command is None:
        return False
    try:
        run([bench.command, "lab", "scrub", "--help"], timeout_s=30.0)
    except BenchError:
        log("  note: `pairsync lab scrub` is not there: not measured")
        return False
    return True


def scrub_rate(bench: Bench) -> list[Figure]:
    """Row 13: a scrub of both replicas against `cat` of both files at the same time."""
    size_bytes = fitting(bench, bench.sizes.full_sync)
    goal = Goal(
        row="13",
        what=f"scrub of {size_bytes // MIB} MiB of clean data",
        unit="s",
        judge=Judge.PEER_OVER_OURS,
        bar=0.5,
        aim=0.9,
    )
    scrubs: list[float] = []
    cats: list[float] = []
    told: list[dict[str, Any]] = []
    if not _scrubs(bench):
        return [goal.figure(peer_name="cat of both files")]
    with pair(bench, size_bytes) as pair_now:
        if pair_now is None:
            return [goal.figure(peer_name="cat of both files")]
        lab, ours = pair_now
        ours.fill(size_bytes)
        lab.wait_in_sync(SETTLE_S)
        for _ in range(bench.rounds):
            (of_volume,) = lab.scrub(timeout_s=_SCRUB_S)
            told.append(of_volume)
            scrubs.append(float(of_volume["seconds"]))
            cats.append(_cat([lab.path(host=host) for host in ("a", "b")]))
            log(f"  scrub {scrubs[-1]:.3f} s ({of_volume}), cat of both files {cats[-1]:.3f} s")
    if any(each["findings"] for each in told):
        raise BenchError(f"clean data is called bad: {told}")
    return [goal.figure(ours=scrubs, peer=cats, peer_name="cat of both files", details={"told": told})]


def _cat(paths: Sequence[Path]) -> float:
    """Seconds until every file was read, all at the same time."""
    with contextlib.ExitStack() as stack:
        started_ns = time.monotonic_ns()
        readers = [
            stack.enter_context(subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL)) for path in paths
        ]
        for reader in readers:
            if reader.wait(_CAT_S):
                raise BenchError(f"cat ended with {reader.returncode}")
        return (time.monotonic_ns() - started_ns) / 1e9


def scrub_under_load(bench: Bench) -> list[Figure]:
    """Row 14: one scrub after the other beside random writes at depth 32; none may be told bad."""
    size_bytes = bench.sizes.random
    seconds = bench.seconds * _ALARM_SECONDS
    goal = Goal(
        row="14",
        what=f"false alarms of a scrub in {seconds:.0f} s of writes, depth 32",
        unit="alarms",
        judge=Judge.OURS_ALONE,
        bar=0.0,
        aim=0.0,
    )
    if not _scrubs(bench):
        return [goal.figure()]
    with pair(bench, size_bytes) as pair_now:
        if pair_now is None:
            return [goal.figure()]
        lab, ours = pair_now
        ours.fill(size_bytes)
        load = clients.Load(job="randwrite", depth=32, size_bytes=size_bytes, seconds=seconds)
        _, seen = lab.events_since(0)
        with _scrubbing(lab) as told:
            seen_by_fio = sample(load, ours, 0)
        events, _ = lab.events_since(seen)
    setbacks = [event.body for event in events if event.name in {"difference", "trouble", "refused"}]
    alarms = sum(int(each["findings"]) for each in told)
    log(f"  {len(told)} scrubs of {size_bytes // MIB} MiB, {alarms} called bad, events {setbacks}")
    if not told:
        raise BenchError("no scrub came to its end beside the load")
    details = {"scrubs": len(told), "iops": seen_by_fio.iops, "events": setbacks}
    return [goal.figure(ours=[float(alarms + len(setbacks))], details=details)]


@contextlib.contextmanager
def _scrubbing(lab: Lab) -> Iterator[list[dict[str, Any]]]:
    """Scrub one time after the other beside the block; what was told, complete when it is left."""
    told: list[dict[str, Any]] = []
    failed: list[BenchError] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                told.extend(lab.scrub(timeout_s=_SCRUB_S))
        except BenchError as problem:
            failed.append(problem)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield told
    finally:
        done.set()
        worker.join()
    if failed:
        raise failed[0]
