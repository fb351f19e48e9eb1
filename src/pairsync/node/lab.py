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

import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio

from pairsync.errors import BackendError, ConfigError, PairsyncError, PeerLost

from .control import Answer, Handler, ask, serve_control
from .hostlog import last_words
from .labfile import HOSTS, LabFile, control_socket_of, nbd_socket_of, put_empty_disk, remove_sockets

__all__ = ["DISK_COMMANDS", "Lab", "run_lab"]

READY_S = 30.0
"""How long a host may take until it serves."""

ANSWER_S = 5.0
"""How long a host may take to answer; one that is stopped or hangs must not hold up what concerns both."""

RETRY_S = 0.05
"""Between two looks whether a host that is down has come back, for somebody who waits with a limit."""

STOP_S = 40.0
"""How long a host may take to close in order: its own limit and a reserve."""


DISK_S = 30.0
"""How long a host may take to put in an empty disk: some ten megabytes are reserved and flushed."""

EARLY_LINES_MAX = 1000
"""Events kept while the hosts come up: a handful happen in that time."""

HOST_PROGRAM = ("-m", "pairsync.testing.faultyhost")
"""Arguments of the interpreter."""

DISK_COMMANDS = ("ok", "fail", "hang", "full", "replace")
"""What can be done to a disk: its states, and ``replace``, after which another one is there that is ok."""


class _HostProcess:
    """One host's process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: trio.Process | None = None  # None: not running
        self.link: str | None = None  # its listening address, once it is ready
        self.cut = False  # whether the link is cut here, as far as this process was told
        self.log_begin_bytes = 0  # where its part of the log begins
        self.disks: dict[str, str] = {}  # what was done to its disks, by volume; others are ok
        self.starting = trio.Lock()  # held from the decision to make a process until there is one
        self.ready = trio.Event()  # of the present or last process: it serves
        self.ended = trio.Event()  # likewise: it is gone


class Lab:
    """The supervisor."""

    def __init__(
        self, directory: Path, lab: LabFile, tell: Callable[[Mapping[str, Any]], None], nursery: trio.Nursery
    ) -> None:
        self._directory = directory
        self._lab = lab
        self._tell = tell
        self._nursery = nursery
        self._hosts = {name: _HostProcess(name) for name in (HOSTS[:1] if lab.single else HOSTS)}
        self._ready = False  # the line that says so has been told
        self._early: deque[Mapping[str, Any]] = deque(maxlen=EARLY_LINES_MAX)  # to be told behind it
        self._cut = False  # the link, by command: it stays so when hosts are started again

    # ------------------------------------------------------------------ processes

    def _host(self, name: object) -> _HostProcess:
        try:
            return self._hosts[str(name)]
        except KeyError:
            raise ConfigError(f"no host {name!r}; there are {', '.join(self._hosts)}") from None

    async def start(self, name: str) -> None:
        """Start a host and return when it serves; nothing if it runs.

        `BackendError`, with what became of it and why, as its log says, if it does not come up.
        """
        host = self._host(name)
        async with host.starting:
            if host.process is None:
                await self._spawn(host)
        process, ready, ended = host.process, host.ready, host.ended
        with trio.move_on_after(READY_S):
            async with trio.open_nursery() as nursery:

                async def watch_end() -> None:
                    await ended.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch_end)
                await ready.wait()
                nursery.cancel_scope.cancel()
        if not ready.is_set():
            fate = _fate(process)
            if host.process is not None and host.ended is ended:
                host.process.kill()
            words = last_words(self._directory / name / "log", host.log_begin_bytes)
            raise BackendError(f"host {name} did not come up ({fate}): {words or 'it said nothing'}")
        if host.cut is not self._cut:  # the link was cut or mended meanwhile
            await self._ask(name, "cut" if self._cut else "heal")
            host.cut = self._cut

    async def _spawn(self, host: _HostProcess) -> None:
        directory = self._directory / host.name
        words = [str(directory / "host.toml"), "--follow-stdin", *(["--cut"] if self._cut else [])]
        words += [f"--disk={volume}={state}" for volume, state in host.disks.items() if state != "ok"]
        with (directory / "log").open("ab") as log:
            host.log_begin_bytes = log.tell()
            process = await trio.lowlevel.open_process(
                [sys.executable, *HOST_PROGRAM, *words],
                stdin=-1,
                stdout=-1,
                stderr=log,
                start_new_session=True,  # a Ctrl-C of the terminal is the supervisor's to handle
            )
        host.process = process
        host.cut = "--cut" in words
        host.ready = trio.Event()
        host.ended = trio.Event()
        self._nursery.start_soon(self._follow, host, process, host.ready)

    async def _follow(self, host: _HostProcess, process: trio.Process, ready: trio.Event) -> None:
        """Pass on what the host prints, until it ends.  Cancelled, it leaves the process to `stop`."""
        try:
            await self._pass_on(host, process, ready)
        finally:
            host.ended.set()

    async def _pass_on(self, host: _HostProcess, process: trio.Process, ready: trio.Event) -> None:
        if process.stdout is None:
            raise BackendError(f"host {host.name} has no standard output")
        buffer = bytearray()
        async for chunk in process.stdout:
            buffer += chunk
            while (end := buffer.find(b"\n")) >= 0:
                line = json.loads(bytes(buffer[:end]))
                del buffer[: end + 1]
                if line["event"] == "ready":
                    host.link = line["link"]
                    ready.set()
                elif self._ready:
                    self._tell(line)
                else:
                    self._early.append(line)
        code = await process.wait()
        await process.stdout.aclose()
        if process.stdin is not None:
            await process.stdin.aclose()
        host.process = None
        host.link = None
        if self._ready:
            self._tell({"event": "host-ended", "host": host.name, "code": code})

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when the process is gone."""
        host = self._host(name)
        if host.process is None:
            raise ConfigError(f"host {name} is not running")
        host.process.kill()
        await host.ended.wait()

    async def stop(self) -> None:
        """End both hosts in order: the active first, so that its last flush reaches the standby."""
        for host in self._hosts.values():
            process = host.process
            if process is None:
                continue
            await self._let_go(host)
            process.terminate()
            with trio.move_on_after(STOP_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await host.ended.wait()  # its last lines have been passed on

    async def _let_go(self, host: _HostProcess) -> None:
        """A disk that hangs by command must not hold up the end."""
        for volume, state in host.disks.items():
            if state == "hang":
                with suppress(PairsyncError):  # then it is killed after a while
                    await self._ask(host.name, "disk", volume=volume, state="fail")

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
            if host.process is not None:
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
            "pid": None if host.process is None else host.process.pid,
            "link": host.link,
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
            hosts[name] = {"running": host.process is not None, **self._describe(name), "guest": None}
            hosts[name]["disks"] = {volume: host.disks.get(volume, "ok") for volume in self._lab.volumes}
            if host.process is not None:
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
        return {"status": status, "kill": kill, "start": start, "disk": disk, **link}

    async def _both(self, what: str) -> Answer:
        if self._lab.single:
            raise ConfigError("this lab has a single host and no link")
        self._cut = what == "cut"  # also for hosts that are being started
        with trio.CancelScope(shield=True):  # both or none, even if who asked has hung up
            for name, host in self._hosts.items():
                if host.process is not None and host.ready.is_set():
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
                if host.process is None and not self._ready:
                    raise
            else:
                return


def _fate(process: trio.Process | None) -> str:
    """How a process has ended, in words."""
    status = None if process is None else process.returncode
    if status is None:
        return f"not within {READY_S:g} s"
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


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
