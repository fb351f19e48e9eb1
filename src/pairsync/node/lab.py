"""The lab: a whole pair on one machine, each host a process of its own, supervised in the foreground.

For people, tests and benchmarks.  A directory holds everything::

    DIR/lab.json            what was asked for: volumes, level, ports, ids
    DIR/lock                held by the supervisor while the lab is up
    DIR/a/  DIR/b/          host.toml, identity, volumes and their metadata, log
    DIR/sockets or a short temporary directory: control and NBD sockets

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
from urllib.parse import quote

import trio

from pairsync.errors import ConfigError, PairsyncError, PeerLost

from .control import Answer, Handler, ask, serve_control
from .labfile import HOSTS, LabFile, control_socket_of, nbd_socket_of, put_empty_disk, remove_sockets
from .labprocess import LabProcess

__all__ = ["DISK_COMMANDS", "Lab", "run_lab"]

ANSWER_S = 5.0
"""How long a host may take to answer; one that is stopped or hangs must not hold up what concerns both."""

RETRY_S = 0.05
"""Between two looks whether a host that is down has come back, for somebody who waits with a limit."""

DISK_S = 30.0
"""How long a host may take to put in an empty disk: some ten megabytes are reserved and flushed."""

EARLY_LINES_MAX = 1000
"""Events kept while the hosts come up: a handful happen in that time."""

HOST_PROGRAM = ("-m", "pairsync.testing.faultyhost")
"""Arguments of the interpreter."""

DISK_COMMANDS = ("ok", "fail", "hang", "full", "replace")
"""What can be done to a disk: its states, and ``replace``, after which another one is there that is ok."""


class _Host:
    """One host: its process, and what was done to it by command."""

    def __init__(self, process: LabProcess) -> None:
        self.process = process
        self.cut = False  # whether the link is cut here, as far as this process was told
        self.disks: dict[str, str] = {}  # what was done to its disks, by volume; others are ok


class Lab:
    """The supervisor."""

    def __init__(
        self, directory: Path, lab: LabFile, tell: Callable[[Mapping[str, Any]], None], nursery: trio.Nursery
    ) -> None:
        self._directory = directory
        self._lab = lab
        self._tell = tell
        self._nursery = nursery
        self._hosts = {name: _Host(self._process(name)) for name in (HOSTS[:1] if lab.single else HOSTS)}
        self._ready = False  # the line that says so has been told
        self._early: deque[Mapping[str, Any]] = deque(maxlen=EARLY_LINES_MAX)  # to be told behind it
        self._cut = False  # the link, by command: it stays so when hosts are started again

    # ------------------------------------------------------------------ processes

    def _process(self, name: str) -> LabProcess:
        log = self._directory / name / "log"
        return LabProcess(f"host {name}", log, self._nursery, self._said, partial(self._gone, name))

    def _said(self, line: Mapping[str, Any]) -> None:
        if self._ready:
            self._tell(line)
        else:
            self._early.append(line)

    def _gone(self, name: str, code: int) -> None:
        if self._ready:
            self._tell({"event": "host-ended", "host": name, "code": code})

    def _host(self, name: object) -> _Host:
        try:
            return self._hosts[str(name)]
        except KeyError:
            raise ConfigError(f"no host {name!r}; there are {', '.join(self._hosts)}") from None

    async def start(self, name: str) -> None:
        """Start a host and return when it serves; nothing if it runs.

        `BackendError`, with what became of it and why, as its log says, if it does not come up.
        """
        host = self._host(name)
        async with host.process.starting:
            if not host.process.running:
                await self._spawn(name, host)
        await host.process.until_ready()
        if host.cut is not self._cut:  # the link was cut or mended meanwhile
            await self._ask(name, "cut" if self._cut else "heal")
            host.cut = self._cut

    async def _spawn(self, name: str, host: _Host) -> None:
        file = self._directory / name / "host.toml"
        words = [str(file), "--follow-stdin", *(["--cut"] if self._cut else [])]
        words += [f"--disk={volume}={state}" for volume, state in host.disks.items() if state != "ok"]
        host.cut = "--cut" in words
        await host.process.spawn([*HOST_PROGRAM, *words])

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when the process is gone."""
        await self._host(name).process.kill()

    def pause(self, name: str) -> None:
        """SIGSTOP: the host stands still and says nothing, until `resume`."""
        self._host(name).process.pause()
        self._tell({"event": "host-paused", "host": name})

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._host(name).process.resume()
        self._tell({"event": "host-resumed", "host": name})

    async def stop(self) -> None:
        """End both hosts in order: the active first, so that its last flush reaches the standby."""
        for name, host in self._hosts.items():
            if host.process.running:
                if host.process.paused:
                    host.process.resume()
                await self._let_go(name, host)
                await host.process.stop()

    async def _let_go(self, name: str, host: _Host) -> None:
        """A disk that hangs by command must not hold up the end."""
        for volume, state in host.disks.items():
            if state == "hang":
                with suppress(PairsyncError):  # then it is killed after a while
                    await self._ask(name, "disk", volume=volume, state="fail")

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
            if host.process.running:
                await self._ask(name, "disk", seconds=DISK_S, volume=volume, state=what)
            elif what == "replace":
                path = self._directory / name / f"{volume}.img"
                pair_id = bytes.fromhex(self._lab.pair_id)
                await trio.to_thread.run_sync(put_empty_disk, path, volume, pair_id, size_bytes)
        host.disks[volume] = "ok" if what == "replace" else what
        text = f"the disk of {volume}: {what} (by command)"
        self._tell({"event": "disk", "host": name, "volume": volume, "disk": what, "text": text})

    async def scrub(self, volume: str, *, repair: bool) -> Answer:
        """Have both hosts read a volume and compare it with its digests; whoever asks sets a time limit."""
        if self._lab.single:
            raise ConfigError("this lab has a single host: there is nothing to compare")
        if volume not in self._lab.volumes:
            raise ConfigError(f"no volume {volume!r}; there are {', '.join(self._lab.volumes)}")
        request = {"do": "scrub", "volume": volume, "repair": repair}
        return await ask(control_socket_of(self._directory, "a"), request)

    # ------------------------------------------------------------------ what is told

    def tell_ready(self) -> None:
        """Say that all is up, then what has happened meanwhile: who reads expects that line first."""
        self._tell(self.ready_line())
        self._ready = True
        while self._early:
            self._tell(self._early.popleft())

    def ready_line(self) -> dict[str, Any]:
        """The line that says that all is up."""
        return {"event": "ready", "hosts": {name: self._describe(name) for name in self._hosts}}

    def _describe(self, name: str) -> dict[str, Any]:
        host = self._hosts[name]
        return {
            "pid": None if host.process.process is None else host.process.process.pid,
            "link": host.process.about.get("link"),
            "volumes": {
                volume: {
                    "uri": self._uri(volume) if name == "a" else None,
                    "path": str(self._directory.absolute() / name / f"{volume}.img"),
                }
                for volume in self._lab.volumes
            },
        }

    def _uri(self, volume: str) -> str:
        where = quote(str(nbd_socket_of(self._directory, "a")), safe="/")
        return f"nbd+unix:///{quote(volume, safe='')}?socket={where}"

    async def status(self) -> dict[str, Any]:
        """Both hosts and what they say of themselves."""
        hosts: dict[str, Any] = {}
        for name, host in self._hosts.items():
            hosts[name] = {"running": host.process.running, **self._describe(name), "guest": None}
            hosts[name]["paused"] = host.process.paused
            hosts[name]["disks"] = {volume: host.disks.get(volume, "ok") for volume in self._lab.volumes}
            if host.process.running:
                try:
                    answer = await self._ask(name, "status")
                except PairsyncError as error:
                    hosts[name]["error"] = str(error)
                else:
                    hosts[name]["guest"] = answer["guest"]
                    hosts[name]["process"] = answer["process"]
        guest = hosts["a"]["guest"]
        in_sync = guest is not None and guest["in_sync"]
        return {"directory": str(self._directory.absolute()), "in_sync": in_sync, "hosts": hosts}

    def handlers(self) -> dict[str, Handler]:
        """What the supervisor's control socket understands."""

        async def status(_: Mapping[str, Any]) -> Answer:
            return await self.status()

        async def kill(request: Mapping[str, Any]) -> Answer:
            await self.kill(str(request.get("host")))
            return {}

        async def start(request: Mapping[str, Any]) -> Answer:
            await self.start(str(request.get("host")))
            return {"host": self._describe(str(request.get("host")))}

        async def pause(request: Mapping[str, Any]) -> Answer:
            await trio.lowlevel.checkpoint()
            self.pause(str(request.get("host")))
            return {}

        async def resume(request: Mapping[str, Any]) -> Answer:
            await trio.lowlevel.checkpoint()
            self.resume(str(request.get("host")))
            return {}

        async def cut(_: Mapping[str, Any]) -> Answer:
            return await self._both("cut")

        async def heal(_: Mapping[str, Any]) -> Answer:
            return await self._both("heal")

        async def wait(_: Mapping[str, Any]) -> Answer:
            await self._wait_in_sync()
            return {}

        async def disk(request: Mapping[str, Any]) -> Answer:
            host, volume, what = (str(request.get(key)) for key in ("host", "volume", "disk"))
            await self.disk(host, volume, what)
            return {"host": host, "volume": volume, "disk": what}

        async def scrub(request: Mapping[str, Any]) -> Answer:
            return await self.scrub(str(request.get("volume")), repair=request.get("repair") is True)

        link = {"cut": cut, "heal": heal, "wait": wait, "scrub": scrub}
        process = {"kill": kill, "start": start, "pause": pause, "resume": resume}
        return {"status": status, "disk": disk, **process, **link}

    async def _both(self, what: str) -> Answer:
        if self._lab.single:
            raise ConfigError("this lab has a single host and no link")
        self._cut = what == "cut"  # also for hosts that are being started
        with trio.CancelScope(shield=True):  # both or none, even if who asked has hung up
            for name, host in self._hosts.items():
                if host.process.running and host.process.ready.is_set():
                    await self._ask(name, what)
                    host.cut = self._cut
        self._tell({"event": f"link-{what}"})
        return {}

    async def _ask(self, name: str, what: str, *, seconds: float = ANSWER_S, **more: str) -> Answer:
        """Ask a host; `PeerLost` if it does not answer, or not in time."""
        with trio.move_on_after(seconds):
            return await ask(control_socket_of(self._directory, name), {"do": what, **more})
        raise PeerLost(f"host {name} did not answer within {seconds:g} s")

    async def _wait_in_sync(self) -> None:
        if self._lab.single:
            raise ConfigError("this lab has a single host: it is never in sync")
        while True:
            host = self._hosts["a"]
            try:
                await ask(control_socket_of(self._directory, "a"), {"do": "wait-in-sync"})
            except PeerLost:
                await trio.sleep(RETRY_S)  # host a is down; whoever waits has set a time limit
                if not host.process.running and not self._ready:
                    raise
            else:
                return


