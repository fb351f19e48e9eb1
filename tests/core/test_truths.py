"""Giving way, over every pair of histories: what is claimed no more, what counts as own, that it helps."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from tests.core.test_lineage import FOREIGN, histories, lineage_of, relation_by_prefix

from pairsync.core.lineage import Relation, Verdict, plan_volume
from pairsync.core.messages import Condition, Generation, VolumeState
from pairsync.core.superblock import Superblock, new_superblock
from pairsync.core.truths import concession, concession_since, truth_of
from pairsync.errors import ArbitrationError, ConfigError, MismatchError

SIZE = 1 << 20
FIRST, SECOND, THIRD = (Generation(1, number, number) for number in (1, 2, 3))
ELSEWHERE = Generation(2, 1, 9)


def block(
    *lineage: Generation, base: Generation | None = None, condition: int = Condition.CONSISTENT
) -> Superblock:
    made = new_superblock(
        pair_id=b"p" * 16, volume_id=b"v" * 16, name="vda", size_bytes=SIZE, condition=Condition(condition)
    )
    return replace(made, lineage=lineage, map_base=base, term=lineage[0].term if lineage else 0)


def state(of: Superblock, dirty: int = 0) -> VolumeState:
    return VolumeState(
        *(of.name, of.volume_id, of.size_bytes, of.condition, of.lineage),
        sync_target=of.sync_target,
        map_base=of.map_base,
        dirty_blocks=dirty,
    )


def test_every_pair_of_histories() -> None:
    found = histories(3, terms=False)
    conceded = 0
    for mine, theirs in itertools.product(found, found):
        if not theirs:
            continue
        relation, common = relation_by_prefix(mine, theirs)
        for base in (None, FOREIGN, *mine):
            before, kept = block(*lineage_of(mine), base=base), state(block(*lineage_of(theirs)))
            made = concession(before, kept)
            if relation in {Relation.SAME, Relation.BEHIND}:
                assert made is None
                continue
            assert made is not None
            conceded += 1
            assert (made.common, made.after.term) == (common, before.term)
            assert (*made.given_up, *made.after.lineage) == before.lineage
            if common is None:
                assert (made.after.condition, made.everything) == (Condition.SYNCING, True)
            else:
                assert made.after.lineage[0] == common
                reaches = base in mine and mine.index(base) <= mine.index(common)
                assert made.everything is not reaches
                assert (made.after.map_base, made.after.peer_in_sync) == (common, True)
            assert plan_volume(kept, state(made.after)).verdict is Verdict.PROCEED
            assert concession(made.after, kept) is None  # repeated, it changes nothing more
    assert conceded > 500


@pytest.mark.parametrize("past", [(FIRST,), (SECOND, FIRST)])
def test_a_standby_gives_way_to_a_disk_that_was_put_back_as_a_whole(past: tuple[Generation, ...]) -> None:
    kept = replace(state(block(*past, base=FIRST)), reached=4)
    mine = block(FIRST, base=FIRST)
    assert concession(mine, kept, given=1) is None
    made = concession(mine, kept, given=5)
    assert made is not None
    assert (made.common, made.after.condition, made.everything) == (None, Condition.SYNCING, True)
    assert made.given_up == (FIRST,)
    assert concession(made.after, kept, given=5) is None


def test_who_was_put_back_gives_way_without_losing_a_word() -> None:
    newer = replace(state(block(FIRST, base=FIRST)), reached=7, given=5)
    assert concession(block(FIRST, base=FIRST), newer, given=3) is None  # it is behind, and that is all
    made = concession(block(SECOND, FIRST, base=FIRST), newer, given=3)  # written alone since
    assert made is not None
    assert (made.common, made.given_up, made.everything) == (FIRST, (SECOND,), False)


def test_a_truth_knows_which_side_was_put_back() -> None:
    old = replace(state(block(FIRST, base=FIRST), dirty=2), reached=4)
    newer = replace(state(block(FIRST, base=FIRST), dirty=3), reached=6, given=5)
    assert truth_of(newer, old)[1:] == (Relation.AHEAD, FIRST, (), None)  # any block may be
    assert truth_of(old, newer)[1:] == (Relation.BEHIND, FIRST, (), 2)
    apart = replace(state(block(SECOND, FIRST, base=FIRST), dirty=2), reached=4)
    assert truth_of(newer, apart)[1:] == (Relation.DIVERGED, FIRST, (), None)
    assert truth_of(apart, newer)[1:] == (Relation.DIVERGED, FIRST, (SECOND,), 2)


def test_what_cannot_be_given_way_to() -> None:
    mine, theirs = block(SECOND, FIRST), state(block(ELSEWHERE, FIRST))
    with pytest.raises(MismatchError, match="no replica of this one"):
        concession(mine, replace(theirs, volume_id=b"x" * 16))
    for condition in (Condition.BLANK, Condition.SYNCING):
        with pytest.raises(ArbitrationError, match="cannot be the one to keep"):
            concession(mine, replace(theirs, condition=condition))


def test_a_half_overwritten_replica_becomes_a_target() -> None:
    theirs = state(block(ELSEWHERE, FIRST))
    half = replace(block(SECOND, FIRST, condition=Condition.SYNCING), sync_target=THIRD)
    made = concession(half, theirs)
    assert made is not None
    assert (made.common, made.after.lineage, made.after.sync_target, made.everything) == (
        None,
        (),
        None,
        True,
    )
    assert concession(replace(half, sync_target=FIRST), theirs) is None  # it is theirs already
    assert concession_since(half, FIRST.describe()) == made
    assert concession_since(made.after, FIRST.describe()) is None


def test_the_common_generation_may_be_named() -> None:
    mine = block(THIRD, SECOND, FIRST, base=SECOND)
    made = concession_since(mine, "1.2/02")
    assert made is not None
    assert (made.common, made.given_up, made.everything) == (SECOND, (THIRD,), False)
    made = concession_since(mine, "1.1/01")
    assert made is not None
    assert (made.common, made.everything) == (FIRST, True)
    made = concession_since(mine, "1.3/03")
    assert made is not None
    assert (made.common, made.after.condition, made.everything) == (None, Condition.SYNCING, True)
    with pytest.raises(ConfigError, match=r"'1.4/04' does not name .* there are 1.3/03, 1.2/02, 1.1/01"):
        concession_since(mine, "1.4/04")
    twins = block(THIRD, Generation(1, 1, 0x101), FIRST)
    with pytest.raises(ConfigError, match="does not name one"):
        concession_since(twins, "1.1/01")
    with pytest.raises(ConfigError, match="there are none"):
        concession_since(block(), "1.1/01")


@pytest.mark.parametrize(
    ("mine", "theirs", "relation", "own", "blocks"),
    [
        (block(SECOND, FIRST, base=FIRST), block(ELSEWHERE, FIRST), Relation.DIVERGED, (SECOND,), 7),
        (block(SECOND, FIRST, base=SECOND), block(ELSEWHERE, FIRST), Relation.DIVERGED, (SECOND,), None),
        (block(SECOND, FIRST, base=FIRST), block(FIRST), Relation.AHEAD, (SECOND,), 7),
        (block(FIRST), block(SECOND, FIRST), Relation.BEHIND, (), 7),
        (block(FIRST), block(FIRST), Relation.SAME, (), 7),
        (block(FIRST), block(ELSEWHERE), Relation.UNRELATED, (FIRST,), None),
        (block(condition=Condition.BLANK), block(ELSEWHERE), Relation.LOCAL_EMPTY, (), 0),
        (block(SECOND, FIRST), None, None, (SECOND, FIRST), 7),
    ],
)
def test_what_one_side_has(
    mine: Superblock,
    theirs: Superblock | None,
    relation: Relation | None,
    own: tuple[Generation, ...],
    blocks: int | None,
) -> None:
    truth = truth_of(state(mine, 7), None if theirs is None else state(theirs))
    assert (truth.relation, truth.own, truth.blocks) == (relation, own, blocks)
