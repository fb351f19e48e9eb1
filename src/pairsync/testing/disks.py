"""A simulated medium: disks in memory whose power can be cut, and that fail when told to.

A `SimMedium` holds the files of one host by name.  A `SimFile` is a `BlockFile` over one of them, so volumes
(`SimDisk`) and metadata (``storage.metadata.load_metadata``) run on it unchanged.

**What survives.**  A process crash keeps everything that was written.  A power cut keeps of every sector of
512 bytes one of the contents that it has had since it was last made durable; which one is chosen sector by
sector by the test, so writes that were not flushed are kept, dropped, reordered and torn in every way that a
real disk with a cache allows.  A flush makes all durable; a durable write (FUA, ``RWF_DSYNC``) its own
sectors only.

**Cut points.**  Every write counts two steps if it is durable (issued, done), else one; every flush two.
``cut_at_step`` raises `PowerCut` at that step, out of whatever code is running; then call `power_cut`.

**Faults.**  ``fault`` is asked before every operation and may answer with a `Fault`: an error, an error
after a part was done, or a hang.  A hanging operation raises `SimHang`; `SimLane` turns that into a job
that never completes.

Deterministic: no clock, no random source, no thread.
"""

from __future__ import annotations

import enum
import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import trio

from pairsync.core.messages import Buffer
from pairsync.core.units import KIB
from pairsync.errors import BackendError, BusyError, ClosedError, InternalError
from pairsync.storage.blockfile import ALLOCATION_RUNS_MAX, Allocation, BlockFile
from pairsync.storage.file import RawFile
from pairsync.storage.lane import LANE_JOBS_MAX, Lane

__all__ = [
    "SECTOR_BYTES",
    "Fault",
    "PowerCut",
    "SimAction",
    "SimDisk",
    "SimFile",
    "SimHang",
    "SimLane",
    "SimMedium",
    "SimOperation",
]

SECTOR_BYTES: Final = 512
"""What a disk writes whole or not at all."""

_PAGE_BYTES: Final = 4 * KIB
_ZERO_PAGE: Final = bytes(_PAGE_BYTES)

T = TypeVar("T")


class PowerCut(BaseException):  # not an error of the code under test: nothing may catch it
    """The power went at the step that `SimMedium.cut_at_step` names."""


class SimHang(BaseException):  # the same
    """The operation never completes."""


class SimAction(enum.Enum):
    """What a simulated file is asked to do."""

    READ = "read"
    WRITE = "write"
    ZERO = "zero"
    FLUSH = "flush"
    CHANGE = "change"  # of its size or name: see ``testing.simfiles``


