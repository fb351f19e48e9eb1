"""The clock of the day jumps, of every process by another time, and nobody who is asked for a lease notices.

Each process of a lab has a library before the system's own that shifts the clock of the day, also for what is
not Python.  The clock that counts, CLOCK_BOOTTIME, nobody can set.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
import trio

from pairsync.testing.lab import RunningLab, running_lab

pytestmark = pytest.mark.slow

FAILOVER_S = 2.0
BLOCK = 4096
JUMPS_S = (3600, -3600, 86_400 * 365, -86_400 * 365 * 20, 0, 7)
SHIFTED = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* What the file says, times a number of this process that is not 0. */
static long long shift(void) {
    char text[32] = {0};
    int before = errno, file = open("THE_FILE", O_RDONLY | O_CLOEXEC);
    if (file >= 0 && read(file, text, sizeof text - 1) < 0) text[0] = 0;
    if (file >= 0) close(file);
    errno = before;
    return atoll(text) * (getpid() % 2 ? 1 + getpid() % 3 : -1 - getpid() % 3);
}
int clock_gettime(clockid_t id, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, id, now);
    if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    now->tv_sec = exact.tv_sec, now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


class Clock:
    """The clock of the day of all processes that are started from now on."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = directory / "shift"
        self._file.write_text("0")
        source, library = directory / "shifted.c", directory / "shifted.so"
        source.write_text(SHIFTED.replace("THE_FILE", str(self._file)))
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        monkeypatch.setenv("LD_PRELOAD", str(library))

    def jumps(self, by_s: int) -> None:
        self._file.write_text(str(by_s))


async def _write(lab: RunningLab, door: str, told: list[bytes]) -> None:
    chance = random.Random(5)
    async with await lab.connect(host=door) as client:
        while True:
            content = chance.randbytes(BLOCK)
            await client.write(0, content)
            told.append(content)
            await trio.sleep(0.01)


@pytest.mark.tools("gcc", "/usr/include/dlfcn.h")
async def test_the_clock_of_the_day_moves_no_guest_and_hinders_no_failover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path, monkeypatch)
    clock.jumps(86_400 * 400)
    year = (await trio.run_process(["date", "+%Y"], capture_stdout=True)).stdout
    clock.jumps(0)
    assert year != (await trio.run_process(["date", "+%Y"], capture_stdout=True)).stdout, "it does jump"
    told: list[bytes] = []
    more = [f"--failover={FAILOVER_S:g}"]
    async with running_lab(tmp_path / "lab", {"vda": 1 << 20}, more=more) as lab:
        pids = [await lab.pid("a"), await lab.pid("b")]
        mark = lab.mark()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write, lab, "b", told)
            for by_s in JUMPS_S:
                clock.jumps(by_s)
                before = len(told)
                await trio.sleep(FAILOVER_S / 2)
                assert len(told) > before
            assert not lab.seen("grant", since=mark)
            assert not lab.seen("peer-lost", since=mark)
            assert [await lab.pid("a"), await lab.pid("b")] == pids
            guest = await lab.guest()
            assert (guest["active"], guest["term"], guest["in_sync"]) == ("a", 1, ["a", "b"])

            clock.jumps(-86_400)  # and a failover comes as ever
            await lab.kill("a")
            with trio.fail_after(2 * FAILOVER_S):
                await lab.wait_active("b")
            clock.jumps(86_400)
            await lab.start("a")
            await lab.wait_in_sync()
            before = len(told)
            await trio.sleep(FAILOVER_S / 2)
            assert len(told) > before
            nursery.cancel_scope.cancel()