async def run_lab(directory: Path, lab: LabFile, tell: Callable[[Mapping[str, Any]], None]) -> None:
    """Bring the lab up, tell ``ready`` and every event, until SIGINT or SIGTERM.

    The caller holds the directory's lock.  Raises `BackendError` if a host does not come up.
    """
    try:
        async with trio.open_nursery() as nursery:
            supervisor = Lab(directory, lab, tell, nursery)
            try:
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    await _serve(supervisor, directory, lab, nursery, signals)
            finally:
                with trio.CancelScope(shield=True):
                    await supervisor.stop()
                nursery.cancel_scope.cancel()
    finally:
        remove_sockets(directory)


async def _serve(
    supervisor: Lab,
    directory: Path,
    lab: LabFile,
    nursery: trio.Nursery,
    signals: Any,
) -> None:
    async with trio.open_nursery() as starting:

        async def interrupt() -> None:
            async for _ in signals:
                starting.cancel_scope.cancel()
                return

        starting.start_soon(interrupt)
        async with trio.open_nursery() as hosts:  # starting is mostly computing: use both cores
            for name in HOSTS[:1] if lab.single else HOSTS:
                hosts.start_soon(supervisor.start, name)
        await nursery.start(serve_control, control_socket_of(directory), supervisor.handlers())
        supervisor.tell_ready()
        await trio.sleep_forever()
