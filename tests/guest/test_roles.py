"""A guest changes its role while its host, its link and its volumes stay."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from tests.guest.harness import Pair, in_time, move, noise

from pairsync.core.messages import Role
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import ArbitrationError, BackendError, ClosedError
from pairsync.guest import roles
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.seam import Arbiter


class Asked:
    """A grant register that says nothing by itself."""

    def __init__(self, guest: Guest) -> None:
        self.asked = trio.Event()
        arbiter: Arbiter = self
        guest.arbiter = arbiter

    def ask_alone(self) -> None:
        self.asked.set()

    def link_up(self) -> None:
        pass

    patience_ns = 0
    alone = overtaken = False

    def disk_failed(self) -> str:
        return "nobody is asked"


async def test_a_guest_moves_to_the_other_host_and_back(pair: Pair) -> None:
    async with in_time(), pair.both() as (first, second):
        for term, (source, target) in enumerate(((first, second), (second, first), (first, second)), 2):
            await source.volume("vda").write(term * BLOCK_BYTES, noise(term))
            await move(source, target, term)
            assert await target.volume("vda").read(term * BLOCK_BYTES, BLOCK_BYTES) == noise(term)
            with pytest.raises(ArbitrationError, match="its standby"):
                await source.volume("vda").write(0, noise(0))
            await target.volume("vda").write(0, noise(100 + term))
            await target.wait_in_sync()
            assert (source.role, target.role) == (Role.STANDBY, Role.ACTIVE)
            assert source.session.term == target.session.term == term
        await second.volume("vda").flush()
    assert pair.same()


async def test_a_scrub_that_a_change_of_roles_ends_tells_that_from_a_broken_disk(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, _):
        assert active.link is not None
        active.link.cut()  # it waits for the peer
        told: list[str] = []

        async def scrub() -> None:
            with pytest.raises(ClosedError) as error:
                await active.volume("vda").scrub()
            told.append(str(error.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert told == []
            roles.halt_now(active, "a test")
        assert told == ["guest guest is changing its role"]


async def test_a_switch_over_of_an_idle_pair_copies_nothing(pair: Pair) -> None:
    async with in_time(), pair.both() as (first, second):
        await first.volume("vda").write(0, noise(1))
        with second.subscribe() as events:
            await move(first, second, 2)
            await second.wait_in_sync()
            modes = []
            try:
                while True:
                    modes.append(getattr(events.receive_nowait(), "mode", None))
            except trio.WouldBlock:
                pass
        assert "full" not in modes
        assert "incremental" not in modes


async def test_the_new_owner_waits_for_its_permit_and_the_old_one_brings_what_it_had_written(
    pair: Pair,
) -> None:
    async with in_time(), open_guest(pair.config("b")) as standby:
        async with open_guest(pair.config("a")) as active:
            await active.wait_in_sync()
            await active.volume("vda").write(0, noise(1))
        asked = Asked(standby)
        await standby.become(Role.ACTIVE, 2, in_order=True)
        volume = standby.volume("vda")
        assert await volume.read(0, BLOCK_BYTES) == noise(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.write, BLOCK_BYTES, noise(2))
            await asked.asked.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(nursery.child_tasks) == 1  # not acknowledged
            standby.permitted(alone=True)
        async with open_guest(pair.config("a", role=Role.STANDBY)) as returned:
            await standby.wait_in_sync()
            await standby.volume("vda").flush()
            assert returned.in_sync
    assert pair.same()


async def test_an_owner_that_lost_its_grant_ends_every_request_and_is_a_standby(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, standby):
        volume = active.volume("vda")
        assert active.link is not None
        active.link.cut()
        asked = Asked(active)
        active.session.permitted(active.now_ns(), alone=False)
        answers: list[object] = []

        async def write() -> None:
            try:
                await volume.write(0, noise(1))
            except (BackendError, ClosedError) as error:
                answers.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await asked.asked.wait()
            await active.become(Role.STANDBY, 1, in_order=False)
        assert len(answers) == 1
        await standby.become(Role.ACTIVE, 2, in_order=False)
        active.link.heal()
        await standby.wait_in_sync()


async def test_a_disk_that_does_not_let_go_keeps_nobody_from_becoming_a_standby(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "SETTLE_S", 0.1)
    async with in_time(), pair.both() as (active, standby):
        held = trio.Event()
        with monkeypatch.context() as patch:
            patch.setattr(type(active._disks), "idle", property(lambda _: held.is_set()))
            with pytest.raises(BackendError, match="does not end"):
                await standby.become(Role.ACTIVE, 2, in_order=True)
            await active.become(Role.STANDBY, 2, in_order=True)
            (volume,) = active.statistics().volumes
            assert (volume.state, volume.size_bytes) == ("failed", active.volume("vda").size_bytes)
            assert volume.failed == "the disk does not end what it was asked before"
            held.set()
            await standby.become(Role.ACTIVE, 2, in_order=True)
        await standby.wait_in_sync()
        (volume,) = active.statistics().volumes
        assert volume.state == "consistent"
