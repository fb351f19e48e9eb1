"""A volume as its user sees it: every kind of request, any size, order, back-pressure, refusals."""

from __future__ import annotations

import array
import errno
import random
import resource
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import trio
from tests.guest.harness import Pair, await_event, in_time, noise

from pairsync.core.events import TroubleEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import ArbitrationError, BackendError, ClosedError, ConfigError
from pairsync.guest.config import PART_BYTES_MAX
from pairsync.guest.guest import open_guest
from pairsync.guest.volume import Volume

SIZE = 8 * MIB


def _data(offset: int, content: bytes, *, fua: bool = False) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, len(content), content, fua)


async def _submitted(volume: Volume, ops: Sequence[WriteOp]) -> None:
    """Submit one batch and wait until it has ended well."""
    ended = trio.Event()

    def done(errnos: Sequence[int] | None) -> None:
        assert errnos is None
        ended.set()

    volume.submit(ops, done)
    await ended.wait()


# -- every kind of request -----------------------------------------------------------------------------------


async def test_any_sequence_of_requests_against_plain_bytes(pair: Pair) -> None:
    """Random requests at random places, aligned or not, on both replicas as on a byte string."""
    rng = random.Random(7)
    oracle = bytearray(SIZE)
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        for number in range(200):
            offset = rng.randrange(SIZE)
            length = min(rng.choice([1, 511, 4096, 10_000, 300_000]), SIZE - offset)
            match rng.randrange(6):
                case 0 | 1:
                    content = noise(number, length)
                    await volume.write(offset, content, fua=bool(number % 2))
                    oracle[offset : offset + length] = content
                case 2:
                    await volume.zero(offset, length, allocate=bool(number % 2))
                    oracle[offset : offset + length] = bytes(length)
                case 3:
                    await volume.trim(offset, length)
                    oracle[offset : offset + length] = bytes(length)
                case 4:
                    await volume.flush()
                case _:
                    assert await volume.read(offset, length) == oracle[offset : offset + length]
    assert pair.image("a").read_bytes() == oracle
    assert pair.image("b").read_bytes() == oracle


async def test_sparse_stays_sparse_and_trim_gives_space_back(files: Pair) -> None:
    files.create(size_bytes=64 * MIB)
    async with in_time(), files.both() as (active, _):
        volume = active.volume("vda")
        await volume.write(0, noise(1, 4 * MIB))
        await volume.zero(8 * MIB, 32 * MIB)
        await volume.trim(1 * MIB, 2 * MIB)
        await volume.flush()
        for image in (files.image("a"), files.image("b")):
            assert image.stat().st_blocks * 512 <= 3 * MIB
        await volume.zero(8 * MIB, MIB, allocate=True)
        for image in (files.image("a"), files.image("b")):
            assert image.stat().st_blocks * 512 >= 3 * MIB
    assert files.same()


async def test_a_request_of_40_mib_is_cut_and_answered_once(files: Pair) -> None:
    files.create(size_bytes=64 * MIB)
    content = noise(3, 40 * MIB)
    async with in_time(), files.both() as (active, _):
        volume = active.volume("vda")
        await volume.write(5000, content)
        assert await volume.read(5000, len(content)) == content
        await volume.write(5000, content[: 20 * MIB], fua=True)
    assert files.same()
    assert files.image("b").read_bytes()[5000 : 5000 + len(content)] == content


async def test_a_batch_keeps_its_order_and_is_answered_as_a_whole(pair: Pair) -> None:
    answers: list[Sequence[int] | None] = []
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        await volume.wait_writable()
        volume.submit(
            [
                _data(0, b"a" * 8192),
                _data(4096, b"b" * 4096),
                WriteOp(OpKind.ZERO, 1000, 100),
                _data(1050, b"c" * 10, fua=True),
                WriteOp(OpKind.DATA, 77, 0, b""),
            ],
            answers.append,
        )
        await volume.flush()
        assert answers == [None]
    expected = bytearray(b"a" * 4096 + b"b" * 4096)
    expected[1000:1100] = bytes(100)
    expected[1050:1060] = b"c" * 10
    assert pair.image("b").read_bytes()[:8192] == expected
    assert pair.same()


