"""The transmission phase against a real server: every command, every limit, every way to end."""

from __future__ import annotations

import errno
import gc
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from pairsync.core.messages import WriteOp
from pairsync.core.units import KIB, MIB
from pairsync.errors import ClosedError, PeerLost
from pairsync.nbd import NbdLimits
from pairsync.nbd import constants as c
from pairsync.nbd.budget import Budget
from pairsync.nbd.connection import Connection
from pairsync.nbd.export import STALE_S, Done, HungUp
from pairsync.nbd.negotiation import Chosen
from pairsync.nbd.replies import DIRECT_READ_BYTES_MAX, SCRATCH_BYTES, SHARED_READ_BYTES_MAX
from pairsync.nbd.traffic import Traffic
from pairsync.nbd.transport import SocketTransport, StreamTransport
from pairsync.testing.nbd_client import NbdClient, NbdReply, NbdReplyError
from pairsync.testing.nbd_memory import CONTEXT_DIRTY, MemoryExport
from pairsync.testing.nbd_service import NbdService, serving_nbd

BOTH = (c.CONTEXT_ALLOCATION, CONTEXT_DIRTY)
READ_SIZES = [
    1,
    4096,
    SHARED_READ_BYTES_MAX,
    SHARED_READ_BYTES_MAX + 1,
    DIRECT_READ_BYTES_MAX,
    DIRECT_READ_BYTES_MAX + 1,
    3 * MIB + 5,
]
DEADLINE_S = 20.0
PATTERN = bytes(range(256)) * 16  # 4 KiB


async def _error_of(client: NbdClient, kind: int, offset: int, length: int, flags: int = 0) -> int:
    payload = bytes(length) if kind == c.CMD_WRITE else b""
    reply = await client.command(kind, offset, length, flags=flags, payload=payload)
    assert not reply.data
    return reply.error


async def _until(condition: Callable[[], bool]) -> None:
    """What the server does in its own tasks once the client has seen the last byte."""
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.lowlevel.checkpoint()


async def _until_gone(service: NbdService) -> None:
    await _until(lambda: not service.server.statistics().connections)


async def _until_nothing_in_flight(service: NbdService) -> None:
    await _until(lambda: not service.server.statistics().bytes_in_flight)


@pytest.mark.parametrize("structured", [True, False])
async def test_every_command(disk: MemoryExport, tmp_path: Path, structured: bool) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client(structured=structured)
        assert client.size_bytes == disk.size_bytes
        assert bool(client.flags & c.FLAG_SEND_DF) == structured
        await client.write(4096, PATTERN)
        assert disk.peek(4096, 4096) == PATTERN
        assert await client.read(4000, 4300) == bytes(96) + PATTERN + bytes(108)
        await client.write(1, b"x", flags=c.CMD_FLAG_FUA)
        assert disk.flushed == disk.writes_done == 2
        await client.zero(4096, 100)
        assert await client.read(4096, 4096) == bytes(100) + PATTERN[100:]
        await client.trim(4096, 4096, flags=c.CMD_FLAG_FUA)
        assert await client.read(4096, 4096) == bytes(4096)
        await client.write(0, b"y")
        assert disk.flushed == disk.writes_done - 1
        await client.flush()
        assert disk.flushed == disk.writes_done
        assert await _error_of(client, c.CMD_CACHE, 0, MIB) == 0
        assert disk.cached == [(0, MIB)]
        assert await client.disconnect() == b""


@pytest.mark.parametrize("structured", [True, False])
async def test_errors_leave_the_connection_usable(
    disk: MemoryExport, tmp_path: Path, structured: bool
) -> None:
    end = disk.size_bytes
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client(structured=structured)
        assert await _error_of(client, c.CMD_READ, end, 1) == c.EINVAL
        assert await _error_of(client, c.CMD_WRITE, end - 1, 2) == c.ENOSPC
        assert await _error_of(client, c.CMD_WRITE_ZEROES, end - 1, 2) == c.ENOSPC
        assert await _error_of(client, c.CMD_TRIM, end - 1, 2) == c.EINVAL
        assert await _error_of(client, c.CMD_BLOCK_STATUS, 0, 1) == c.EINVAL
        assert await _error_of(client, 77, 0, 1) == c.EINVAL
        too_big = c.EOVERFLOW if structured else c.EINVAL
        assert await _error_of(client, c.CMD_READ, 0, c.PAYLOAD_BYTES_MAX + 1) == (
            c.EINVAL if end < c.PAYLOAD_BYTES_MAX else too_big
        )
        assert await client.read(0, 16) == bytes(16)
        assert service.server.statistics().errors == 7