class SimOperation(NamedTuple):
    """One operation, as the fault injector sees it."""

    name: str
    action: SimAction
    offset: int
    length: int
    durable: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong: ``errno`` after ``done_bytes`` of a write have been done, or a hang before it."""

    errno: int = errno.EIO
    done_bytes: int = 0
    hang: bool = False


class _Platter:
    """One file's content.

    ``live`` is what a process reads.  ``older`` holds, for every sector that has changed since it was last
    durable, the contents it had, the durable one first.
    """

    __slots__ = ("is_open", "live", "older")

    def __init__(self, size_bytes: int) -> None:
        self.live = bytearray(size_bytes)
        self.older: dict[int, list[bytes]] = {}
        self.is_open = False

    def put(self, offset: int, data: Buffer) -> None:
        live = self.live
        first = offset // SECTOR_BYTES * SECTOR_BYTES
        stop = offset + len(data)
        before = bytes(live[first : -(-stop // SECTOR_BYTES) * SECTOR_BYTES])
        live[offset:stop] = data
        for at in range(0, len(before), SECTOR_BYTES):
            was = before[at : at + SECTOR_BYTES]
            if was != live[first + at : first + at + SECTOR_BYTES]:
                self.older.setdefault((first + at) // SECTOR_BYTES, []).append(was)

    def settle(self, offset: int, length: int) -> None:
        if self.older:
            for sector in range(offset // SECTOR_BYTES, (offset + length - 1) // SECTOR_BYTES + 1):
                self.older.pop(sector, None)

    def sector(self, number: int) -> bytes:
        return bytes(self.live[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES])

    def versions(self, number: int) -> list[bytes]:
        """What a power cut may leave: the durable content first, the newest last, each other one once."""
        durable, *between = self.older[number]
        newest = self.sector(number)
        others = [content for content in dict.fromkeys(between) if content not in (durable, newest)]
        if durable == newest and not others:
            return [newest]
        return [durable, *others, newest]


class SimMedium:
    """The files of one host; see the module."""

    def __init__(self) -> None:
        self._platters: dict[str, _Platter] = {}
        self._life = 0  # crashes so far; a file opened in an earlier life is dead
        self.step = 0
        """Steps done so far."""
        self.cut_at_step: int | None = None
        """The step that is not done any more: `PowerCut` is raised in its place."""
        self.fault: Callable[[SimOperation], Fault | None] | None = None
        """Asked before every operation."""

    # ------------------------------------------------------------------ files

    def create(self, name: str, size_bytes: int) -> None:
        """A durable file of zeroes."""
        if name in self._platters:
            raise InternalError(f"{name} exists already")
        self._platters[name] = _Platter(size_bytes)

    def remove(self, name: str) -> None:
        """Durably gone, whoever has it open."""
        del self._platters[name]

    def open(self, name: str) -> SimFile:
        """Open the file alone; `BackendError` if there is none, `BusyError` if it is open."""
        return SimFile(self, self.claim(name))

    def claim(self, name: str) -> str:
        """As `open`, for who makes the handle: the name."""
        platter = self._platters.get(name)
        if platter is None:
            raise BackendError(f"{name}: open: {os.strerror(errno.ENOENT)}", errno.ENOENT)
        if platter.is_open:
            raise BusyError(f"{name}: in use by another process")
        platter.is_open = True
        return name

    def rename(self, name: str, new_name: str) -> None:
        """Durably; the file takes the place of another, and what is undecided of it along."""
        self._platters[new_name] = self._platters.pop(name)

    def names(self) -> list[str]:
        """The files there are."""
        return sorted(self._platters)

    def content(self, name: str) -> bytes:
        """What a process would read now."""
        return bytes(self._platters[name].live)

    def damage(self, name: str, offset: int, xor: int) -> None:
        """Bits of one byte fall over, durably."""
        platter = self._platters[name]
        number = offset // SECTOR_BYTES
        older = platter.older.get(number, [])
        platter.live[offset] ^= xor
        for index, content in enumerate(older):
            flipped = bytearray(content)
            flipped[offset % SECTOR_BYTES] ^= xor
            older[index] = bytes(flipped)

    # ------------------------------------------------------------------ crashes

    def process_crash(self) -> None:
        """Every open file is dead; all that was written is kept, and may still be lost with the power."""
        self._life += 1
        for platter in self._platters.values():
            platter.is_open = False

    def undecided(self) -> list[int]:
        """For every sector that a power cut could leave in more than one state: how many there are."""
        return [
            count
            for name in self.names()
            for number in sorted(self._platters[name].older)
            if (count := len(self._platters[name].versions(number))) > 1
        ]

    def power_cut(self, choose: Callable[[int], int]) -> None:
        """As `process_crash`, and of every undecided sector the content that ``choose`` picks is kept.

        ``choose(n)`` answers 0 (the durable content) to n - 1 (the newest), in the order of `undecided`.
        """
        for name in self.names():
            platter = self._platters[name]
            for number in sorted(platter.older):
                versions = platter.versions(number)
                if len(versions) > 1:
                    kept = versions[choose(len(versions))]
                    platter.live[number * SECTOR_BYTES : number * SECTOR_BYTES + len(kept)] = kept
            platter.older.clear()
        self.process_crash()

    # ------------------------------------------------------------------ for SimFile

    def platter(self, name: str, life: int) -> _Platter:
        """The file's content, for a handle that was opened in that life."""
        platter = self._platters.get(name)
        if platter is None:
            raise BackendError(f"{name}: vanished while it was open", errno.ENOENT)
        if life != self._life:
            raise ClosedError(f"{name}: the host has crashed since this was opened")
        return platter

    @property
    def life(self) -> int:
        """Counts crashes."""
        return self._life

    def advance(self) -> None:
        """One step has been done."""
        if self.step == self.cut_at_step:
            raise PowerCut(f"at step {self.step}")
        self.step += 1

    def strike(self, operation: SimOperation) -> Fault | None:
        """What goes wrong with this operation; raises for a hang."""
        fault = None if self.fault is None else self.fault(operation)
        if fault is not None and fault.hang:
            raise SimHang(operation)
        return fault


