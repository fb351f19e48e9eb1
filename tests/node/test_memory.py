"""Giving memory back: when it is tried, how often, and that the C library does it."""

from __future__ import annotations

import errno
import gc
import resource
import subprocess
import sys

import pytest
import trio
import trio.testing

from pairsync.core.units import MIB
from pairsync.node.memory import TRIM_ABOVE_BYTES, held, resident_bytes, trim_memory


class Process:
    """What a process holds, and what of it could be given back."""

    def __init__(self) -> None:
        self.used, self.free = 50 * MIB, 0
        self.trims: list[float] = []

    def resident(self) -> int:
        return self.used + self.free

    async def trim(self) -> None:
        await trio.lowlevel.checkpoint()
        self.free = 0
        self.trims.append(trio.current_time())


async def test_a_burst_is_given_back_soon(autojump_clock: trio.testing.MockClock) -> None:
    process = Process()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trim_memory(resident=process.resident, trim=process.trim))
        await trio.sleep(10)
        process.free = TRIM_ABOVE_BYTES
        await trio.sleep(10)
        assert process.trims == []  # not worth it
        for _ in range(3):
            process.free = TRIM_ABOVE_BYTES + MIB
            before = trio.current_time()
            await trio.sleep(10)
            assert process.free == 0
            assert process.trims[-1] - before <= 2
        assert len(process.trims) == 3
        nursery.cancel_scope.cancel()


async def test_what_is_in_use_is_left_alone_more_and_more(autojump_clock: trio.testing.MockClock) -> None:
    process = Process()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trim_memory(resident=process.resident, trim=process.trim))
        await trio.sleep(1)
        process.used += 2 * TRIM_ABOVE_BYTES
        await trio.sleep(600)
        gaps = [later - earlier for earlier, later in zip(process.trims, process.trims[1:], strict=False)]
        assert gaps == sorted(gaps)
        assert gaps[-1] == 60
        process.used -= 2 * TRIM_ABOVE_BYTES  # the burst was long, and is over
        process.free = 2 * TRIM_ABOVE_BYTES
        await trio.sleep(61)
        assert process.free == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("when", ["before a trim", "after it"])
async def test_a_look_that_fails_is_left_out(autojump_clock: trio.testing.MockClock, when: str) -> None:
    process = Process()
    failures = 0

    def resident() -> int:
        nonlocal failures
        if not failures and (process.trims or (when == "before a trim" and trio.current_time() > began)):
            failures += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return process.resident()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trim_memory(resident=resident, trim=process.trim))
        await trio.sleep(10)
        process.free = TRIM_ABOVE_BYTES + MIB
        await trio.sleep(10)
        assert process.free == 0
        assert failures == 1
        nursery.cancel_scope.cancel()


def test_a_process_without_descriptors_still_says_what_it_holds() -> None:
    now = held()
    assert 0 < now["descriptors"] < 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        without = held()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert without["descriptors"] == 3
    assert without["resident_bytes"] >= now["resident_bytes"] // 2


async def test_the_library_returns_free_pages() -> None:
    """Small buffers, of which the last one stays: the heap cannot shrink from its end."""
    buffers = [b"x" * 60_000 for _ in range(2000)]
    full = resident_bytes()
    last = buffers[-1]
    buffers.clear()
    gc.collect()
    sizes = iter([0])  # the process was tiny once
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trim_memory(resident=lambda: next(sizes, full)))
        with trio.fail_after(30):
            while resident_bytes() > full - 100 * MIB:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert last == b"x" * 60_000


_TAKE_AND_FREE = """
import resource
from pairsync.core.units import MIB
from pairsync.node.memory import keep_freed_memory
keep_freed_memory()
def burst():
    return [bytearray(MIB) for _ in range(16)]
burst()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    burst()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_buffers_that_were_freed_a_moment_ago_are_taken_again_without_page_faults() -> None:
    """Where the C library has the call: 81920 are the pages of all of them."""
    faults = int(subprocess.check_output([sys.executable, "-c", _TAKE_AND_FREE], timeout=60))
    assert faults < 4096
