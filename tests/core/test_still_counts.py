"""A standby that is back before it was put out by a grant: it is copied to, and may be promoted meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from pairsync.core.claims import Claim, obstacle
from pairsync.core.events import ResyncEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.lineage import SAME_GENERATION
from pairsync.core.messages import Begin, Condition, Generation, OpKind, Role, SyncMode, VolumePlan, WriteOp
from pairsync.core.standing import Phase
from pairsync.core.superblock import STILL_COUNTS, Superblock
from pairsync.core.units import BLOCK_BYTES
from pairsync.testing.manual import ManualHost, ManualPair, blank_superblock

BLOCKS = 64
OLD, NEW, LATER = 1, 2, 3  # acknowledged before; in flight when the link went; written once it is back
WRITTEN = (3, 9, 20, 40)


def data(block: int, fill: int) -> list[WriteOp]:
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, bytes([fill]) * BLOCK_BYTES)]


def run(host: ManualHost) -> None:
    while host.busy:
        host.complete(*host.busy[0])


def fills(host: ManualHost) -> list[int]:
    return [host.disks[0].content[block * BLOCK_BYTES] for block in WRITTEN]


def condition(host: ManualHost) -> Condition:
    return host.metadata[0].superblock.condition


def acknowledged(host: ManualHost) -> set[object]:
    return {end.ticket for end in host.completed if end.errnos is None}


def blip(level: str = "sync", *, digests: bool = True) -> ManualPair:
    """The link went with writes in flight, and is back; nobody has said yet that a may go on alone."""
    pair = ManualPair(BLOCKS * BLOCK_BYTES, VolumeOptions(level=level, digests=digests))
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.settle()
    pair.connect()
    for block in WRITTEN:
        pair.a.write(f"old{block}", data(block, OLD))
    pair.settle()
    assert pair.a.session.in_sync
    pair.a.session.permitted(0, alone=False)
    pair.cut()
    for block in WRITTEN:
        pair.a.write(f"new{block}", data(block, NEW))
    run(pair.a)
    assert fills(pair.b) == [OLD] * 4
    assert pair.a.asked_alone == 1
    assert not acknowledged(pair.a) & {f"new{block}" for block in WRITTEN}
    pair.b.events.clear()
    pair.connect()
    return pair


def restarted() -> ManualPair:
    """The owner lost its power, and a write that was acknowledged and not flushed; the standby has it."""
    pair = ManualPair(BLOCKS * BLOCK_BYTES, VolumeOptions())
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.settle()
    pair.connect()
    for block in WRITTEN:
        pair.a.write(f"old{block}", data(block, OLD))
    pair.a.flush("old")
    pair.settle()
    pair.a.write("new40", data(40, NEW))
    pair.settle()
    assert "new40" in acknowledged(pair.a)
    pair.crash(pair.a, power=True)
    pair.a.start(Role.ACTIVE, 1, arbitrated=True)
    run(pair.a)
    assert (fills(pair.a), fills(pair.b)) == ([OLD] * 4, [OLD, OLD, OLD, NEW])
    pair.connect()
    return pair


def steps(pair: ManualPair) -> Iterator[int]:
    """One thing after the other, messages one by one."""
    count = 0
    yield count
    while True:
        for host in (pair.a, pair.b):
            if host.busy:
                host.complete(*host.busy[0])
                break
            if host.outbox:
                pair.deliver(host)
                break
        else:
            return
        count += 1
        yield count


def test_it_is_whole_all_the_while() -> None:
    pair = blip()
    pair.a.asked_alone = 0
    seen = set()
    for _ in steps(pair):
        assert condition(pair.b) is Condition.CONSISTENT
        assert not obstacle(pair.b.session, Claim(term=1))
        seen.add(tuple(fills(pair.b)))
    assert [each.rule for each in pair.b.events if isinstance(each, ResyncEvent)] == [STILL_COUNTS]
    assert seen >= {(OLD,) * 4, (NEW,) * 4}
    assert pair.a.session.in_sync
    assert pair.differing() == []
    assert {f"new{block}" for block in WRITTEN} <= acknowledged(pair.a)
    assert pair.a.asked_alone == 0


@pytest.mark.parametrize("power", [False, True])
def test_it_may_be_promoted_in_the_midst_of_the_copy(power: bool) -> None:
    """With all that was acknowledged, wherever the owner dies, also if it loses its power with it."""
    for last in range(10_000):
        pair = blip()
        ended = all(count < last for count in steps_until(pair, last))
        told = [NEW if f"new{block}" in acknowledged(pair.a) else OLD for block in WRITTEN]
        pair.crash(pair.a)
        pair.crash(pair.b, power=power)
        pair.b.start(Role.ACTIVE, 2)
        run(pair.b)
        assert pair.b.session.sources[0].serving
        assert all(found >= least for found, least in zip(fills(pair.b), told, strict=True))
        pair.a.start(Role.STANDBY, 1)
        pair.connect()
        pair.settle()
        assert pair.b.session.in_sync
        assert pair.differing() == []
        if ended:
            assert last > 20
            return


def steps_until(pair: ManualPair, last: int) -> Iterator[int]:
    for count in steps(pair):
        yield count
        if count == last:
            return


def test_it_is_a_mixture_before_it_lacks_what_was_acknowledged_without_it() -> None:
    """The permit comes in the midst of the copy, wherever that is, and the guest writes on."""
    mixed = 0
    for last in range(10_000):
        pair = blip()
        ended = all(count < last for count in steps_until(pair, last))
        before = pair.a.session.sources[0].standing.newest
        pair.a.session.permitted(0, alone=True)
        pair.a.perform()
        for block in WRITTEN:
            pair.a.write(f"later{block}", data(block, LATER))
        for _ in steps(pair):
            replica = pair.b.metadata[0].superblock
            if replica.condition is Condition.CONSISTENT and replica.lineage[0] == before:
                told = [NEW if f"new{each}" in acknowledged(pair.a) else OLD for each in WRITTEN]
                still = pair.a.session.sources[0].standing.newest == before
                assert still or LATER not in fills(pair.b)
                assert not still or all(a >= b for a, b in zip(fills(pair.b), told, strict=True))
            else:
                mixed += replica.condition is Condition.SYNCING
        assert pair.a.session.in_sync
        assert pair.b.session.in_sync
        assert pair.differing() == pair.forgotten() == []
        assert fills(pair.b) == [LATER] * 4
        assert pair.a.session.sources[0].standing.phase is Phase.IN_SYNC
        if ended:
            assert mixed
            return


def _damaged(pair: ManualPair) -> None:
    pair.b.disks[0].apply(data(50, 99))


def _permitted(pair: ManualPair) -> None:
    pair.a.session.permitted(0, alone=True)
    pair.a.perform()


@pytest.mark.parametrize("happens", [_damaged, _permitted])
def test_it_is_a_mixture_where_more_may_be_missing(happens: Callable[[ManualPair], None]) -> None:
    """A difference that no dirty map holds; a permit."""
    pair = blip()
    happens(pair)
    found = {condition(pair.b) for _ in steps(pair)}
    assert Condition.SYNCING in found
    assert pair.a.session.in_sync
    assert pair.differing() == []


def test_it_is_a_mixture_where_the_owner_was_begun_anew() -> None:
    """What the guest writes by what it finds there would stand beside what it does not find any more."""
    pair = restarted()
    for _ in steps(pair):
        if pair.a.waiting("disk"):
            break  # what the standby is to get is being read
    pair.a.write("later3", data(3, LATER))
    while pair.a.waiting("meta"):
        pair.a.complete("meta")
    while pair.a.outbox:
        pair.deliver(pair.a)
    run(pair.b)
    assert fills(pair.b) == [LATER, OLD, OLD, NEW]  # as no disk of the guest ever was
    assert condition(pair.b) is Condition.SYNCING
    assert obstacle(pair.b.session, Claim(term=1))
    for _ in steps(pair):
        pass
    assert pair.a.session.in_sync
    assert fills(pair.b) == [LATER, OLD, OLD, OLD]


def test_an_async_volume_is_a_mixture() -> None:
    """It lacks what was acknowledged, and would get it out of order."""
    pair = blip("async")
    assert Condition.SYNCING in {condition(pair.b) for _ in steps(pair)}


def test_a_standby_believes_it_only_of_what_it_is() -> None:
    newest = Generation(2, 1, 7)
    block = replace(
        blank_superblock("vda", 1 << 20), condition=Condition.CONSISTENT, lineage=(newest,), term=2
    )
    plan = VolumePlan(SyncMode.INCREMENTAL, STILL_COUNTS, newest)
    assert block.stays_whole(Begin(2, 0, plan))
    assert not block.stays_whole(Begin(2, 0, replace(plan, rule=SAME_GENERATION)))
    assert not block.stays_whole(Begin(3, 0, plan))  # not proven under this owner
    others: list[Superblock] = [
        replace(block, lineage=()),
        replace(block, lineage=(Generation(1, 1, 7), newest)),
        replace(block, condition=Condition.SYNCING),
    ]
    assert not any(each.stays_whole(Begin(2, 0, plan)) for each in others)