async def test_fua_and_flush_make_durable_on_both(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, standby):
        volume = active.volume("vda")
        await volume.write(0, b"x" * BLOCK_BYTES)
        assert list(volume.dirty_runs(0, SIZE)) == [(0, BLOCK_BYTES)]
        await volume.flush()
        assert active.in_sync
        assert standby.in_sync
        assert list(volume.dirty_runs(0, SIZE)) == []


async def test_what_is_dirty_is_told_in_bytes_within_the_range(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        volume = alone.volume("vda")
        await volume.write(2 * BLOCK_BYTES + 5, b"x" * BLOCK_BYTES)  # touches blocks 2 and 3
        await volume.write(9 * BLOCK_BYTES, b"x")
        assert list(volume.dirty_runs(0, SIZE)) == [
            (2 * BLOCK_BYTES, 2 * BLOCK_BYTES),
            (9 * BLOCK_BYTES, BLOCK_BYTES),
        ]
        assert list(volume.dirty_runs(3 * BLOCK_BYTES + 10, 20)) == [(3 * BLOCK_BYTES + 10, 20)]
        assert list(volume.dirty_runs(4 * BLOCK_BYTES, BLOCK_BYTES)) == []


async def test_allocation_and_read_ahead(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        volume = alone.volume("vda")
        await volume.write(1 * MIB, b"x" * MIB)
        runs = await volume.allocation(0, SIZE)
        assert sum(length for length, hole in runs if not hole) >= MIB
        assert runs[0][1], "the beginning is a hole"
        await volume.cache(0, SIZE)
        into = bytearray(10)
        assert volume.read_nowait(1 * MIB, memoryview(into))
        assert into == b"x" * 10


async def test_buffers_of_any_kind(pair: Pair) -> None:
    numbers = array.array("I", range(1024))
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        await volume.write(0, bytearray(b"bytearray"))
        await volume.write(100, memoryview(b"...view...")[3:7])
        await volume.write(4096, memoryview(numbers))  # 4 bytes an item
        await volume.write(16384, cast("Any", numbers))
        assert await volume.read(0, 9) == b"bytearray"
        assert await volume.read(100, 4) == b"view"
        assert await volume.read(4096, 4096) == numbers.tobytes()
        assert await volume.read(16384, 4096) == numbers.tobytes()
        into = bytearray(4)
        await volume.read_into(100, memoryview(into))
        assert into == b"view"
        items = array.array("I", [0])
        await volume.read_into(100, memoryview(items))
        assert items.tobytes() == b"view"


async def test_odd_sizes(files: Pair) -> None:
    files.create("one", 1)
    files.create("odd", 1_000_003)
    names = ("one", "odd")
    async with (
        in_time(),
        open_guest(files.config("b", names=names)),
        open_guest(files.config("a", names=names)) as active,
    ):
        await active.wait_in_sync()
        await active.volume("one").write(0, b"!")
        await active.volume("odd").write(1_000_000, b"end")
        await active.volume("odd").trim(999_000, 500)
        assert await active.volume("odd").read(999_999, 4) == b"\0end"
    assert files.image("b", "one").read_bytes() == b"!"
    assert files.same("odd")


# -- what cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (-1, 1), (1 << 70, 1), (0, -1)]
)
async def test_requests_beyond_the_end_are_refused(pair: Pair, offset: int, length: int) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        volume = alone.volume("vda")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: volume.read(offset, length),
            lambda: volume.zero(offset, length),
            lambda: volume.trim(offset, length),
            lambda: volume.cache(offset, length),
            lambda: volume.allocation(offset, length),
        ]
        if length >= 0:
            calls.append(lambda: volume.write(offset, bytes(length)))
            calls.append(lambda: volume.read_into(offset, memoryview(bytearray(length))))
        for call in calls:
            with pytest.raises(ConfigError, match=f"volume vda has {SIZE} bytes"):
                await call()
        with pytest.raises(ConfigError):
            list(volume.dirty_runs(offset, length))
    assert pair.image("a").read_bytes() == bytes(SIZE)


