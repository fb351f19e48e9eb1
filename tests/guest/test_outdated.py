"""An owner whose disk was put back, labels and all, over real files: what it is told, its next life knows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from tests.guest.halves import FORK, TIMING, Both, Half, agreed, until
from tests.guest.harness import Host, Pair, in_time, noise

from pairsync.core.acceptor import AcceptorState, HostMemory
from pairsync.core.units import NS_PER_S
from pairsync.errors import ArbitrationError
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.wire.arbitration import encode_host_memory

LONG_S = 1.5 * TIMING.failover_ns / NS_PER_S


@pytest.fixture
def both(pair: Pair) -> Both:
    return Both(pair)


def replica(both: Both, host: Host) -> list[Path]:
    """A replica and what lies beside it, but not the host's memory as a voter."""
    return list((both.pair.base / host).glob("vda*"))


def put_back(both: Both, backup: Path) -> None:
    for file in replica(both, "a"):
        file.unlink()
    for file in backup.iterdir():
        shutil.copy2(file, both.pair.base / "a")


async def write_twice(both: Both, backup: Path) -> None:
    """The first is in the backup of a's disk, and b is given a milestone after the second."""
    async with both.whole() as (first, second):
        await first.write(3)
        await first.guest.volume("vda").flush()
    backup.mkdir()
    for file in replica(both, "a"):
        shutil.copy2(file, backup)
    async with both.whole() as (first, second):
        await until(lambda: first.serves and first.guest.in_sync)
        given = given_to(second)
        await first.write(4)
        await first.guest.volume("vda").flush()
        await until(lambda: given_to(second) > given)
    put_back(both, backup)


def given_to(half: Half) -> int:
    (target,) = half.guest.session.targets
    return target.given


def goes_alone(both: Both) -> None:
    """As if a had put b out just before it died."""
    for host in ("a", "b"):
        state = both.remembers(host)
        base = state.base
        assert base is not None
        alone = frozenset({both.fingerprints["a"]})
        owner = frozenset({base.owner_id})
        grant = base._replace(epoch=base.epoch + 1, in_sync=alone, voters=owner)
        both.memory(host).unlink()
        memory = HostMemory(AcceptorState(state.incarnation, grant), promise_ns=0)
        AcceptorFile.create(both.memory(host), encode_host_memory(memory))


async def stays_down(half: Half, why: Callable[[], str]) -> None:
    with trio.move_on_after(LONG_S):
        await until(lambda: half.serves)
    assert not half.serves
    assert "older" in why()


async def test_an_owner_with_old_data_leaves_the_guest_to_its_standby(both: Both, tmp_path: Path) -> None:
    async with in_time():
        await write_twice(both, tmp_path / "backup")
        async with both.host("b") as second, both.host("a") as first:
            await until(lambda: second.serves)
            assert await second.read(4) == noise(4)
            await until(lambda: agreed(first) and agreed(second))
            assert first.guest.session.outdated == ""


async def test_what_an_owner_was_told_outlives_it_and_the_grant(both: Both, tmp_path: Path) -> None:
    async with in_time():
        await write_twice(both, tmp_path / "backup")
        async with both.host("b") as second:
            second.cable.cut = True
            assert second.guest.link is not None
            second.guest.link.set_vote_handler(lambda _: None)  # so that it does not take over
            async with both.host("a") as first:
                await until(lambda: first.guest.session.outdated != "")
                assert not first.serves
        goes_alone(both)
        async with both.host("a") as first:
            arbitration = first.arbitration

            def waits() -> str:
                standing = arbitration.standing()
                return "" if standing is None else standing.waits

            await stays_down(first, waits)
            before = arbitration.standing()
            with pytest.raises(ArbitrationError, match=r"lack here .* vda was found to be older .*--insist"):
                arbitration.override("Dr Weber", FORK)
            assert arbitration.standing() == before
            arbitration.override("Dr Weber", FORK, insist=True)  # a person insists on what is there
            await until(lambda: first.serves)
            assert await first.read(3) == noise(3)
            assert await first.read(4) != noise(4)
        async with both.host("a") as first:  # and is still heard
            await until(lambda: first.serves)


async def test_an_owner_alone_stays_down_if_a_standby_that_is_out_has_what_is_newer(
    both: Both, tmp_path: Path
) -> None:
    """Its disk was put back to before the standby was out: of all that is left, that has the most."""
    async with in_time():
        await write_twice(both, tmp_path / "backup")
        goes_alone(both)
        async with both.host("b") as second, both.host("a") as first:
            await stays_down(first, lambda: first.guest.session.outdated)
            second.arbitration.override("Dr Weber", FORK)
            await until(lambda: agreed(first) and agreed(second))
            assert second.serves
            assert await second.read(4) == noise(4)
