"""The lab: a whole pair on one machine, each host a process of its own, supervised in the foreground.

For people, tests and benchmarks.  A directory holds everything::

    DIR/lab.json            what was asked for: volumes, level, ports, ids
    DIR/lock                held by the supervisor while the lab is up
    DIR/a/  DIR/b/          host.toml, identity, volumes and their metadata, log
    DIR/sockets or a short temporary directory: control and NBD sockets

They meet on loopback, or in network namespaces of their own (``labcables``).

The hosts are ordinary ``pairsync host run`` processes, except that their disks can be made to fail by
command (``pairsync.testing.faultyhost``, which is named here and not imported).  They end when the
supervisor ends, however it ends (their standard input is a pipe that it holds).  What other commands ask
(kill, start, cut ...) goes through the supervisor's control socket.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pairsync.errors import ConfigError, PairsyncError, PeerLost

from .control import Answer, ask, serve_control
from .labcables import Cables, RealCables, ToldCables, open_network
from .labfile import (
    ETCD,
    GUEST,
    HOSTS,
    WITNESS,
    LabFile,
    cables_of,
    control_socket_of,
    remove_sockets,
    uri_of,
)
from .labprepare import put_empty_disk
from .labprocess import ETCD_PROGRAM, HOST_PROGRAM, WITNESS_PROGRAM, LabProcess
from .labrequests import lab_handlers
from .labstatus import all_decide, guest_of, runs
from .namespaces import Namespaces

__all__ = ["DISK_COMMANDS", "Lab", "run_lab"]

ANSWER_S = 5.0
"""How long a host may take to answer; one that is stopped or hangs must not hold up what concerns both."""

RETRY_S = 0.05
"""Between two looks whether a host that is down has come back, for somebody who waits with a limit."""

DISK_S = 30.0
"""How long a host may take to put in an empty disk: some ten megabytes are reserved and flushed."""

EARLY_LINES_MAX = 1000
"""Events kept while the hosts come up: a handful happen in that time."""

RESTART_S = 1.0
"""After that a process that ended by itself is started again: as long as a service manager takes."""

OWNED_S = 10.0
"""How long two hosts that have come up may take to agree who is active, beyond the failover time."""

MOVE_S = 60.0
"""How long a planned move may take: a flush of everything is in it."""

DISK_COMMANDS = ("ok", "fail", "hang", "full", "replace")
"""What can be done to a disk: its states, and ``replace``, after which another one is there that is ok."""


class _Host:
    """One host: its process, and what was done to it by command."""

    def __init__(self, process: LabProcess) -> None:
        self.process = process
        self.disks: dict[str, str] = {}  # what was done to its disks, by volume; others are ok


class Lab:
    """The supervisor; ``namespaces`` are those of a lab that has its own (`open_network`)."""

    def __init__(
        self,
        directory: Path,
        lab: LabFile,
        tell: Callable[[Mapping[str, Any]], None],
        nursery: trio.Nursery,
        namespaces: Namespaces | None = None,
    ) -> None:
        self.directory = directory
        self._lab = lab
        self._tell = tell
        self._nursery = nursery
        self._namespaces = namespaces
        self._hosts = {name: _Host(self._process(name)) for name in (HOSTS[:1] if lab.single else HOSTS)}
        self._witness = self._process(WITNESS) if lab.arbitrated and lab.witness != "none" else None
        self._ready = False  # the line that says so has been told
        self._early: deque[Mapping[str, Any]] = deque(maxlen=EARLY_LINES_MAX)  # to be told behind it
        self._cables = self._lay_cables()
        self._down: set[str] = set()  # processes that were killed by command, or are being stopped

    # ------------------------------------------------------------------ processes

    def _process(self, name: str) -> LabProcess:
        log = self.directory / name / "log"
        called = name if name == WITNESS else f"host {name}"
        before = () if self._namespaces is None else self._namespaces.inside(name)
        return LabProcess(called, log, self._nursery, self._said, partial(self._gone, name), before)

    def _lay_cables(self) -> Cables:
        if self._namespaces is not None:
            return RealCables(self._lab.cables, self._namespaces)
        processes = {name: host.process for name, host in self._hosts.items()}
        return ToldCables(self._lab.cables, processes, self.ask)

    def _said(self, line: Mapping[str, Any]) -> None:
        if self._ready:
            self._tell(line)
        else:
            self._early.append(line)

    def _gone(self, name: str, code: int) -> None:
        if self._ready:
            self._happened("ended", name, code=code)
            if self._lab.arbitrated and name not in self._down:
                self._nursery.start_soon(self._start_again, name)

    def _happened(self, what: str, name: str, **more: Any) -> None:
        """Tell of a process: ``host-ended``, ``witness-paused`` ..."""
        kind = {} if name == WITNESS else {"host": name}
        self._tell({"event": f"{name if name == WITNESS else 'host'}-{what}", **kind, **more})

    async def _start_again(self, name: str) -> None:
        """A process that ended by itself, or by its guard: whoever supervises hosts starts them again."""
        await trio.sleep(RESTART_S)
        if name in self._down or self._any(name).running:
            return
        self._happened("restarting", name)
        try:
            await self.start(name)
        except PairsyncError as error:
            self._happened("failed", name, text=str(error))

    def _any(self, name: str) -> LabProcess:
        """A process by its name, the witness included."""
        if name == WITNESS and self._witness is not None:
            return self._witness
        return self._host(name).process

    def _host(self, name: object) -> _Host:
        try:
            return self._hosts[str(name)]
        except KeyError:
            names = [*self._hosts, *([] if self._witness is None else [WITNESS])]
            raise ConfigError(f"no host {name!r}; there are {', '.join(names)}") from None

    async def start(self, name: str) -> None:
        """Start a host and return when it serves; nothing if it runs.

        `BackendError`, with what became of it and why, as its log says, if it does not come up.
        """
        process = self._any(name)
        self._down.discard(name)
        async with process.starting:
            if not process.running:
                await self._spawn(name)
        await process.until_ready()
        if name != WITNESS:
            await self._cables.started(name)

    async def start_all(self) -> None:
        """Start all of it, the witness first: hosts that meet before it listens agree to do without it."""
        if self._witness is not None:
            await self.start(WITNESS)
        async with trio.open_nursery() as nursery:  # starting is mostly computing: use both cores
            for name in self._hosts:
                nursery.start_soon(self.start, name)

    async def _spawn(self, name: str) -> None:
        if name == WITNESS:
            place = str(self.directory / name)
            program = [*WITNESS_PROGRAM, place]
            if self._lab.witness == "etcd":
                listens = [f"{address}:{port}" for address, port in self._lab.witness_listens]
                program = [*ETCD_PROGRAM, place, str(self._lab.ports[ETCD]), *listens]
            await self._any(name).spawn([*program, "--follow-stdin"])
            return
        host = self._host(name)
        words = [str(self.directory / name / "host.toml"), "--follow-stdin", *self._cables.starting(name)]
        words += [f"--disk={volume}={state}" for volume, state in host.disks.items() if state != "ok"]
        await host.process.spawn([*HOST_PROGRAM, *words])

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when the process is gone.  One that ended by itself is not started again."""
        process = self._any(name)
        to_be_started_again = self._lab.arbitrated and name not in self._down
        self._down.add(name)
        if process.running or not to_be_started_again:
            await process.kill()

    def pause(self, name: str) -> None:
        """SIGSTOP: it stands still and says nothing, until `resume`."""
        self._any(name).pause()
        self._happened("paused", name)

    async def resume(self, name: str) -> None:
        """SIGCONT; a host is told which cables were cut or mended meanwhile."""
        self._any(name).resume()
        self._happened("resumed", name)
        if name != WITNESS:
            with suppress(PairsyncError):  # its guard kills it: then it is told when it is started again
                await self._cables.started(name)

    async def stop(self) -> None:
        """End all in order: the active host first, so that its last flush reaches the standby."""
        self._down.update((*self._hosts, WITNESS))
        active = await self._active()
        for name in sorted(self._hosts, key=lambda each: each != active):
            await self.end(name)
        if self._witness is not None:
            await self._witness.stop()

    async def end(self, name: str) -> bool:
        """End a host in order; whether there was anything to end."""
        host = self._host(name)
        if there := host.process.running:
            self._down.add(name)
            host.process.resume()
            await self._let_go(name, host)
            await host.process.stop()
        return there

    def runs(self, name: str) -> bool:
        """Whether a host's process is there and does not stand still."""
        return self._host(name).process.running and not self._host(name).process.paused

    async def _active(self) -> str:
        """The host on which the guest runs; the first one if it runs nowhere."""
        return await self._runs_on() or HOSTS[0]

    async def _runs_on(self) -> str | None:
        for name in self._hosts:
            if self.runs(name):
                with suppress(PairsyncError):
                    if runs((await self.ask(name, "status"))["guest"]):
                        return name
        return None

    async def until_owned(self) -> None:
        """Return when the guest runs somewhere, or it has taken too long: then nobody may run it."""
        with trio.move_on_after(OWNED_S + self._lab.failover_s):
            while True:
                if not self._lab.arbitrated or await self._runs_on() is not None:
                    return
                await trio.sleep(RETRY_S)

    async def _let_go(self, name: str, host: _Host) -> None:
        """A disk that hangs by command must not hold up the end."""
        for volume, state in host.disks.items():
            if state == "hang":
                with suppress(PairsyncError):  # then it is killed after a while
                    await self.ask(name, "disk", volume=volume, state="fail")

    async def disk(self, name: str, volume: str, what: str) -> None:
        """Have the disk of a host's replica fail, hang ..., work again, or replaced by an empty one.

        It stays so when the host is started again.  Of a host that does not run it is noted for its start.
        """
        host = self._host(name)
        size_bytes = self._lab.volumes.get(volume)
        if size_bytes is None:
            raise ConfigError(f"no volume {volume!r}; there are {', '.join(self._lab.volumes)}")
        if what not in DISK_COMMANDS:
            raise ConfigError(f"a disk cannot be made {what!r}; there are {', '.join(DISK_COMMANDS)}")
        with trio.CancelScope(shield=True):  # done and noted, even if who asked has hung up
            if host.process.running:  # maybe it is only just being started again, and about to fail
                await host.process.until_settled()
            if host.process.running:
                more = {"volume": volume, "state": what, "size_bytes": size_bytes}
                await self.ask(name, "disk", seconds=DISK_S, **more)
            elif what == "replace":
                path = self.directory / name / f"{volume}.img"
                pair_id = bytes.fromhex(self._lab.pair_id)
                await trio.to_thread.run_sync(put_empty_disk, path, volume, pair_id, size_bytes)
        host.disks[volume] = "ok" if what == "replace" else what
        text = f"the disk of {volume}: {what} (by command)"
        self._tell({"event": "disk", "host": name, "volume": volume, "disk": what, "text": text})

    async def on_volume(self, volume: str, what: str, **more: object) -> Answer:
        """Have the active host do that with a volume; whoever asks sets a time limit."""
        if what == "scrub" and self._lab.single:
            raise ConfigError("this lab has a single host: there is nothing to compare")
        if volume not in self._lab.volumes:
            raise ConfigError(f"no volume {volume!r}; there are {', '.join(self._lab.volumes)}")
        request = {"do": what, "volume": volume, **more}
        return await ask(control_socket_of(self.directory, await self._active()), request)

    # ------------------------------------------------------------------ what is told

    def tell_ready(self) -> None:
        """Say that all is up, then what has happened meanwhile: who reads expects that line first."""
        self._tell(self.ready_line())
        self._ready = True
        while self._early:
            self._tell(self._early.popleft())

    def ready_line(self) -> dict[str, Any]:
        """The line that says that all is up."""
        line = {"event": "ready", "hosts": {name: self.describe(name) for name in self._hosts}}
        return line if self._witness is None else {**line, "witness": self._describe_witness()}

    def _describe_witness(self) -> dict[str, Any]:
        process = self._any(WITNESS)
        return {
            "pid": None if process.process is None else process.process.pid,
            "address": process.about.get("address"),
        }

    def describe(self, name: str) -> dict[str, Any]:
        """A host or the witness, as the ready line names it."""
        if name == WITNESS:
            return self._describe_witness()
        host = self._hosts[name]
        return {
            "pid": None if host.process.process is None else host.process.process.pid,
            "link": host.process.about.get("link"),
            "volumes": {
                volume: {
                    "uri": uri_of(self.directory, name, volume)
                    if name == HOSTS[0] or self._lab.arbitrated
                    else None,
                    "path": str(self.directory.absolute() / name / f"{volume}.img"),
                }
                for volume in self._lab.volumes
            },
        }

    async def status(self) -> dict[str, Any]:
        """Both hosts and what they say of themselves."""
        hosts: dict[str, Any] = {}
        for name, host in self._hosts.items():
            hosts[name] = {"running": host.process.running, **self.describe(name), "guest": None}
            hosts[name]["paused"] = host.process.paused
            hosts[name]["disks"] = {volume: host.disks.get(volume, "ok") for volume in self._lab.volumes}
            if host.process.running:
                try:
                    answer = await self.ask(name, "status")
                except PairsyncError as error:
                    hosts[name]["error"] = str(error)
                else:
                    hosts[name]["guest"] = answer["guest"]
                    hosts[name]["process"] = answer["process"]
        active = next((name for name in hosts if runs(hosts[name]["guest"])), None)
        status = {
            "directory": str(self.directory.absolute()),
            "in_sync": active is not None and hosts[active]["guest"]["in_sync"],
            "guests": {GUEST: guest_of(active, hosts)},
            "hosts": hosts,
        }
        if self._witness is not None:
            status["witness"] = {
                "running": self._witness.running,
                "paused": self._witness.paused,
                **self._describe_witness(),
            }
        return {**status, "cut": self._cables.cut}

    async def cables(self, which: str, *, cut: bool) -> Answer:
        """Cut or mend a cable, or all of them: as if it were pulled."""
        for cable in await self._cables.turn(which, cut=cut):
            self._tell({"event": f"link-{'cut' if cut else 'heal'}", "cable": cable})
        return {}

    async def move(self) -> Answer:
        """Have the guest move to the other host, as planned."""
        if not self._lab.arbitrated:
            raise ConfigError("this lab has fixed roles: nothing moves")
        began = trio.current_time()
        active = await self._active()
        await self.ask(active, "move", seconds=MOVE_S)
        return {"from": active, "seconds": round(trio.current_time() - began, 3)}

    async def ask(self, name: str, what: str, *, seconds: float = ANSWER_S, **more: object) -> Answer:
        """Ask a host; `PeerLost` if it does not answer, or not in time."""
        with trio.move_on_after(seconds):
            return await ask(control_socket_of(self.directory, name), {"do": what, **more})
        raise PeerLost(f"host {name} did not answer within {seconds:g} s")

    async def wait_in_sync(self) -> None:
        """Return when the guest runs somewhere, in sync, and a witness that both can ask has its vote."""
        if self._lab.single:
            raise ConfigError("this lab has a single host: it is never in sync")
        while True:
            for name, host in self._hosts.items():
                if not host.process.running:
                    continue
                with suppress(PairsyncError):  # it is down; whoever waits has set a time limit
                    guest = (await self.ask(name, "status"))["guest"]
                    if runs(guest) and guest["in_sync"] and (all_decide(guest) or not self._witnessed()):
                        return
            await trio.sleep(RETRY_S)

    def _witnessed(self) -> bool:
        """Whether there is a witness that both hosts can ask, as far as the lab has a say in it."""
        there = self._witness is not None and self._witness.running and not self._witness.paused
        return there and not set(self._cables.cut).intersection(cables_of(WITNESS))


async def run_lab(directory: Path, lab: LabFile, tell: Callable[[Mapping[str, Any]], None]) -> None:
    """Bring the lab up, tell ``ready`` and every event, until SIGINT or SIGTERM.

    The caller holds the directory's lock.  Raises `BackendError` if a host does not come up.
    """
    try:
        async with open_network(lab) as namespaces, trio.open_nursery() as nursery:
            supervisor = Lab(directory, lab, tell, nursery, namespaces)
            try:
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    await _serve(supervisor, directory, nursery, signals)
            finally:
                with trio.CancelScope(shield=True):
                    await supervisor.stop()
                nursery.cancel_scope.cancel()
    finally:
        remove_sockets(directory)


async def _serve(supervisor: Lab, directory: Path, nursery: trio.Nursery, signals: Any) -> None:
    async with trio.open_nursery() as starting:

        async def interrupt() -> None:
            async for _ in signals:
                starting.cancel_scope.cancel()
                return

        starting.start_soon(interrupt)
        await supervisor.start_all()
        await supervisor.until_owned()
        await nursery.start(serve_control, control_socket_of(directory), lab_handlers(supervisor))
        supervisor.tell_ready()
        await trio.sleep_forever()