async def test_what_is_no_buffer_or_no_number_is_refused_and_harms_nobody(pair: Pair) -> None:
    """A ``str`` used to get as far as the disk's thread, and ended the guest for everybody."""
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        volume = alone.volume("vda")
        junk: list[Any] = ["text", None, 5, [1, 2], memoryview(b"abcdef")[::2]]
        for data in junk:
            with pytest.raises(ConfigError, match="volume vda: what is to be written: must be a buffer"):
                await volume.write(0, data)
        for into in [*junk, memoryview(b"read only")]:
            with pytest.raises(ConfigError, match="volume vda: where to read to: "):
                await volume.read_into(0, into)
        numbers: list[Any] = [1.0, "1", None]
        for number in numbers:
            with pytest.raises(ConfigError, match=r"volume vda: .*must be whole numbers of bytes"):
                await volume.write(number, b"data")
            with pytest.raises(ConfigError, match=r"volume vda: .*must be whole numbers of bytes"):
                await volume.read(0, number)
            with pytest.raises(ConfigError, match=r"volume vda: .*must be whole numbers of bytes"):
                await volume.zero(0, number)
            with pytest.raises(ConfigError, match=r"volume vda: .*must be whole numbers of bytes"):
                await volume.grow(number)
        await volume.write(0, b"goes on", fua=True)
        assert await volume.read(0, 7) == b"goes on"


async def test_requests_of_no_bytes_do_nothing(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        volume = alone.volume("vda")
        for offset in (0, SIZE):
            await volume.write(offset, b"")
            await volume.zero(offset, 0)
            await volume.trim(offset, 0)
            assert await volume.read(offset, 0) == b""
        assert list(volume.dirty_runs(0, SIZE)) == []


async def test_the_standby_reads_and_refuses_to_write(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, standby):
        await active.volume("vda").write(0, b"from the active host")
        volume = standby.volume("vda")
        assert await volume.read(9, 6) == b"active"
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: volume.write(0, b"x"),
            lambda: volume.write(0, b""),
            lambda: volume.zero(0, 1),
            lambda: volume.trim(0, 1),
            volume.flush,
            volume.wait_writable,
        ]
        for call in calls:
            with pytest.raises(ArbitrationError, match="this host is its standby"):
                await call()
        with pytest.raises(ArbitrationError):
            volume.submit([_data(0, b"x")], print)
    assert pair.same()


# -- order, back-pressure, cancellation ----------------------------------------------------------------------


async def test_many_writers_at_once(disk_pair: Pair) -> None:
    async def write(volume: Volume, number: int) -> None:
        for turn in range(5):
            await volume.write(number * BLOCK_BYTES, noise(number * 10 + turn, BLOCK_BYTES))

    async with in_time(), disk_pair.both() as (active, _):
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(write, active.volume("vda"), number)
        for number in range(64):
            found = await active.volume("vda").read(number * BLOCK_BYTES, BLOCK_BYTES)
            assert found == noise(number * 10 + 4, BLOCK_BYTES)
    assert disk_pair.same()


async def test_data_in_flight_is_bounded(files: Pair) -> None:
    files.create(size_bytes=64 * MIB)
    options = VolumeOptions(inflight_bytes=2 * MIB)
    highest = 0

    async def write(volume: Volume, at: int) -> None:
        nonlocal highest
        await volume.write(at, noise(at, MIB))
        highest = max(highest, active.statistics().volumes[0].inflight_bytes)

    async with in_time(), files.both(options=options) as (active, _), trio.open_nursery() as nursery:
        for at in range(0, 64 * MIB, MIB):
            nursery.start_soon(write, active.volume("vda"), at)
    assert 0 < highest <= 3 * MIB  # the bound and one message, which is let in before it is known
    assert files.same()