async def test_a_large_disk_says_overflow_for_a_large_read(tmp_path: Path) -> None:
    with MemoryExportOf(64 * MIB) as export:
        async with serving_nbd(tmp_path, [export]) as service:
            client = await service.client()
            assert await _error_of(client, c.CMD_READ, 0, c.PAYLOAD_BYTES_MAX + 1) == c.EOVERFLOW
            assert len(await client.read(0, c.PAYLOAD_BYTES_MAX)) == c.PAYLOAD_BYTES_MAX


class MemoryExportOf:
    """A disk of another size for one test."""

    def __init__(self, size_bytes: int, *, read_only: bool = False, fast_zero: bool = True) -> None:
        self.export = MemoryExport("vda", size_bytes, read_only=read_only, fast_zero=fast_zero)

    def __enter__(self) -> MemoryExport:
        return self.export

    def __exit__(self, *_: object) -> None:
        self.export.close()


async def test_read_only(tmp_path: Path) -> None:
    with MemoryExportOf(MIB, read_only=True) as export:
        async with serving_nbd(tmp_path, [export]) as service:
            client = await service.client()
            for kind in (c.CMD_WRITE, c.CMD_WRITE_ZEROES, c.CMD_TRIM):
                assert await _error_of(client, kind, 0, 512) == c.EPERM
            await client.flush()
            assert export.writes_done == 0


@pytest.mark.parametrize(("fast_zero", "error"), [(True, 0), (False, c.ENOTSUP)])
async def test_fast_zero(tmp_path: Path, fast_zero: bool, error: int) -> None:
    with MemoryExportOf(MIB, fast_zero=fast_zero) as export:
        async with serving_nbd(tmp_path, [export]) as service:
            client = await service.client()
            export.poke(0, PATTERN)
            assert client.flags & c.FLAG_SEND_FAST_ZERO
            assert await _error_of(client, c.CMD_WRITE_ZEROES, 0, 4096, c.CMD_FLAG_FAST_ZERO) == error
            assert export.peek(0, 4096) == (PATTERN if error else bytes(4096))
            await client.zero(0, 4096)
            assert export.peek(0, 4096) == bytes(4096)


async def test_block_status(disk: MemoryExport, tmp_path: Path) -> None:
    hole = c.STATE_HOLE | c.STATE_ZERO
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client(contexts=BOTH)
        await client.write(64 * KIB, PATTERN)
        await client.zero(128 * KIB, 4096, flags=c.CMD_FLAG_NO_HOLE)
        disk.clean()
        await client.trim(64 * KIB, 4096)
        await client.write(0, PATTERN)
        status = await client.block_status(0, 256 * KIB)
        assert status[c.CONTEXT_ALLOCATION] == [
            (4096, 0),
            (124 * KIB, hole),
            (4096, 0),
            (124 * KIB, hole),
        ]
        assert status[CONTEXT_DIRTY] == [(4096, 1), (60 * KIB, 0), (4096, 1), (188 * KIB, 0)]
        one = await client.block_status(2048, 8192, flags=c.CMD_FLAG_REQ_ONE)
        assert one == {c.CONTEXT_ALLOCATION: [(2048, 0)], CONTEXT_DIRTY: [(2048, 1)]}
        unaligned = await client.block_status(disk.size_bytes - 1, 1)
        assert unaligned[c.CONTEXT_ALLOCATION] == [(1, hole)]


