"""What a host says of its truth, running or not, and how it gives way: memory first, and not by accident."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pairsync.core.acceptor import AcceptorState
from pairsync.core.grants import VoterId, forced
from pairsync.core.messages import Applied, Condition, Generation, Introduce, Role
from pairsync.errors import BusyError, ConfigError, InternalError, MismatchError
from pairsync.guest.config import GuestConfig
from pairsync.guest.guest import open_guest
from pairsync.guest.replica import open_replica
from pairsync.io.keys import open_identity
from pairsync.node.hostfile import HostFile, read_host_file
from pairsync.node.hostinit import HostPlan, init_host
from pairsync.node.truths import (
    concede_host,
    describe_sides,
    look_at_conceding,
    side_from_answer,
    stopped_side,
    truth_handlers,
)
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.wire.arbitration import decode_host_memory, encode_acceptor
from pairsync.wire.codec import encode

MIB = 1 << 20
FIRST, SECOND, THERE = Generation(1, 1, 1), Generation(1, 2, 2), Generation(2, 1, 3)


@pytest.fixture
def host(tmp_path: Path) -> HostFile:
    return host_with_past(tmp_path)


def host_with_past(directory: Path) -> HostFile:
    """A host that has written alone, in two generations."""
    init_host(directory, HostPlan(volumes={"vda": MIB}, name="a", peers=[("127.0.0.1", 1)]))
    file = read_host_file(directory / "host.toml")
    replica = open_replica(file.volumes[0], file.pair_id)
    block = replica.store.superblock
    lineage = (SECOND, FIRST)
    replica.store.write_superblock(
        replace(block, condition=Condition.CONSISTENT, lineage=lineage, map_base=FIRST, term=1)
    )
    replica.close()
    return file


def other(host: HostFile, *lineage: Generation) -> Introduce:
    """The other host, with that past."""
    mine = stopped_side(host).introduction
    return replace(mine, volumes=(replace(mine.volumes[0], lineage=lineage),))


def memory_of(host: HostFile) -> AcceptorState:
    assert host.register is not None
    memory = AcceptorFile.open(host.register.memory)
    try:
        return decode_host_memory(memory.state).acceptor
    finally:
        memory.close()


def force(host: HostFile, term: int) -> None:
    """By an operator's word that host owns the guest."""
    assert host.register is not None
    state = memory_of(host)
    me = open_identity(host.identity, "").fingerprint
    grant = forced(VoterId(me, state.incarnation), [], b"f" * 8, "Dr Weber", term_seen=term - 1)
    memory = AcceptorFile.open(host.register.memory)
    memory.store(encode_acceptor(AcceptorState(state.incarnation, grant)))
    memory.close()


def test_a_host_that_is_down(host: HostFile) -> None:
    force(host, 7)
    side = stopped_side(host)
    told = describe_sides(host, side, other(host, THERE, FIRST))
    assert (told["running"], told["role"], told["other_known"]) == (False, None, True)
    assert (told["grant"]["term"], told["grant"]["owner"], told["grant"]["override"]) == (
        7,
        "here",
        "Dr Weber",
    )
    volume = told["volumes"]["vda"]
    assert (volume["relation"], volume["common"]) == ("diverged", FIRST.describe())
    assert (volume["own_generations"], volume["own_blocks"]) == ([SECOND.describe()], 0)
    assert volume["last_written_s"] > 0
    alone = describe_sides(host, side, None)
    assert (alone["other_known"], alone["volumes"]["vda"]["relation"]) == (False, None)
    foreign = other(host, FIRST)
    foreign = replace(foreign, volumes=(replace(foreign.volumes[0], volume_id=b"f" * 16),))
    assert describe_sides(host, side, foreign)["volumes"]["vda"]["relation"] == "foreign"


async def test_a_host_that_runs(host: HostFile) -> None:
    config = GuestConfig(host.guest, host.pair_id, Role.STANDBY, host.volumes)
    async with open_guest(config) as guest:
        answer = await truth_handlers(guest, None)["truths"]({})
        side = side_from_answer(answer)
        assert (side.running, side.peer, side.grant) == (True, None, None)
        assert side.introduction.volumes[0].lineage == (SECOND, FIRST)
        guest.session.met = side.introduction
        answer = await truth_handlers(guest, None)["truths"]({})
        assert side_from_answer(answer).peer == side.introduction
        assert describe_sides(host, side, None)["role"] == "standby"
        with pytest.raises(BusyError):
            stopped_side(host)
    with pytest.raises(InternalError):
        side_from_answer({**answer, "introduction": b"".join(encode(Applied(0, 1))).hex()})


def test_who_gives_way_forgets_that_it_owned_anything(host: HostFile) -> None:
    force(host, 7)
    before = memory_of(host)
    theirs = other(host, THERE, FIRST)
    told = look_at_conceding(host, theirs)
    assert memory_of(host) == before
    given, term = concede_host(host, theirs)
    assert (given, term) == (told, 7)
    after = memory_of(host)
    assert after.base is None
    assert after.incarnation != before.incarnation
    assert stopped_side(host).introduction.volumes[0].lineage == (FIRST,)


def test_what_cannot_be_done_leaves_the_memory(host: HostFile) -> None:
    before = memory_of(host)
    foreign = other(host, FIRST)
    foreign = replace(foreign, volumes=(replace(foreign.volumes[0], volume_id=b"f" * 16),))
    with pytest.raises(MismatchError):
        concede_host(host, foreign)
    assert memory_of(host) == before


def test_a_lost_memory_is_made_anew(host: HostFile) -> None:
    assert host.register is not None
    host.register.memory.unlink()
    assert stopped_side(host).grant is None
    _, term = concede_host(host, other(host, THERE, FIRST))
    assert term == 1  # of its replica
    assert memory_of(host).base is None


def test_fixed_roles(host: HostFile) -> None:
    fixed = replace(host, register=None, role=Role.ACTIVE)
    theirs = other(fixed, THERE, FIRST)
    with pytest.raises(ConfigError, match='set role = "standby" first'):
        concede_host(fixed, theirs)
    given, _ = concede_host(replace(fixed, role=Role.STANDBY), theirs)
    assert given[0].common == FIRST.describe()
