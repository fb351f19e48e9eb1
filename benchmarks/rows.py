"""The rows of the benchmark: for each what is measured, on whom, and what it is held against.

Volumes are filled with random data first: nobody is measured while allocating, except where the row is about
that.  A row without our lab (`Bench.command` is None) measures the peers alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import clients, peers, repairrows, witnessrows
from benchmarks.contest import ALONE, MIB, OURS, SETTLE_S, Bench, Goal, alternate, hold, mirrors, pair
from benchmarks.counters import LinkCounter
from benchmarks.loads import (
    fitting,
    iops,
    latencies,
    lose_standby,
    random_load,
    sample,
    sync_again,
    sync_first,
    sync_fully,
    times,
)
from benchmarks.ours import CatchUp
from benchmarks.peers import Contender
from benchmarks.procs import BenchError, log, until, with_children
from benchmarks.report import Figure, Judge

__all__ = ["ROWS", "Row"]

BLOCK_BYTES = 4096
RESYNC_SHARE = 100
"""One block in this many is dirty in row 6."""


def random_writes_deep(bench: Bench) -> list[Figure]:
    """Row 1."""
    goal = Goal(
        row="1",
        what="4 KiB random writes, sync, depth 32",
        unit="IOPS",
        judge=Judge.OURS_OVER_PEER,
        bar=2.0,
        aim=4.0,
    )
    with mirrors(bench, bench.sizes.random) as contenders:
        samples = random_load(bench, contenders, "randwrite", 32)
    return hold(goal, iops(samples), latencies(samples))


def random_writes_single(bench: Bench) -> list[Figure]:
    """Row 2: the rate, and the 99th percentile of the latency against the same peer."""
    goal = Goal(
        row="2",
        what="4 KiB random writes, sync, depth 1",
        unit="IOPS",
        judge=Judge.OURS_OVER_PEER,
        bar=0.8,
        aim=1.2,
    )
    tail = Goal(
        row="2 p99",
        what="its latency, 99th percentile",
        unit="us",
        judge=Judge.SHARE_OF_PEER,
        bar=1.0,
        aim=None,
    )
    with mirrors(bench, bench.sizes.random) as contenders:
        samples = random_load(bench, contenders, "randwrite", 1)
    figures = hold(goal, iops(samples), latencies(samples))
    peer_name = figures[0].peer_name if figures[0].bar is not None else figures[1].peer_name
    slowest = tail.figure(
        ours=[sample.p99_us for sample in samples.get(OURS, ())],
        peer=[sample.p99_us for sample in samples[peer_name]],
        peer_name=peer_name,
    )
    return [*figures, slowest]


def random_reads(bench: Bench) -> list[Figure]:
    """Row 3: against nbdkit memory; qemu-nbd for information."""
    goal = Goal(
        row="3",
        what="4 KiB random reads, depth 32",
        unit="IOPS",
        judge=Judge.OURS_OVER_PEER,
        bar=1.0,
        aim=2.0,
    )
    size_bytes = bench.sizes.random
    with (
        pair(bench, size_bytes) as ours,
        bench.directory("memory") as memory_base,
        bench.directory("qemu-nbd") as plain_base,
        peers.nbdkit_memory(memory_base, size_bytes=size_bytes) as memory_disk,
        peers.qemu_nbd(plain_base, size_bytes=size_bytes) as plain_disk,
    ):
        contenders = [*([ours[1]] if ours else []), memory_disk, plain_disk]
        for contender in contenders:
            contender.fill(size_bytes)
        samples = random_load(bench, contenders, "randread", 32)
    rates = iops(samples)
    mine = rates.get(OURS, [])
    named, other = memory_disk.name, plain_disk.name
    return [
        goal.figure(ours=mine, peer=rates[named], peer_name=named, details=latencies(samples)),
        goal.figure(ours=mine, peer=rates[other], peer_name=other, judged=False),
    ]


def sequential_writes(bench: Bench) -> list[Figure]:
    """Row 4: nbdcopy of random data over a filled volume, flushed at the end.

    For information also into a volume that was trimmed as a whole before: there, both sides allocate.
    """
    goal = Goal(
        row="4",
        what="sequential writes by nbdcopy, sync",
        unit="MB/s",
        judge=Judge.OURS_OVER_PEER,
        bar=1.5,
        aim=3.0,
    )
    with bench.directory("source") as directory, mirrors(bench, bench.sizes.sequential) as contenders:
        source = _random_file(directory, bench.sizes.sequential)

        def measure(contender: Contender, _turn: int) -> float:
            speed = clients.copy_in(source, contender.uri) / 1e6
            log(f"  {contender.name}: {speed:.0f} MB/s")
            return speed

        samples = alternate(contenders, bench.rounds, measure)

        def measure_fresh(contender: Contender, turn: int) -> float:
            clients.trim(contender.uri, size_bytes=bench.sizes.sequential)
            return measure(contender, turn)

        fresh = alternate(contenders, bench.heavy_rounds, measure_fresh)
    unjudged = dataclasses.replace(
        goal, row="4 fresh", what="the same into a trimmed volume", bar=None, aim=None
    )
    return [*hold(goal, samples, {}), *hold(unjudged, fresh, {})]


def _random_file(directory: Path, size_bytes: int) -> Path:
    directory.mkdir()
    path = directory / "random"
    with open("/dev/urandom", "rb") as entropy, path.open("wb") as out:
        for _ in range(size_bytes // MIB):
            out.write(entropy.read(MIB))
    return path


def full_sync(bench: Bench) -> list[Figure]:
    """Row 5: the first sync of an empty standby; for information also one over old content, which is kept.

    The first round of both sides only makes the memory or the disk below their files warm; it is not taken.
    """
    size_bytes = bench.sizes.full_sync
    goal = Goal(
        row="5",
        what=f"first full sync of {size_bytes // MIB} MiB of random data",
        unit="MB/s",
        judge=Judge.OURS_OVER_PEER,
        bar=0.4,
        aim=0.6,
    )
    kept = dataclasses.replace(
        goal, row="5 kept", what="resync of all of it, old content kept meanwhile", bar=None, aim=None
    )
    first: list[CatchUp] = []
    again: list[CatchUp] = []
    peer: list[float] = []
    with pair(bench, size_bytes) as pair_now, bench.directory("copy") as directory:
        directory.mkdir()
        if pair_now:
            lab, ours = pair_now
            ours.fill(size_bytes)
            source = lab.path()
        else:
            source = _random_file(directory / "random", size_bytes)
        for turn in range(1 + bench.heavy_rounds):
            if pair_now:
                first.append(sync_first(bench, lab, size_bytes))
                again.append(sync_again(bench, lab, size_bytes, seed=turn + 1))
            peer.append(peers.tcp_copy(source, directory / "target") / 1e6)
            log(f"  plain TCP copy: {peer[-1]:.0f} MB/s")
    return [
        each.figure(
            ours=[size_bytes / 1e6 / one.judged for one in taken[1:]],
            peer=peer[1:],
            peer_name="plain TCP copy",
            details=times(taken[1:]),
        )
        for each, taken in ((goal, first), (kept, again))
    ]


def resync(bench: Bench) -> list[Figure]:
    """Row 6: bytes on the wire against dirty bytes, and time against the full sync of the same volume.

    The full sync runs twice and the second counts, for the first is slowed down by allocation.
    """
    size_bytes = fitting(bench, bench.sizes.scattered)
    what = f"resync of 1 % scattered blocks of {size_bytes // MIB} MiB"
    count = size_bytes // BLOCK_BYTES // RESYNC_SHARE
    dirty_bytes = float(count * BLOCK_BYTES)
    wire: list[float] = []
    partial: list[CatchUp] = []
    full: list[CatchUp] = []
    details: dict[str, Any] = {"payload_by_ss": []}
    with pair(bench, size_bytes) as pair_now:
        if pair_now:
            lab, _ = pair_now
            log(f"  full sync, not taken: {sync_fully(lab, size_bytes, seed=1)}")
            full.append(sync_fully(lab, size_bytes, seed=2))
            log(f"  full sync: {full[0]}")
            for turn in range(bench.heavy_rounds):
                lab.kill("b")
                clients.scatter(lab.uri(), size_bytes=size_bytes, count=count, seed=turn + 3)
                with LinkCounter(lab.link_ports()).counting() as counter:
                    partial.append(lab.catch_up(timeout_s=SETTLE_S))
                    payload = counter.payload()
                    counted, details["counter"] = counter.judged(payload)
                wire.append(float(counted))
                details["payload_by_ss"].append(payload)
                log(f"  resync: {counted / dirty_bytes:.4f} x the dirty bytes, {partial[-1]}")
    return [
        Goal(
            row="6 bytes",
            what=f"{what}: bytes on the wire",
            unit="B",
            judge=Judge.SHARE_OF_PEER,
            bar=1.05,
            aim=1.02,
        ).figure(ours=wire, peer=[dirty_bytes] * len(wire), peer_name="dirty bytes", details=details),
        _resync_time(f"{what}: time", full, partial),
    ]


def _resync_time(what: str, full: Sequence[CatchUp], partial: Sequence[CatchUp]) -> Figure:
    goal = Goal(row="6 time", what=what, unit="s", judge=Judge.PEER_OVER_OURS, bar=10.0, aim=40.0)
    # Both times must begin at the same kind of event to be compared.
    alike = len({one.judged_from for one in (*full, *partial)}) == 1
    return goal.figure(
        ours=[one.judged if alike else one.wall for one in partial],
        peer=[one.judged if alike else one.wall for one in full] * len(partial),
        peer_name="its full sync",
        details={"full": times(full), "resync": times(partial)},
    )


def standby_away(bench: Bench) -> list[Figure]:
    """Row 7: each round loses the standby anew, so that clean blocks turn dirty as they are written."""
    goal = Goal(
        row="7",
        what="4 KiB random writes, depth 32, standby away",
        unit="IOPS",
        judge=Judge.OURS_OVER_PEER,
        bar=0.8,
        aim=0.95,
    )
    size_bytes = bench.sizes.random
    with pair(bench, size_bytes) as pair_now, pair(bench, size_bytes, single=True) as alone:
        if pair_now is None or alone is None:
            return [goal.figure(peer_name=ALONE)]
        lab, ours = pair_now
        contenders = [ours, alone[1]]
        for contender in contenders:
            contender.fill(size_bytes)
        load = clients.Load(job="randwrite", depth=32, size_bytes=size_bytes, seconds=bench.seconds)

        def measure(contender: Contender, turn: int) -> clients.Sample:
            if contender is ours:
                if turn:
                    lab.start("b")
                lab.wait_in_sync(SETTLE_S)
                lose_standby(lab)
            return sample(load, contender, turn)

        samples = alternate(contenders, bench.rounds, measure)
    return hold(goal, iops(samples), latencies(samples))


def _memory(pid: int) -> dict[str, float]:
    """Resident, proportional and peak memory of a process and its children, in MiB."""
    sums = {"VmRSS": 0.0, "Pss": 0.0, "VmHWM": 0.0}
    for one in with_children(pid):
        text = Path(f"/proc/{one}/status").read_text() + Path(f"/proc/{one}/smaps_rollup").read_text()
        for name in sums:
            found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
            sums[name] += int(found[1]) / 1024 if found else 0.0
    return sums


def memory(bench: Bench) -> list[Figure]:
    """Row 8: the greater of the two hosts, idle and in sync after random writes all over the volume."""
    goal = Goal(
        row="8",
        what="resident memory of a host, 1 TiB volume",
        unit="MiB",
        judge=Judge.OURS_ALONE,
        bar=150.0,
        aim=100.0,
    )
    size_bytes = bench.sizes.sparse
    with pair(bench, size_bytes) as pair_now:
        if pair_now is None:
            return [goal.figure()]
        lab, contender = pair_now
        load = clients.Load(job="randwrite", depth=32, size_bytes=size_bytes, seconds=bench.seconds)
        before = sample(load, contender, 0)
        lab.wait_in_sync(SETTLE_S)
        pids = [lab.pid(host) for host in ("a", "b")]
        _settle(pids)
        hosts = {host: _memory(pid) for host, pid in zip("ab", pids, strict=True)}
    log(f"  {hosts}")
    ours = [max(host["VmRSS"] for host in hosts.values())]
    return [goal.figure(ours=ours, details={"hosts": hosts, "iops_before": before.iops})]


def _settle(pids: Sequence[int]) -> None:
    """Wait, 10 s at most, until the memory of the processes no longer falls."""
    last = [float("inf")]

    def steady() -> bool:
        before, last[0] = last[0], sum(_memory(pid)["VmRSS"] for pid in pids)
        return last[0] >= before - 0.5

    with contextlib.suppress(BenchError):
        until(steady, timeout_s=10.0, what="memory no longer falls", pause_s=1.0)


@dataclass(frozen=True)
class Row:
    """A row by its number: what it is, who measures it, and whether a real disk changes it."""

    number: str
    what: str
    measure: Callable[[Bench], list[Figure]]
    on_disk_too: bool = False


ROWS = (
    Row("1", "4 KiB random writes at depth 32 against QEMU's mirror", random_writes_deep, on_disk_too=True),
    Row("2", "the same at depth 1", random_writes_single, on_disk_too=True),
    Row("3", "4 KiB random reads at depth 32 against nbdkit memory", random_reads),
    Row("4", "sequential writes by nbdcopy against QEMU's mirror", sequential_writes, on_disk_too=True),
    Row("5", "first full sync against a plain TCP copy", full_sync),
    Row("6", "resync of 1 % of the blocks", resync),
    Row("7", "writes with the standby away", standby_away, on_disk_too=True),
    Row("8", "memory of a host with 1 TiB", memory),
    Row("9", "writes with digests kept against without", repairrows.writes_with_digests, on_disk_too=True),
    Row("10", "proof at reconnect of an unchanged volume", repairrows.proof_at_reconnect),
    Row("11", "latency while a resync runs against without", repairrows.latency_beside_resync),
    Row("12", "rate of a resync against the first full sync", repairrows.resync_rate),
    Row("13", "scrub of clean data against cat", repairrows.scrub_rate),
    Row("14", "false alarms of a scrub under full write load", repairrows.scrub_under_load),
    Row("15", "a witness and a thousand pairs", witnessrows.witness),
    Row("16", "writes under a lease against an owner that decides alone", repairrows.writes_with_arbitration),
)