async def test_block_status_is_bounded(disk: MemoryExport, tmp_path: Path) -> None:
    for offset in range(0, disk.size_bytes, 8192):
        disk.poke(offset, b"x")
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(extents_max=10)) as service:
        client = await service.client(contexts=BOTH)
        status = await client.block_status(0, disk.size_bytes)
        assert [len(extents) for extents in status.values()] == [5, 5], "both contexts share the bound"


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("length", READ_SIZES)
async def test_reads_of_every_size(
    disk: MemoryExport, tmp_path: Path, structured: bool, cold: bool, length: int
) -> None:
    content = bytes(range(251)) * (disk.size_bytes // 251 + 1)
    disk.poke(0, content[: disk.size_bytes])
    disk.cold = cold
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client(structured=structured)
        assert await client.read(3, length) == content[3 : 3 + length]
        assert await client.read(disk.size_bytes - length, length) == disk.peek(-length, length) or (
            disk.peek(disk.size_bytes - length, length)
        )


async def test_many_reads_at_once_come_back_each_once(disk: MemoryExport, tmp_path: Path) -> None:
    """More than the scratch buffer holds, small and large, cached and not."""
    blocks = disk.size_bytes // 4096
    for block in range(blocks):
        disk.poke(block * 4096, block.to_bytes(4, "big"))
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        lengths = [4096, 16384, 4096, 200_000, 512, 65536, DIRECT_READ_BYTES_MAX + 1]
        starts = range(0, blocks - 300, 29)
        reads = [(start * 4096, lengths[number % len(lengths)]) for number, start in enumerate(starts)]
        assert sum(length for _, length in reads) > 40 * SCRATCH_BYTES
        batch = b"".join(
            NbdClient.request_bytes(c.CMD_READ, offset, length, cookie=number)
            for number, (offset, length) in enumerate(reads)
        )
        disk.cold = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, batch)
            seen = set()
            for _ in reads:
                reply = await client.reply()
                offset, length = reads[reply.cookie]
                assert reply.data == disk.peek(offset, length)
                seen.add(reply.cookie)
        assert len(seen) == len(reads)
        await _until_nothing_in_flight(service)


async def test_large_writes_span_receives(disk: MemoryExport, tmp_path: Path) -> None:
    data = bytes(range(251)) * 21_000
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        await client.write(17, data[: 5 * MIB])
        assert disk.peek(17, 5 * MIB) == data[: 5 * MIB]
        assert (disk.peek(16, 1), disk.peek(17 + 5 * MIB, 1)) == (b"\0", b"\0")


