"""The guest's clients: they read and write through whoever serves, and remember what they were told.

A write counts as acknowledged when it is durable everywhere: written through, or flushed after.  Only in a
seed in which no power fails a plain write does.  Every client has one request at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.testing.sim.disk import SECTOR_BYTES

from .medium import GuestRead
from .registers import Floors, Registers

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["Clients"]

CLIENTS = 2
RETRY_NS = 40 * NS_PER_MS
READ_SHARE = 0.4
LAG_SLACK_NS = NS_PER_S
"""The bound on the lag is looked at with every write and twice a second."""
WRITE_SECTORS_MAX = 12


class _Request:
    """One that has not ended.  ``version`` is 0 for a read."""

    __slots__ = (
        "asked_ns",
        "begun",
        "client",
        "flushes",
        "fua",
        "host",
        "life",
        "number",
        "start",
        "stop",
        "version",
        "volume",
    )

    def __init__(self, number: int, client: int, host: GrantHost, volume: int, start: int, stop: int) -> None:
        self.number = number
        self.client = client
        self.host = host
        self.life = host.life
        self.volume = volume
        self.start = start
        self.stop = stop
        self.version = 0
        self.begun = 0
        self.asked_ns = 0
        self.fua = False
        self.flushes = False  # the flush after it is under way


class Clients:
    """See the module."""

    def __init__(self, world: GrantWorld, sectors: Sequence[int]) -> None:
        """``sectors``: how many, of each volume; here they are numbered through."""
        self._world = world
        self._random = world.random
        self._clock = world.clock
        self._sectors = sectors
        self._numbers = count(1)
        self._moments = count(1)
        self._requests: dict[int, _Request] = {}
        self._firsts = [sum(sectors[:volume]) for volume in range(len(sectors))]
        self.plain = not any(fault.startswith(("power", "disk-")) for fault in world.profile.faults)
        self.floors = Floors([0] * sum(sectors))
        self.registers = Registers([0] * sum(sectors))
        self._truth: bytes | None = None  # the chain that a person has chosen; None: there is one only
        self.lags = any(options.level != "sync" for options in world.profile.options)
        self._told: list[tuple[_Request, int]] = []  # acknowledged writes of such volumes, and when
        # What was owed before a host went on from old disks, and how much had been acknowledged then.
        self._before: tuple[Floors, Registers, int] | None = None
        self.acknowledged_ns = 0  # when something was last
        self.completed = 0
        self.acknowledged = 0
        self._writing = True

    def begin(self) -> None:
        """Start."""
        for client in range(CLIENTS):
            self._later(client, self._think_ns())

    def rest(self) -> None:
        """Submit nothing more."""
        self._writing = False

    def first_sector(self, volume: int) -> int:
        """The number of its first one."""
        return self._firsts[volume]

    @property
    def busy(self) -> bool:
        """Whether a request has not ended."""
        return bool(self._requests)

    def _think_ns(self) -> int:
        return int(self._world.profile.think_ns * self._random.expovariate(1.0))

    def _later(self, client: int, delay_ns: int) -> None:
        self._clock.after(delay_ns, self._wake, client)

    def counts(self, host: GrantHost) -> bool:
        """Whether what that host says does: no person has chosen another one."""
        grant = host.arbiter.grant if host.arbiter is not None else None
        return grant is not None and self.is_truth(grant.fork)

    def is_truth(self, fork: bytes) -> bool:
        """Whether no person has chosen another chain than that one."""
        return self._truth in {None, fork}

    def overruled(self, fork: bytes, content: Sequence[int]) -> None:
        """A person has made a host the owner: what it holds is the truth, and nothing else."""
        self._truth = fork
        self._begin_from(content)

    def forgotten(self, fork: bytes, content: Sequence[int]) -> None:
        """A host goes on from old disks, and nobody is there to tell: what they hold is the truth for now."""
        if self._before is None or self.acknowledged > self._before[-1]:
            self._before = self.floors, self.registers, self.acknowledged
        self.overruled(fork, content)

    def remembered(self) -> None:
        """The other host takes over: all is owed again, unless something was acknowledged meanwhile."""
        if self._before is not None and self.acknowledged == self._before[-1]:
            self._world.coverage.reach("rolled-back-undone")
            self._end_all(list(self._requests.values()), forget=True)
            self.floors, self.registers, _ = self._before
        self._before = None

    # ------------------------------------------------------------------ level async

    def lags_wrongly(self, volume: int, content: Sequence[int]) -> str | None:
        """Why a standby may not hold that: more is missing than may be, or what came later is there."""
        first = self._firsts[volume]
        lost, there = [], [0]
        for request, told_ns in self._told:
            if request.volume == volume:
                seen = content[request.start : request.stop]
                missing = self.floors.missing(request.version, request.begun, seen, first + request.start)
                lost += [(told_ns, request)] if missing else []
                there += [] if missing or request.version not in seen else [request.begun]
        if not lost:
            return None
        self._world.coverage.reach("async-lost")
        span_ns = max(told_ns for told_ns, _ in lost) - min(told_ns for told_ns, _ in lost)
        if span_ns > self._world.profile.options[volume].lag_ns + LAG_SLACK_NS:
            return f"what was acknowledged in {span_ns / NS_PER_S:.3f} s is missing"
        oldest = min((request for _, request in lost), key=lambda request: request.begun)
        if max(there) > self.floors.ended(oldest.version):
            return f"write {oldest.version} is missing, and a later one is there"
        return None

    def goes_on_from(self, content: Sequence[int]) -> None:
        """Another host takes over, and what it lacked within the bound is lost: that is the history now."""
        wrong = self.registers.first_wrong()
        if wrong is not None:
            self._world.fail("not-linearizable", wrong)
        self._begin_from(content)

    def _begin_from(self, content: Sequence[int]) -> None:
        self._told = []
        self.floors, self.registers = Floors(content), Registers(content)
        self._end_all(list(self._requests.values()), forget=True)

    # ------------------------------------------------------------------ requests

    def _wake(self, client: int) -> None:
        if not self._writing:
            return
        hosts = [host for host in self._world.hosts if host.serves and self.counts(host)]
        if not hosts:
            self._later(client, RETRY_NS)
            return
        host = self._random.choice(hosts)
        length = self._random.randrange(1, WRITE_SECTORS_MAX)
        volume = self._random.randrange(len(self._sectors))
        start = self._random.randrange(self._sectors[volume])
        stop = min(start + length, self._sectors[volume])
        request = _Request(next(self._numbers), client, host, volume, start, stop)
        request.asked_ns, request.begun = self._clock.now, next(self._moments)
        self._requests[request.number] = request
        if self._random.random() < READ_SHARE:
            host.defer(self._read, request)
        else:
            request.version = request.number
            request.fua = self._random.random() < 0.5
            span = self._span(request)
            self.floors.begins(request.version, *span)
            self.registers.write_begins(request.version, *span, request.begun)
            host.defer(self._write, request)

    def _span(self, request: _Request) -> tuple[int, int]:
        first = self._firsts[request.volume]
        return first + request.start, first + request.stop

    def _live(self, request: _Request) -> bool:
        return request.number in self._requests and request.host.life == request.life

    def _write(self, request: _Request) -> None:
        plane = request.host.plane
        if not self._live(request) or plane is None or not request.host.serves:
            self._end(request, acknowledged=False)
            return
        size = (request.stop - request.start) * SECTOR_BYTES
        data = cast("Any", request.version)  # the core never looks into it: its number stands for it
        op = WriteOp(OpKind.DATA, request.start * SECTOR_BYTES, size, data, request.fua)
        where = f"{request.volume}: {request.start}..{request.stop}"
        self._world.trace.note(request.host.name, "write", request.number, where)
        plane.session.sources[request.volume].write(request.number, [op], request.host.now_ns)
        request.host.perform()

    def _read(self, request: _Request) -> None:
        plane = request.host.plane
        if not self._live(request) or plane is None or not request.host.serves:
            self._end(request, acknowledged=False)
            return
        start, stop = self._span(request)
        owed = self.floors.owed[start:stop]

        def then(content: list[int] | None) -> None:
            if not self._live(request):
                return
            if content is not None and not self._world.two_may_run:
                self._world.trace.note(request.host.name, "read", request.number, str(content))
                wrong = self.floors.first_wrong(content, start, owed)
                if wrong is not None:
                    self._world.fail("stale-read", f"host {request.host.name}: {wrong}")
                self.registers.read(start, content, request.begun, next(self._moments))
            self._end(request, acknowledged=content is not None)

        plane.read(request.volume, GuestRead(request.start, request.stop, then))

    def complete(self, host: GrantHost, ticket: object, errnos: Sequence[int] | None) -> None:
        """What a write, or the flush after it, has come to."""
        request = self._requests.get(ticket) if isinstance(ticket, int) else None
        if request is None:
            return  # of a side that was overruled meanwhile
        failed = errnos is not None and any(errnos)
        if request.version and not failed and not request.flushes:
            self._world.checker.written(host)
        if failed or request.fua or request.flushes or self.plain:
            self._end(request, acknowledged=not failed)
            return
        request.flushes = True
        if host.plane is not None:
            host.plane.session.sources[request.volume].flush(request.number, host.now_ns)

    def _end(self, request: _Request, *, acknowledged: bool) -> None:
        if self._requests.pop(request.number, None) is None:
            return
        self.completed += 1
        self._world.trace.note(request.host.name, "ended", request.number, str(acknowledged))
        if request.version:
            now = next(self._moments)
            self.floors.ends(request.version, request.begun, now, acknowledged=acknowledged)
            self.registers.write_ends(request.version, *self._span(request), now, acknowledged=acknowledged)
            if acknowledged:
                self.acknowledged += 1
                if self._world.profile.options[request.volume].level != "sync":
                    self._told.append((request, self._clock.now))
                self.acknowledged_ns = self._clock.now
                self._world.checker.acknowledged(
                    request.host,
                    request.volume,
                    request.start,
                    request.stop,
                    request.asked_ns,
                    durable=not self.plain,
                )
        self._later(request.client, self._think_ns() if acknowledged else RETRY_NS)

    def host_died(self, host: GrantHost) -> None:
        """What was asked of it will never be answered."""
        self._end_all([each for each in self._requests.values() if each.host is host], forget=False)

    def _end_all(self, requests: list[_Request], *, forget: bool) -> None:
        for request in requests:
            if forget:
                del self._requests[request.number]
                self._later(request.client, RETRY_NS)
            else:
                self._end(request, acknowledged=False)

    def oldest_ns(self) -> int | None:
        """Since when the oldest request has been waiting."""
        return min((each.asked_ns for each in self._requests.values()), default=None)