async def test_a_large_batch_goes_on_in_parts(files: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be in flight is exceeded by one part at most, so no part may be larger than that."""
    files.create(size_bytes=64 * MIB)
    parts: list[int] = []
    async with in_time(), files.both() as (active, _):
        volume = active.volume("vda")
        source = active.session.sources[0]
        take = source.write

        def write(owner: object, ops: Sequence[WriteOp], now_ns: int) -> None:
            parts.append(sum(op.length for op in ops))
            take(owner, ops, now_ns)

        monkeypatch.setattr(source, "write", write)
        for count in (4, 5, 17):
            await _submitted(volume, [_data(at * MIB, noise(at, MIB)) for at in range(count)])
    assert parts == [4 * MIB, 4 * MIB, 1 * MIB, 4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB, 1 * MIB]
    assert max(parts) == PART_BYTES_MAX
    assert files.same()


async def test_writers_that_wait_for_room_are_told_of_the_end(pair: Pair) -> None:
    ended: list[str] = []

    async def wait(volume: Volume) -> None:
        try:
            while True:
                await volume.wait_writable()
                volume.submit([_data(0, b"x" * MIB)], lambda _: None)
                await trio.lowlevel.checkpoint()
        except ClosedError:
            ended.append("closed")

    config = pair.config("a", link=False, options=VolumeOptions(tickets_max=1))
    async with in_time(), trio.open_nursery() as nursery, open_guest(config) as alone:
        for _ in range(3):
            nursery.start_soon(wait, alone.volume("vda"))
        for _ in range(20):
            await trio.lowlevel.checkpoint()
    assert ended == ["closed"] * 3


async def test_a_cancelled_write_harms_nobody(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        for number in range(50):
            with trio.move_on_after(0):
                await volume.write(number * BLOCK_BYTES, noise(number, BLOCK_BYTES))
        with trio.move_on_after(0):
            await volume.flush()
        await volume.write(7, b"after")
        await volume.flush()
        assert await volume.read(7, 5) == b"after"
    assert pair.same()


async def test_a_write_that_was_begun_happens_though_it_is_cancelled(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        with trio.move_on_after(0) as scope:
            await volume.write(0, noise(1, MIB))
        assert scope.cancelled_caught
        await volume.flush()
        assert await volume.read(0, MIB) == noise(1, MIB)
    assert pair.same()


# -- disks that fail -----------------------------------------------------------------------------------------


@contextmanager
def _file_size_limit(size_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow beyond: as if the disk were full there (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_without_room_the_writer_is_told_and_nothing_is_lost(files: Pair) -> None:
    files.create(size_bytes=128 * MIB)
    async with in_time(), open_guest(files.config("a")) as active:
        volume = active.volume("vda")
        await volume.write(0, b"kept")
        with _file_size_limit(64 * MIB):
            with pytest.raises(BackendError, match="volume vda: write of 4096 bytes at 104857600") as failure:
                await volume.write(100 * MIB, noise(1, BLOCK_BYTES))
            assert failure.value.errno in {errno.EFBIG, errno.ENOSPC}
            await volume.write(4096, b"there is room here")
            await volume.flush()
        await volume.write(100 * MIB, b"room again")
        assert await volume.read(0, 4) == b"kept"
        async with open_guest(files.config("b")):
            await active.wait_in_sync()
            await volume.flush()
            assert files.image("b").read_bytes()[:4] == b"kept"
    # what the failed write left behind is the same on both
    with open(files.image("a"), "rb") as left, open(files.image("b"), "rb") as right:
        for _ in range(128):
            assert left.read(MIB) == right.read(MIB)


@pytest.mark.parametrize("kind", ["read", "flush"])
async def test_a_disk_that_fails_says_so(pair: Pair, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        volume = alone.volume("vda")
        await volume.write(0, b"x" * BLOCK_BYTES)
        device = volume._replica.device

        def fail(*_: object) -> bool:
            raise BackendError("the disk is gone", errno.EIO)

        monkeypatch.setattr(device, "read_nowait", fail)
        monkeypatch.setattr(device, "flush", fail)
        if kind == "read":
            with pytest.raises(BackendError, match="the disk is gone"):
                await volume.read(0, 10)
            monkeypatch.undo()
            assert await volume.read(0, 1) == b"x"
        else:
            with alone.subscribe() as events:
                with pytest.raises(BackendError, match="volume vda: flush: EIO"):
                    await volume.flush()
                assert (await await_event(events, TroubleEvent)).volume == "vda"
            monkeypatch.undo()
