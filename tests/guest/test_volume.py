"""Requests of every size, in one go, while the peer is there: none is too large, none hangs."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import trio
from tests.guest.harness import Pair, in_time

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Persist, SavePages
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Condition, OpKind, Role, WriteOp
from pairsync.core.session import Session, VolumeSetup
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, GIB, MIB
from pairsync.core.window import FRAME_OPS_MAX
from pairsync.guest.guest import Guest


async def _submit(guest: Guest, ops: Sequence[WriteOp]) -> Sequence[int] | None:
    """What a batch ends with."""
    ended = trio.Event()
    results: list[Sequence[int] | None] = []

    def done(errnos: Sequence[int] | None) -> None:
        results.append(errnos)
        ended.set()

    guest.volume("vda").submit(ops, done)
    await ended.wait()
    (result,) = results
    return result


async def test_a_discard_that_no_message_can_name_is_cut(files: Pair) -> None:
    files.create(size_bytes=5 * GIB)
    async with in_time(), files.both() as (active, standby):
        volume = active.volume("vda")
        await volume.write(4 * GIB, b"x" * BLOCK_BYTES)
        await volume.trim(0, 4 * GIB + 1)  # NBD asks for 4 GiB less one at most
        await volume.zero(BLOCK_BYTES, 4 * GIB)
        assert await volume.read(4 * GIB, BLOCK_BYTES) == bytes(BLOCK_BYTES)
        assert active.in_sync
        assert standby.in_sync


async def test_a_write_larger_than_every_window_waits_for_its_room(files: Pair) -> None:
    files.create(size_bytes=160 * MIB)
    data = b"".join(number.to_bytes(4, "big") * (MIB // 4) for number in range(150))
    async with in_time(), files.both() as (active, _):
        await active.volume("vda").write(MIB, data)
        assert await active.volume("vda").read(80 * MIB, 4) == (79).to_bytes(4, "big")
        assert active.in_sync
    assert files.same()


async def test_more_ops_than_one_message_takes_end_together(pair: Pair) -> None:
    block = b"y" * 512
    ops = [WriteOp(OpKind.DATA, number * 1024, 512, block) for number in range(3 * FRAME_OPS_MAX + 1)]
    async with in_time(), pair.both() as (active, _):
        assert await _submit(active, ops) is None
    assert pair.same()


async def test_ops_of_no_bytes_change_nothing(pair: Pair) -> None:
    nothing = WriteOp(OpKind.DATA, 0, 0, b"")
    async with in_time(), pair.both() as (active, _):
        assert await _submit(active, [nothing]) is None
        assert await _submit(active, [nothing, WriteOp(OpKind.DATA, 0, 1, b"z"), nothing]) is None
        assert await active.volume("vda").read(0, 2) == b"z\0"


def test_nobody_waits_for_room_in_a_volume_that_has_failed() -> None:
    block = Superblock(
        pair_id=bytes(16),
        volume_id=bytes(16),
        name="vda",
        size_bytes=MIB,
        term=0,
        condition=Condition.BLANK,
        lineage=(),
        sync_target=None,
        peer_in_sync=False,
        map_base=None,
        clean=True,
        boot_id="",
    )
    session = Session(
        guest="guest",
        pair_id=bytes(16),
        role=Role.ACTIVE,
        term=1,
        boot_id="",
        volumes=[VolumeSetup(block, DirtyMap(MIB // BLOCK_BYTES), VolumeOptions())],
        draw_tag=lambda: 1,
    )
    (source,) = session.sources
    assert not source.accepting  # nothing is durable yet
    for effect in session.take():
        if isinstance(effect, Persist):
            session.persisted(0, effect.token, 0, 0)
        elif isinstance(effect, SavePages):
            session.saved(0, effect.token, errno.EIO, 0)
    assert source.failed is not None
    assert source.accepting
