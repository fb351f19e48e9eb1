"""The cables of a lab, and what it is to cut one.

On loopback there are none that could be pulled: the hosts are told, and let nothing through.  In namespaces
they are real ones and pulled for real, of which no host is told: it finds out as it would anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from pairsync.errors import ConfigError

from .labfile import ALL, LINK, LOOPBACK, LabFile, cables_of, ends_of
from .labprocess import LabProcess
from .namespaces import Cable, Namespaces, open_namespaces

__all__ = ["Cables", "RealCables", "ToldCables", "open_network"]


@asynccontextmanager
async def open_network(lab: LabFile) -> AsyncIterator[Namespaces | None]:
    """What the processes of the lab run in; None: where everything else runs."""
    if lab.network == LOOPBACK:
        yield None
        return
    cables = [
        Cable(cable, {name: f"{lab.address(name, other)}/24" for name, other in ends_of(cable)})
        for cable in lab.cables
    ]
    async with open_namespaces(cables) as namespaces:
        yield namespaces


class Cables(ABC):
    """Which cables are cut, by command; what is cut stays so for hosts that are started again."""

    def __init__(self, there: Collection[str]) -> None:
        self._there = tuple(there)
        self._cut: set[str] = set()

    @property
    def cut(self) -> list[str]:
        """Those that are cut, in order."""
        return sorted(self._cut)

    async def turn(self, which: str, *, cut: bool) -> tuple[str, ...]:
        """Cut or mend a cable, or all of them; which ones.  `ConfigError` if there is no such."""
        if not self._there:
            raise ConfigError("this lab has a single host and no link")
        if which not in {*self._there, ALL}:
            raise ConfigError(f"no cable {which!r}; there are {', '.join((*self._there, ALL))}")
        cables = self._there if which == ALL else (which,)
        self._cut = self._cut | set(cables) if cut else self._cut - set(cables)
        with trio.CancelScope(shield=True):  # all of it, even if who asked has hung up
            await self._turned(cables)
        return cables

    @abstractmethod
    async def _turned(self, cables: tuple[str, ...]) -> None:
        """Make these what they are now."""

    @abstractmethod
    def starting(self, name: str) -> list[str]:
        """A host is about to be started: with these arguments besides its own."""

    @abstractmethod
    async def started(self, name: str) -> None:
        """A host has come up, or goes on."""


class ToldCables(Cables):
    """On loopback, by telling the hosts."""

    def __init__(
        self,
        there: Collection[str],
        hosts: Mapping[str, LabProcess],
        ask: Callable[[str, str], Coroutine[Any, Any, object]],
    ) -> None:
        """``ask``: a host, by its name, to do something."""
        super().__init__(there)
        self._hosts = hosts
        self._ask = ask
        self._told: dict[str, set[str]] = {name: set() for name in hosts}  # that are cut, of each one's own

    async def _turned(self, cables: tuple[str, ...]) -> None:
        for name, process in self._hosts.items():
            if process.running and process.ready.is_set() and not process.paused:
                for cable in cables:
                    await self._tell(name, cable)

    def starting(self, name: str) -> list[str]:
        """It begins with the link cut; its cable to the witness is cut once it is there."""
        self._told[name] = {LINK} & self._cut
        return ["--cut"] if LINK in self._cut else []

    async def started(self, name: str) -> None:
        """Cut or mended meanwhile."""
        for cable in cables_of(name):
            await self._tell(name, cable)

    async def _tell(self, name: str, cable: str) -> None:
        """Have a host know whether that cable is cut, if it has an end of it."""
        told = self._told[name]
        if cable not in cables_of(name) or (cable in told) is (cable in self._cut):
            return
        what = "cut" if cable in self._cut else "heal"
        await self._ask(name, what if cable == LINK else f"{what}-witness")
        told ^= {cable}


class RealCables(Cables):
    """In namespaces."""

    def __init__(self, there: Collection[str], namespaces: Namespaces) -> None:
        super().__init__(there)
        self._namespaces = namespaces

    async def _turned(self, cables: tuple[str, ...]) -> None:
        for cable in cables:
            await self._namespaces.plug(cable, up=cable not in self._cut)

    def starting(self, name: str) -> list[str]:
        """Nothing: a cable is what it is, whoever comes and goes."""
        del name
        return []

    async def started(self, name: str) -> None:
        """Nothing."""
        del name
        await trio.lowlevel.checkpoint()