class SimFile(BlockFile):
    """A `BlockFile` of a `SimMedium`; made by `SimMedium.open`."""

    def __init__(self, medium: SimMedium, name: str) -> None:
        super().__init__()
        self.medium = medium
        self.path = name
        self.memory_backed = True
        self._life = medium.life
        self._closed = False
        self.size_bytes = len(medium.platter(name, self._life).live)
        self.cached = True
        """Whether `read_nowait` finds everything in the cache, or nothing."""

    def _begin(
        self, action: SimAction, offset: int, length: int, *, durable: bool = False
    ) -> tuple[_Platter, Fault | None]:
        if self._closed:
            raise ClosedError(f"{self.path}: {action.value} after it was closed")
        platter = self.medium.platter(self.path, self._life)
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise BackendError(f"{self.path}: {action.value} of {length} bytes at {offset} ends outside")
        return platter, self.medium.strike(SimOperation(self.path, action, offset, length, durable))

    def _fail(self, action: SimAction, offset: int, length: int, fault: Fault) -> BackendError:
        doing = f"{self.path}: {action.value} of {length} bytes at {offset}"
        return BackendError(f"{doing}: {os.strerror(fault.errno)}", fault.errno)

    def read_into(self, offset: int, view: memoryview) -> None:
        """As `BlockFile.read_into`."""
        platter, fault = self._begin(SimAction.READ, offset, len(view))
        if fault is not None:
            raise self._fail(SimAction.READ, offset, len(view), fault)
        view[:] = platter.live[offset : offset + len(view)]

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """As `BlockFile.read_nowait`."""
        if self.cached:
            self.read_into(offset, view)
        return self.cached

    def _write(self, offset: int, buffers: Sequence[Buffer], *, durable: bool) -> None:
        length = sum(map(len, buffers))
        platter, fault = self._begin(SimAction.WRITE, offset, length, durable=durable)
        data = bytes(buffers[0]) if len(buffers) == 1 else b"".join(buffers)
        if fault is not None:
            platter.put(offset, data[: fault.done_bytes])
            raise self._fail(SimAction.WRITE, offset, length, fault)
        platter.put(offset, data)
        self.medium.advance()
        if durable and length:
            platter.settle(offset, length)
            self.medium.advance()

    def zero(self, offset: int, length: int, *, keep_space: bool) -> None:
        """As `BlockFile.zero`."""
        del keep_space  # space is not modelled
        platter, fault = self._begin(SimAction.ZERO, offset, length)
        if fault is not None:
            platter.put(offset, bytes(min(fault.done_bytes, length)))
            raise self._fail(SimAction.ZERO, offset, length, fault)
        platter.put(offset, bytes(length))
        self.medium.advance()

    def _flush(self) -> None:
        platter, fault = self._begin(SimAction.FLUSH, 0, 0)
        if fault is not None:
            raise self._fail(SimAction.FLUSH, 0, 0, fault)
        self.medium.advance()
        platter.older.clear()
        self.medium.advance()

    def allocation(self, offset: int, length: int) -> Allocation:
        """As `BlockFile.allocation`; a page of zeroes is a hole."""
        live = self.medium.platter(self.path, self._life).live
        runs: Allocation = []
        stop = offset + length
        while offset < stop and len(runs) < ALLOCATION_RUNS_MAX:
            page = offset // _PAGE_BYTES * _PAGE_BYTES
            content = live[page : page + _PAGE_BYTES]
            is_hole = content == _ZERO_PAGE[: len(content)]
            piece = min(page + _PAGE_BYTES, stop) - offset
            if runs and runs[-1][1] == is_hole:
                runs[-1] = (runs[-1][0] + piece, is_hole)
            else:
                runs.append((piece, is_hole))
            offset += piece
        return runs

    def hole_bytes(self, offset: int, length: int) -> int:
        """As `BlockFile.hole_bytes`."""
        runs = self.allocation(offset, length)
        return runs[0][0] if runs and runs[0][1] else 0

    def will_need(self, offset: int, length: int) -> None:
        """Nothing to do: all lies in memory."""

    def close(self) -> None:
        """As `BlockFile.close`."""
        if not self._closed and self._life == self.medium.life and self.path in self.medium.names():
            self.medium.platter(self.path, self._life).is_open = False
        self._closed = True


class SimDisk(RawFile):
    """A volume on a simulated medium; ``size_bytes`` makes the file if there is none of that name."""

    def __init__(self, medium: SimMedium, name: str, size_bytes: int | None = None) -> None:
        if size_bytes is not None and name not in medium.names():
            medium.create(name, size_bytes)
        super().__init__(medium.open(name))


class SimLane(Lane):
    """A lane whose jobs run when the simulator says so, and may never complete.

    ``step`` runs the oldest job and reports it; a job that hangs (`SimHang`) is never reported, and neither
    is any behind it.  ``crash`` forgets all of them, as the death of the process does.
    """

    def __init__(self) -> None:
        self._jobs: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._closed = False
        self.hung = False
        """A job hangs: nothing completes any more."""

    @property
    def backlog(self) -> int:
        """As `Lane.backlog`."""
        return len(self._jobs)

    def submit(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """As `Lane.submit`; nothing runs yet."""
        if self._closed:
            raise ClosedError("the lane is closed")
        if len(self._jobs) >= LANE_JOBS_MAX:
            raise BusyError(f"{len(self._jobs)} jobs are waiting in a lane")
        self._jobs.append((job, done))

    def step(self) -> bool:
        """Run the oldest job and report it; False if there is none, or it hangs."""
        if self.hung or not self._jobs:
            return False
        job, done = self._jobs[0]
        result: Any
        try:
            result = job()
        except SimHang:
            self.hung = True
            return False
        except Exception as error:  # noqa: BLE001 - not swallowed: carried to `done`, as every lane does
            result = error
        self._jobs.popleft()
        done(result)
        return True

    def run_all(self) -> int:
        """`step` until nothing completes any more; how many jobs did."""
        count = 0
        while self.step():
            count += 1
        return count

    def crash(self) -> None:
        """Forget all jobs, unreported."""
        self._jobs.clear()
        self._closed = True

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `Lane.serve`; the simulator delivers."""
        task_status.started()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """As `Lane.aclose`: runs what is left."""
        self._closed = True
        self.run_all()
        await trio.lowlevel.checkpoint()