async def test_large_writes_that_are_here_go_on_together(
    disk: MemoryExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as fit the bound of a batch, and in their order."""
    batches: list[list[int]] = []
    submit = disk.submit

    def note(ops: list[WriteOp], done: Done, _: HungUp) -> None:
        batches.append([op.offset for op in ops])
        submit(ops, done)

    monkeypatch.setattr(disk, "submit", note)
    size, count = 64 * KIB, 40
    everything = bytearray()
    for number in range(count):
        payload = bytes([number]) * size
        everything += NbdClient.request_bytes(
            c.CMD_WRITE, number * size, size, cookie=number, payload=payload
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    limits = NbdLimits(batch_bytes_max=4 * size)
    budget = Budget(limits.total_bytes_in_flight_max, limits.total_bytes_hard_max)
    chosen = Chosen(disk, structured=True, contexts=(), early=b"")
    connection = Connection(
        SocketTransport(ours),
        chosen,
        limits=limits,
        budget=budget,
        traffic=Traffic(),
        scratch=memoryview(bytearray(SCRATCH_BYTES)),
    )

    async def send() -> None:
        await trio.SocketStream(trio.socket.from_stdlib_socket(theirs)).send_all(everything)
        await _until(lambda: sum(map(len, batches)) == count)
        theirs.shutdown(socket.SHUT_WR)

    with trio.fail_after(DEADLINE_S), ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await connection.run()
    assert [offset for batch in batches for offset in batch] == [number * size for number in range(count)]
    assert max(map(len, batches)) in (3, 4), "a socket holds 200 KiB, a batch four of these"
    assert all(disk.peek(number * size, size) == bytes([number]) * size for number in range(count))


async def test_payload_stays_as_it_was(
    disk: MemoryExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `submit` is given is kept for resends: nothing that comes later may change it."""
    kept: list[tuple[WriteOp, bytes]] = []
    submit = disk.submit

    def keep(ops: list[WriteOp], done: Done, _: HungUp) -> None:
        kept.extend((op, bytes(op.data or b"")) for op in ops)
        submit(ops, done)

    monkeypatch.setattr(disk, "submit", keep)
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        for number in range(50):
            size = (512, 4096, 300_000)[number % 3]
            await client.write(number * 4096, bytes([number]) * size)
            await client.read(0, 4096)
        assert len(kept) == 50
        assert all(bytes(op.data or b"") == data for op, data in kept)


# -- errors of the export ------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("cold", [False, True])
async def test_export_fails(disk: MemoryExport, tmp_path: Path, structured: bool, cold: bool) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client(structured=structured)
        disk.cold, disk.read_error = cold, errno.EREMOTEIO
        disk.write_error, disk.flush_error = errno.EDQUOT, errno.EIO
        for length in (4096, SHARED_READ_BYTES_MAX + 1, DIRECT_READ_BYTES_MAX + 1):
            assert await _error_of(client, c.CMD_READ, 0, length) == c.EIO
        assert await _error_of(client, c.CMD_WRITE, 0, 4096) == c.ENOSPC
        assert await _error_of(client, c.CMD_TRIM, 0, 4096) == c.ENOSPC
        assert await _error_of(client, c.CMD_FLUSH, 0, 0) == c.EIO
        assert await _error_of(client, c.CMD_CACHE, 0, 1) == c.EIO
        disk.read_error = disk.write_error = disk.flush_error = 0
        await client.write(0, PATTERN)
        assert await client.read(0, 4096) == PATTERN


async def test_one_of_a_batch_fails(
    disk: MemoryExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def fail_the_second(ops: list[WriteOp], done: Done, _: HungUp) -> None:
        batches.append(len(ops))
        done([0 if number != 1 else errno.ENOSPC for number in range(len(ops))])

    monkeypatch.setattr(disk, "submit", fail_the_second)
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        three = [
            NbdClient.request_bytes(c.CMD_WRITE, 0, 4, cookie=number, payload=b"abcd") for number in (1, 2, 3)
        ]
        await client.send(b"".join(three))
        replies = [await client.reply() for _ in three]
        assert batches == [3]
        assert {reply.cookie: reply.error for reply in replies} == {1: 0, 2: c.ENOSPC, 3: 0}


@pytest.mark.parametrize("where", ["wait", "submit"])
async def test_export_that_goes_away(
    disk: MemoryExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def wait_writable() -> None:
        raise ClosedError("the volume was closed")

    def submit(ops: list[WriteOp], done: Done, _: HungUp) -> None:
        raise ClosedError("the volume was closed")

    if where == "wait":
        monkeypatch.setattr(MemoryExport, "writable", False)
        monkeypatch.setattr(disk, "wait_writable", wait_writable)
    else:
        monkeypatch.setattr(disk, "submit", submit)
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        reply = await client.command(c.CMD_WRITE, 0, 4, payload=b"abcd")
        assert (reply.error, reply.message) == (c.ESHUTDOWN, "the volume was closed")
        assert service.server.statistics().bytes_in_flight == 0
        assert await client.read(0, 1) == b"\0"


# -- limits and back-pressure --------------------------------------------------------------------------------


async def _blocked(client: NbdClient, service_writes: int) -> None:
    """Send writes until the server does not take any more."""
    block = NbdClient.request_bytes(c.CMD_WRITE, 0, 64 * KIB, cookie=1, payload=bytes(64 * KIB))
    for _ in range(service_writes):
        with trio.move_on_after(0.5) as scope:
            await client.send(block)
        if scope.cancelled_caught:
            return
    pytest.fail("the server takes everything")


async def test_writes_in_flight_are_bounded(disk: MemoryExport, tmp_path: Path) -> None:
    limits = NbdLimits(bytes_in_flight_max=MIB)
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        client = await service.client()
        disk.hold()
        await _blocked(client, 100)
        held = service.server.statistics().bytes_in_flight
        assert MIB <= held <= 2 * MIB + 64 * KIB
        other = await service.client()
        assert await other.read(0, 4096) == bytes(4096), "another client is not held up"
        disk.release()
        await _until_nothing_in_flight(service)


async def test_requests_in_flight_are_bounded(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(requests_in_flight_max=4)) as service:
        client = await service.client()
        disk.hold()
        ten = [NbdClient.request_bytes(c.CMD_WRITE, n, 1, cookie=n, payload=b"x") for n in range(10)]
        await client.send(b"".join(ten))
        await trio.testing.wait_all_tasks_blocked()
        assert service.server.statistics().bytes_in_flight == 4
        disk.release()
        assert {(await client.reply()).cookie for _ in range(10)} == set(range(10))
        assert disk.writes_done == 10


async def test_unsent_replies_are_bounded(disk: MemoryExport, tmp_path: Path) -> None:
    limits = NbdLimits(unsent_bytes_max=MIB)
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        client = await service.client()
        reads = b"".join(
            NbdClient.request_bytes(c.CMD_READ, 0, 64 * KIB, cookie=number) for number in range(500)
        )
        await client.send(reads)
        await trio.testing.wait_all_tasks_blocked()
        held = service.server.statistics().bytes_in_flight
        assert MIB <= held <= 2 * MIB + SCRATCH_BYTES
        for _ in range(500):
            assert len((await client.reply()).data) == 64 * KIB
        await _until_nothing_in_flight(service)


async def test_all_connections_share_a_budget_and_none_starves(disk: MemoryExport, tmp_path: Path) -> None:
    limits = NbdLimits(total_bytes_in_flight_max=256 * KIB)
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        greedy, modest = await service.client(), await service.client()
        disk.hold()
        await _blocked(greedy, 100)
        held = service.server.statistics().bytes_in_flight
        assert held >= 256 * KIB
        await modest.request(c.CMD_WRITE, 0, 4096, payload=PATTERN)
        await trio.testing.wait_all_tasks_blocked()
        assert service.server.statistics().bytes_in_flight == held + 4096
        disk.release()
        assert (await modest.reply()).error == 0


async def test_a_payload_that_is_arriving_counts(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        write = NbdClient.request_bytes(c.CMD_WRITE, 0, MIB, payload=bytes(MIB))
        await client.send(write[:100])
        await trio.testing.wait_all_tasks_blocked()
        assert service.server.statistics().bytes_in_flight == MIB
        disk.hold()
        await client.send(write[100:])
        await trio.testing.wait_all_tasks_blocked()
        assert service.server.statistics().bytes_in_flight == MIB  # not twice
        disk.release()
        assert (await client.reply()).error == 0
        await client.send(write[:100])
        await _until(lambda: service.server.statistics().bytes_in_flight == MIB)
        await client.aclose()
        await _until_nothing_in_flight(service)


async def test_above_the_hard_limit_nobody_begins_another_and_what_was_begun_is_taken_in(
    disk: MemoryExport, tmp_path: Path
) -> None:
    limits = NbdLimits(total_bytes_in_flight_max=MIB, total_bytes_hard_max=2 * MIB)
    write = NbdClient.request_bytes(c.CMD_WRITE, 0, MIB, payload=bytes(MIB))
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        halves = [await service.client() for _ in range(2)]
        late = await service.client()
        for client in halves:
            await client.send(write[: MIB // 2])
        await trio.testing.wait_all_tasks_blocked()
        await late.request(c.CMD_WRITE, 0, 4096, payload=PATTERN)
        await trio.testing.wait_all_tasks_blocked()
        assert service.server.statistics().bytes_in_flight == 2 * MIB
        assert disk.writes_done == 0
        await halves[0].send(write[MIB // 2 :])
        assert (await halves[0].reply()).error == 0
        assert (await late.reply()).error == 0
        await halves[1].aclose()
        await _until_nothing_in_flight(service)


IN_THE_MIDDLE = {
    "a header": NbdClient.request_bytes(c.CMD_READ, 0, 4096)[:20],
    "a payload": NbdClient.request_bytes(c.CMD_WRITE, 0, MIB, payload=PATTERN),
    "the last byte": NbdClient.request_bytes(c.CMD_WRITE, 0, MIB, payload=bytes(MIB - 1)),
    "a payload that is refused": NbdClient.request_bytes(c.CMD_WRITE, 1 << 40, MIB, payload=PATTERN),
    "its replies": NbdClient.request_bytes(c.CMD_READ, 0, 4 * MIB),
}


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("sent", IN_THE_MIDDLE.values(), ids=IN_THE_MIDDLE.keys())
async def test_who_stops_in_the_middle_is_cut_off(
    disk: MemoryExport, tmp_path: Path, sent: bytes, structured: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(stall_deadline_s=0.3)) as service:
        client = await service.client(structured=structured)
        await client.command(c.CMD_READ, 0, 1)
        await client.send(sent)
        await _until_gone(service)
        statistics = service.server.statistics()
        assert statistics.refused == {"stalled": 1}
        assert statistics.bytes_in_flight == 0
        assert disk.writes_done == 0
        assert "refused (stalled, number 1): stopped" in caplog.text


async def test_who_is_slow_but_moves_or_waits_for_us_is_not(
    disk: MemoryExport, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(stall_deadline_s=300)) as service:
        slow, held, silent = [await service.client() for _ in range(3)]
        await silent.command(c.CMD_READ, 0, 1)
        disk.hold()
        half = NbdClient.request_bytes(c.CMD_WRITE, 0, 4096, payload=PATTERN[:-1])
        await held.send(NbdClient.request_bytes(c.CMD_WRITE, 8192, 4096, payload=PATTERN) + half)
        read = NbdClient.request_bytes(c.CMD_READ, 0, 4096)
        await slow.send(read[:10])
        for _ in range(10):
            await trio.sleep(200)
            await slow.send(read[10:] + read[:10])
            assert len((await slow.reply()).data) == 4096
        disk.release()
        await held.send(PATTERN[-1:])
        for _ in range(2):
            assert (await held.reply()).error == 0
        await silent.command(c.CMD_READ, 0, 1)
        assert service.server.statistics().refused == {}


async def test_when_the_memory_is_needed_a_tenth_of_the_time_is_enough(
    disk: MemoryExport, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    limits = NbdLimits(total_bytes_in_flight_max=MIB, stall_deadline_s=300)
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        client = await service.client()
        begin = trio.current_time()
        await client.send(IN_THE_MIDDLE["a payload"])
        while service.server.statistics().connections:
            await trio.sleep(1)
        assert 30 <= trio.current_time() - begin <= 60


async def test_a_full_export_stops_the_reader(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        disk.write_gate = trio.Event()
        assert await client.read(0, 4) == bytes(4)
        write = await client.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
        await trio.testing.wait_all_tasks_blocked()
        await client.request(c.CMD_READ, 0, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert disk.writes_done == 0
        disk.write_gate.set()
        assert (await client.reply()).cookie == write
        assert (await client.reply()).data == b"abcd"


async def test_what_a_client_had_sent_before_it_died_is_not_done_long_after(
    disk: MemoryExport, tmp_path: Path
) -> None:
    """Another one may have taken its place, and written, while the export took nothing."""
    async with serving_nbd(tmp_path, [disk]) as service:
        for waits_s, done in ((STALE_S / 10, True), (2 * STALE_S, False)):
            client = await service.client()
            disk.write_gate = trio.Event()
            await client.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
            await trio.testing.wait_all_tasks_blocked()
            await client.request(c.CMD_WRITE, 0, 4, payload=b"efgh")
            await client.aclose()
            await trio.sleep(waits_s)
            before = disk.writes_done
            disk.write_gate.set()
            await _until_gone(service)
            assert (disk.writes_done > before) is done
        assert service.server.statistics().bytes_in_flight == 0


async def test_slow_reads_do_not_hold_up_others(disk: MemoryExport, tmp_path: Path) -> None:
    """More waiting reads than there are tasks for them: cached reads and writes still go through."""
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(slow_requests_max=2)) as service:
        client = await service.client()
        disk.cold, disk.read_gate = True, trio.Event()
        slow = {await client.request(c.CMD_READ, 0, 512) for _ in range(8)}
        await trio.testing.wait_all_tasks_blocked()
        disk.cold = False
        assert await client.read(0, 16) == bytes(16)
        await client.write(0, b"x")
        disk.read_gate.set()
        assert {(await client.reply()).cookie for _ in slow} == slow


# -- the end -------------------------------------------------------------------------------------------------


async def test_disconnect_answers_what_is_in_flight(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        disk.hold()
        write = await client.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
        await client.request(c.CMD_DISC)
        await trio.testing.wait_all_tasks_blocked()
        assert service.server.statistics().connections == 1
        disk.release()
        assert (await client.reply()) == NbdReply(write)
        assert await client.wait_hang_up() == b""
        await _until_gone(service)


async def test_half_closed_client_gets_its_answers(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        disk.hold()
        write = await client.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
        assert isinstance(client.stream, trio.SocketStream)
        await client.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        disk.release()
        assert (await client.reply()) == NbdReply(write)
        assert await client.wait_hang_up() == b""


async def test_drain_deadline(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(drain_deadline_s=0.05)) as service:
        client = await service.client()
        disk.hold()
        await client.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
        assert await client.disconnect() == b""
        await _until_gone(service)
        assert service.server.statistics().bytes_in_flight == 4, "the export still has it"
        disk.release()
        assert service.server.statistics().bytes_in_flight == 0
        assert disk.peek(0, 4) == b"abcd"


@pytest.mark.parametrize("length", [4096, 300_000])
@pytest.mark.parametrize("missing", [1, 2000])
async def test_a_client_that_dies_in_a_write_leaves_nothing_of_it(
    disk: MemoryExport, tmp_path: Path, length: int, missing: int
) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        whole = NbdClient.request_bytes(c.CMD_WRITE, 0, length, payload=b"x" * length)
        before = NbdClient.request_bytes(c.CMD_WRITE, 4 * MIB, 3, payload=b"yes")
        await client.send(before + whole[:-missing])
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await _until_gone(service)
        assert disk.peek(0, length) == bytes(length)
        assert disk.peek(4 * MIB, 3) == b"yes"
        assert disk.writes_done == 1
        assert service.server.statistics().bytes_in_flight == 0


async def test_bad_magic_hangs_up_after_the_good_requests(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        await client.send(NbdClient.request_bytes(c.CMD_WRITE, 0, 3, payload=b"yes") + bytes(28))
        assert (await client.reply()).error == 0
        assert await client.wait_hang_up() == b""
        await _until_gone(service)
        assert service.server.statistics().refused == {"protocol": 1}
        assert disk.peek(0, 3) == b"yes"


async def test_done_after_the_client_has_gone(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        disk.hold()
        await client.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
        await trio.testing.wait_all_tasks_blocked()
        assert service.server.disconnect("vda") == 1
        assert await client.wait_hang_up() == b""
        disk.release()
        assert disk.peek(0, 4) == b"abcd"
        assert service.server.statistics().bytes_in_flight == 0


async def test_cancelled_slow_reads_give_their_bytes_back(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(slow_requests_max=1)) as service:
        client = await service.client()
        disk.cold, disk.read_gate = True, trio.Event()
        for _ in range(3):
            await client.request(c.CMD_READ, 0, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert service.server.statistics().bytes_in_flight == 3 * 4096
        service.server.disconnect("vda")
        await _until_gone(service)
        assert service.server.statistics().bytes_in_flight == 0


async def test_client_that_never_reads_is_cut_off_by_its_own_end(
    disk: MemoryExport, tmp_path: Path, leak_guard: object
) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        await client.send(
            b"".join(NbdClient.request_bytes(c.CMD_READ, 0, MIB, cookie=number) for number in range(9))
        )
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await _until_gone(service)
        assert service.server.statistics().bytes_in_flight == 0


async def test_peer_lost_is_raised_to_the_server(disk: MemoryExport) -> None:
    """`Connection.run` tells a lost peer from an orderly end."""
    for broken in (False, True):
        ours, theirs = trio.testing.memory_stream_pair()
        connection = Connection(
            StreamTransport(ours),
            Chosen(disk, structured=False, contexts=(), early=b""),
            limits=NbdLimits(),
            budget=Budget(MIB, 2 * MIB),
            traffic=Traffic(),
            scratch=memoryview(bytearray(SCRATCH_BYTES)),
        )
        if broken:
            await theirs.send_all(NbdClient.request_bytes(c.CMD_READ, 0, 4096))
            await theirs.aclose()
            with pytest.raises(PeerLost):
                await connection.run()
        else:
            await theirs.send_all(NbdClient.request_bytes(c.CMD_DISC))
            assert await connection.run() == "disconnected"


async def test_reply_error_carries_the_text() -> None:
    with pytest.raises(NbdReplyError, match="5: broken") as caught:
        NbdReply(1, c.EIO, "broken").check()
    assert caught.value.error == c.EIO


@pytest.mark.parametrize("what", ["unsent replies", "half a write"])
async def test_memory_of_a_client_that_is_gone_is_freed_at_once(
    disk: MemoryExport, tmp_path: Path, what: str
) -> None:
    """Megabytes must not wait for the collector of cycles: it counts objects, and a dead client has few."""
    async with serving_nbd(tmp_path, [disk]) as service:
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            client = await service.client()
            before, _ = tracemalloc.get_traced_memory()
            if what == "unsent replies":
                for _ in range(8):
                    await client.request(c.CMD_READ, 0, 4 * MIB)
            else:
                await client.send(client.request_bytes(c.CMD_WRITE, 0, 8 * MIB, payload=bytes(4 * MIB)))
            await _until(lambda: tracemalloc.get_traced_memory()[0] - before > 2 * MIB)
            await client.aclose()
            await _until_gone(service)
            held = tracemalloc.get_traced_memory()[0] - before
            assert held < MIB, f"{held} bytes are held"
        finally:
            tracemalloc.stop()
            gc.enable()
