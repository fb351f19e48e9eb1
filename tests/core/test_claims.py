"""Claims: what a grant says of a host that would serve, and what its replicas say against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbiter import Arbiter
from pairsync.core.claims import (
    INSISTED,
    Claim,
    claim_of,
    has_to_meet,
    is_outdated,
    obstacle,
    peer_is_newer,
)
from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Persist
from pairsync.core.grants import Grant, VoterId, genesis
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Condition, Generation, Role
from pairsync.core.session import Session
from pairsync.core.setup import VolumeSetup
from pairsync.core.superblock import Superblock
from pairsync.core.timing import derive
from pairsync.testing.manual import blank_superblock

A, B = b"a" * 32, b"b" * 32
A1, B1, W1 = VoterId(A, b"a1"), VoterId(B, b"b1"), VoterId("w", b"w1")
FIRST = genesis(A1, b"fork")
BOTH = FIRST._replace(epoch=2, in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))
ALONE = BOTH._replace(epoch=3, in_sync=frozenset({A}), voters=frozenset({A1}))
FORCED = ALONE._replace(term=2, epoch=1, override="Dr Weber")
NEWEST = Generation(1, 1, 7)
WHOLE = replace(
    blank_superblock("vda", 1 << 20),
    condition=Condition.CONSISTENT,
    term=1,
    lineage=(NEWEST,),
    map_base=NEWEST,
)
OUTDATED = replace(WHOLE, outdated=True)


def arbiter_of(host: VoterId, grant: Grant | None) -> Arbiter:
    """Of a host that has come up with that grant in its memory."""
    timing = derive()
    own, peer = (A, B) if host.name == A else (B, A)
    made = Arbiter(
        own,
        peer,
        AcceptorState(host.incarnation, grant),
        timing,
        witnesses=("w",),
        promise_ns=timing.promise_ns,
        first_number=1,
        fraction=lambda: 0.5,
    )
    made.start(0)
    return made


def session_of(role: Role, *blocks: Superblock) -> Session:
    options = VolumeOptions()
    setups = [VolumeSetup(block, DirtyMap(block.size_bytes // 4096), options) for block in blocks]
    return Session(
        guest="guest",
        pair_id=b"p" * 16,
        role=role,
        term=1,
        boot_id="boot",
        volumes=setups,
        draw_tag=lambda: 9,
        arbitrated=True,
    )


@pytest.mark.parametrize(
    ("host", "grant", "claim"),
    [
        (A1, None, Claim(new=True)),
        (A1, FIRST, Claim(new=True)),
        (B1, FIRST, Claim(new=True, term=1)),
        (A1, BOTH, Claim()),
        (B1, BOTH, Claim(term=1)),
        (A1, ALONE, Claim()),
        (A1, FORCED, INSISTED),
        (B1, FORCED, Claim(term=2)),
    ],
)
def test_what_a_grant_says_of_a_host(host: VoterId, grant: Grant | None, claim: Claim) -> None:
    assert claim_of(arbiter_of(host, grant)) == claim


@pytest.mark.parametrize(
    ("block", "claim", "why"),
    [
        (WHOLE, Claim(), ""),
        (WHOLE, Claim(term=1), ""),
        (WHOLE, Claim(term=2), "not proven in sync since the last change of the owner"),
        (blank_superblock("vda", 1 << 20), Claim(new=True), ""),
        (blank_superblock("vda", 1 << 20), INSISTED, "never written"),
        (replace(WHOLE, condition=Condition.SYNCING, sync_target=NEWEST), INSISTED, "half overwritten"),
        (OUTDATED, Claim(), "older than the other host's"),
        (OUTDATED, Claim(new=True), "older than the other host's"),
        (OUTDATED, INSISTED, ""),
    ],
)
def test_what_stands_against_a_replica(block: Superblock, claim: Claim, why: str) -> None:
    """Of any volume of the guest."""
    for blocks in ((block,), (WHOLE, block), (block, WHOLE)):
        if claim.new and blocks != (block,):
            continue  # nothing of such a guest was written
        found = obstacle(session_of(Role.STANDBY, *blocks), claim)
        assert why in found
        assert bool(found) is bool(why)


volumes = st.lists(
    st.builds(
        lambda state, outdated: replace(state, outdated=outdated),
        st.sampled_from(
            [
                blank_superblock("vda", 1 << 20),
                WHOLE,
                replace(WHOLE, term=2),
                replace(WHOLE, condition=Condition.SYNCING, sync_target=NEWEST),
            ]
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


@given(volumes, st.sampled_from([None, FIRST, BOTH, ALONE, FORCED]), st.sampled_from([A1, B1]))
@example([WHOLE, OUTDATED], ALONE, A1)
def test_a_host_serves_what_is_whole_and_proven_and_not_known_to_be_old(
    blocks: list[Superblock], grant: Grant | None, host: VoterId
) -> None:
    """As the rules say it of a host that is down, one name each; a person need not be heard for less."""
    arbiter = arbiter_of(host, grant)
    session = session_of(Role.STANDBY, *blocks)
    owns = grant is not None and grant.owner == host.name
    by_a_person = owns and grant is not None and bool(grant.override)
    new = grant is None or grant == FIRST
    known_old = any(block.outdated for block in blocks) and not by_a_person
    halves = [block for block in blocks if block.condition is Condition.SYNCING]
    empty = [block for block in blocks if block.condition is Condition.BLANK and not new]
    under = 0 if grant is None or owns else grant.term
    unproven = [block for block in blocks if block.term < under]
    assert bool(obstacle(session, claim_of(arbiter))) == bool(known_old or halves or empty or unproven)
    assert is_outdated(arbiter, session) == known_old
    if obstacle(session, INSISTED):  # nobody can insist on what no replica is
        assert halves or any(block.condition is Condition.BLANK for block in blocks)


@pytest.mark.parametrize("grant", [BOTH, ALONE])
def test_who_knows_that_its_peer_is_newer_does_not_serve_even_where_the_grant_excludes_that(
    grant: Grant,
) -> None:
    assert is_outdated(arbiter_of(A1, grant), session_of(Role.STANDBY, WHOLE, OUTDATED))
    assert not is_outdated(arbiter_of(A1, grant), session_of(Role.STANDBY, WHOLE))
    assert not is_outdated(arbiter_of(A1, FORCED), session_of(Role.STANDBY, OUTDATED))


@pytest.mark.parametrize(
    ("grant", "make", "waits"),
    [
        (BOTH, lambda: session_of(Role.STANDBY, WHOLE), True),
        (ALONE, lambda: session_of(Role.STANDBY, WHOLE), False),
        (BOTH, lambda: session_of(Role.ACTIVE, WHOLE), False),
    ],
)
def test_a_new_owner_meets_a_peer_that_may_own_too(
    grant: Grant, make: Callable[[], Session], waits: bool
) -> None:
    assert has_to_meet(arbiter_of(A1, grant), make()) is waits


def test_a_replica_that_is_served_is_not_outdated_any_more() -> None:
    """For nobody but a person has it served."""
    session = session_of(Role.ACTIVE, OUTDATED)
    assert session.outdated == ""
    assert obstacle(session, Claim()) == ""


def test_a_volume_that_has_failed_is_no_obstacle_once_it_is_to_be_opened_anew() -> None:
    session = session_of(Role.ACTIVE, WHOLE)
    session.sources[0].abandon("its disk has failed")
    assert obstacle(session, Claim()) == "volume vda: its disk has failed"
    assert obstacle(session, Claim(), halted=True) == ""


def test_a_peer_is_newer_only_as_it_is_met_now_and_only_if_it_lacks_nothing() -> None:
    newer = replace(WHOLE, lineage=(Generation(1, 3, 8), NEWEST))
    other = replace(WHOLE, name="vdb")
    for theirs, said in (
        ([newer, other], True),
        ([newer, replace(other, condition=Condition.BLANK, lineage=())], False),
        ([WHOLE, other], False),
    ):
        mine = session_of(Role.STANDBY, WHOLE, other)
        mine.connected(0)
        mine.received([session_of(Role.STANDBY, *theirs).introduction()], 0)
        while wanted := [effect for effect in mine.take() if isinstance(effect, Persist)]:
            for effect in wanted:
                mine.persisted(effect.volume, effect.token, 0, 0)
        assert bool(mine.outdated) is (newer in theirs)
        assert peer_is_newer(mine) is said
        mine.lost("the link was cut", 0)
        assert not peer_is_newer(mine), "another one may come back"
