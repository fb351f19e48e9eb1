"""Network namespaces, and cables between them that can be pulled.

A namespace has no name here.  It lives for as long as somebody holds it, which are a descriptor of this
process and whoever runs inside: nothing is left behind, however this process ends, and the same addresses can
be in use many times at once.

Every cable runs through a switchboard, a namespace of its own, in which its two halves meet in a bridge.
Pulled there, it is for both ends what a pulled cable is: the carrier is gone, addresses and routes stay,
connections neither end nor answer, and new ones find nobody.  (``ip link set down`` at an end would tell that
end at once that its network is unreachable, which no cable does.)

To look inside: ``nsenter --net=/proc/PID/ns/net ip address``, with any process that runs there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from pairsync.errors import BackendError, ConfigError

__all__ = ["Cable", "Namespaces", "obstacle", "open_namespaces"]

PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
"""What all this is done with, and the Debian package of each."""

TOOL_S = 10.0
"""How long one of them may take: the kernel does what it is told within milliseconds."""

BOARD = "(switchboard)"
"""Among the namespaces the one of the cables; no other one may be called so."""


class Cable(NamedTuple):
    """Two ends, each the name of a namespace and its address there, such as ``10.1.0.1/24``.

    ``name`` is that of the interface at both ends: at most 13 letters, each cable's another one.
    """

    name: str
    ends: Mapping[str, str]


def obstacle() -> str | None:
    """Why there can be no namespaces here, in words; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PROGRAMS[program] for program in missing))
        return f"missing: {', '.join(missing)}; on Debian: apt-get install {packages}"
    return None


@asynccontextmanager
async def open_namespaces(cables: Sequence[Cable]) -> AsyncIterator[Namespaces]:
    """A namespace for every end that is named, with its loopback and all cables plugged in.

    What runs inside must have ended when the block is left.  `ConfigError` if there can be none here,
    `BackendError` with the system's own words if it refuses.
    """
    if (reason := obstacle()) is not None:
        raise ConfigError(reason)
    namespaces = Namespaces()
    try:
        await trio.to_thread.run_sync(namespaces.lay, cables)
        yield namespaces
    finally:
        namespaces.close()


class Namespaces:
    """See the module; made by `open_namespaces`."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}  # what keeps each namespace alive

    def lay(self, cables: Sequence[Cable]) -> None:
        """Make the namespaces and lay the cables; blocks for some tenths of a second."""
        for name in dict.fromkeys([BOARD, *(end for cable in cables for end in cable.ends)]):
            self._held[name] = _new_namespace()
            self._ip(name, "link set lo up")
        for cable in cables:
            halves = []
            for port, end in zip(_ports(cable.name), cable.ends, strict=True):
                halves.append(f"link add {port} type veth peer name {cable.name} netns {self._path(end)}")
                halves.append(f"link set {port} master {cable.name} up")
            bridge = f"link add {cable.name} type bridge"
            self._ip(BOARD, bridge, *halves, f"link set {cable.name} up")
            for end, address in cable.ends.items():
                self._ip(end, f"address add {address} dev {cable.name}", f"link set {cable.name} up")

    def inside(self, name: str) -> tuple[str, ...]:
        """Words in front of a command line that is to run in that namespace, as the same process."""
        return ("nsenter", f"--net={self._path(name)}", "--")

    async def plug(self, cable: str, *, up: bool) -> None:
        """Pull a cable, or plug it in again."""
        state = "up" if up else "down"
        commands = [f"link set {port} {state}" for port in _ports(cable)]
        await trio.to_thread.run_sync(self._ip, BOARD, *commands)

    def close(self) -> None:
        """Let go; the system takes each down as soon as nobody runs in it."""
        for held in self._held.values():
            os.close(held)
        self._held.clear()

    def _path(self, name: str) -> str:
        return f"/proc/{os.getpid()}/fd/{self._held[name]}"

    def _ip(self, name: str, *commands: str) -> None:
        """Have iproute2 do these in a namespace."""
        try:
            done = subprocess.run(  # noqa: S603
                [*self.inside(name), "ip", "-batch", "-"],
                input="\n".join(commands),
                capture_output=True,
                text=True,
                timeout=TOOL_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"ip: {error}") from error
        if done.returncode != 0:
            said = "; ".join(done.stderr.strip().splitlines()) or f"exit status {done.returncode}"
            raise BackendError(f"ip: {said} ({'; '.join(commands)})")


def _ports(cable: str) -> tuple[str, str]:
    """The interfaces of a cable's halves in the switchboard."""
    return f"{cable}.0", f"{cable}.1"


def _new_namespace() -> int:
    """A descriptor that keeps a new namespace alive."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; read -r _"],  # noqa: S607
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as first:
        if first.stdout is None or first.stderr is None:
            raise BackendError("unshare was started without pipes")
        if not first.stdout.read(1):  # it says so when it is inside; its standard input ends with the block
            raise BackendError(f"no network namespace: {first.stderr.read().decode().strip()}")
        return os.open(f"/proc/{first.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
