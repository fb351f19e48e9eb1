"""What both hosts and their clients say, all the time: who serves, and whether two do at once.

A host is asked whether the guest runs there.  Its answer was true at some moment between question and answer,
so one answer proves little; but two of the same term, one wholly before and one wholly after an answer of the
other host, prove that both have served at once (DESIGN rules 1 and 10).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from pairsync.errors import PairsyncError
from pairsync.node.control import ask
from pairsync.node.labfile import HOSTS, control_socket_of, nbd_socket_of
from pairsync.testing.ledger import BLOCK, Ledger
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.programs import ProgramError

__all__ = [
    "SIZE_BYTES",
    "DoorWriter",
    "Place",
    "Sighting",
    "Watch",
    "longest_gap",
    "overlap",
    "places_of_lab",
]

LOOK_S: Final = 0.05
"""Between two looks at a host."""

CONNECT_S: Final = 0.02
"""Between two attempts of a client to be served by a host that is down."""

SIGHTINGS_MAX: Final = 2000
"""Answers of a host that are kept: those of some minutes."""

BLOCKS: Final = 2048
WRITE_S: Final = 0.01
"""A client writes one block each so often, in turn: it comes round after 20 s, so a write that was lost is
found before another one hides it."""

SIZE_BYTES: Final = 2 * BLOCKS * BLOCK
"""Of the volume that the writers of both doors share."""


class Place(NamedTuple):
    """Where a host is asked how it is, and where its clients are served."""

    control: Path
    door: Path


def places_of_lab(directory: Path) -> dict[str, Place]:
    """Those of a lab's hosts."""
    return {host: Place(control_socket_of(directory, host), nbd_socket_of(directory, host)) for host in HOSTS}


@dataclass(frozen=True, slots=True)
class Sighting:
    """A host's answer, when it was asked for and when it came, and whether the guest runs there."""

    host: str
    asked_s: float
    came_s: float
    term: int
    serves: bool


def overlap(sightings: Sequence[Sighting]) -> tuple[Sighting, Sighting, Sighting] | None:
    """Three answers which prove that two hosts have served at once: one host, the other, the first again."""
    serving = sorted((each for each in sightings if each.serves), key=lambda each: each.asked_s)
    for host in {each.host for each in serving}:
        own = [each for each in serving if each.host == host]
        others = [each for each in serving if each.host != host]
        for before, later in itertools.pairwise(own):
            if before.term != later.term:
                continue
            for other in others:
                if before.came_s <= other.asked_s and other.came_s <= later.asked_s:
                    return before, other, later
    return None


def longest_gap(answers: Sequence[float], since_s: float, until_s: float) -> float:
    """The longest time without an answer between two moments."""
    marks = [since_s, *sorted(each for each in answers if since_s < each < until_s), until_s]
    return max(later - earlier for earlier, later in itertools.pairwise(marks))


class DoorWriter:
    """A client of one host's door, which connects anew for as long as that host is down."""

    def __init__(
        self, door: Path, seed: int, *, first: int, count: int = BLOCKS, volume: str = "vda", depth: int = 1
    ) -> None:
        """``door``: an NBD socket; ``first``, ``count``: the blocks of ``volume`` that nobody else writes.

        ``depth``: requests at once.  With more than one they are of all kinds and sizes, at random places;
        with one, single blocks are written in turn, so that none hides the loss of another.
        """
        self.answers: deque[float] = deque()
        """When each of its writes was acknowledged, since `forget`."""
        self._path = str(door)
        self._volume = volume
        self._depth = depth
        self.ledger = Ledger(
            seed,
            first=first,
            count=count,
            blocks_max=depth,
            zeroes=depth > 1,
            in_turn=depth == 1,
            pause_s=WRITE_S,
            tell=self.answers.append,
        )
        self._serving = False  # writes are sent, or one is under way
        self._resting = False  # no more are sent, so that what was written can be read
        self._rests = trio.Event()  # and none is under way
        self._go = trio.Event()
        self._connection = trio.CancelScope()

    @property
    def errors(self) -> list[int]:
        """Writes that were answered with an error."""
        return self.ledger.errors

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            try:
                client = await NbdClient.connect_unix(self._path)
            except OSError:
                await trio.sleep(CONNECT_S)
                continue
            async with client:
                with (
                    suppress(PairsyncError),
                    trio.CancelScope() as self._connection,
                ):  # the host ends meanwhile
                    await client.negotiate(self._volume)
                    await self._serve(client)

    async def _serve(self, client: NbdClient) -> None:
        while True:
            self._serving = True
            try:
                if not await self.ledger.run(client, depth=self._depth, stop=lambda: self._resting):
                    return
            finally:
                self._serving = False
                self._rests.set()
            await self._go.wait()

    def hang_up(self) -> None:
        """Connect anew."""
        self._connection.cancel()

    async def check(self, client: NbdClient, *, seconds: float) -> bool:
        """Rest, and read what was acknowledged through any door; `ProgramError` if something is missing.

        False: a write is under way that nobody answers, and nothing was read.
        """
        self._resting, self._rests, self._go = True, trio.Event(), trio.Event()
        try:
            with trio.move_on_after(seconds):
                if self._serving:
                    await self._rests.wait()
                await self.ledger.check(client)
                return True
            return False
        finally:
            self._resting = False
            self._go.set()


class Watch:
    """Both hosts' statuses and both doors' writers; `run` is its life."""

    def __init__(self, places: Mapping[str, Place], seed: int) -> None:
        self._places = places
        self.latest: dict[str, Mapping[str, Any]] = {}
        """What each host has said of its guest last; missing while it does not answer."""
        self.sightings: deque[Sighting] = deque(maxlen=SIGHTINGS_MAX)
        self.writers = {
            host: DoorWriter(place.door, seed + at, first=at * BLOCKS)
            for at, (host, place) in enumerate(places.items())
        }

    async def run(self) -> None:
        """Look and write until cancelled."""
        async with trio.open_nursery() as nursery:
            for host in self._places:
                nursery.start_soon(self._look, host)
                nursery.start_soon(self.writers[host].run)

    async def _look(self, host: str) -> None:
        while True:
            asked_s = trio.current_time()
            try:
                guest = (await ask(self._places[host].control, {"do": "status"}))["guest"]
            except PairsyncError:
                self.latest.pop(host, None)
            else:
                self.latest[host] = guest
                came_s = trio.current_time()
                term = guest["grant"]["term"] if guest["grant"] else 0
                self.sightings.append(Sighting(host, asked_s, came_s, term, _runs(guest)))
            await trio.sleep(LOOK_S)

    # ------------------------------------------------------------------ questions

    def forget(self) -> None:
        """What was seen so far does not matter any more."""
        self.sightings.clear()
        for writer in self.writers.values():
            writer.answers.clear()

    def stand_still(self, host: str) -> None:
        """That host was stopped: what it said last does not count any more."""
        self.latest.pop(host, None)

    def active(self) -> str | None:
        """The host that says that the guest runs there."""
        return next((host for host, guest in self.latest.items() if _runs(guest)), None)

    def grant(self, host: str) -> Mapping[str, Any] | None:
        """The grant that a host knows of."""
        guest = self.latest.get(host)
        return None if guest is None else guest["grant"]

    def answers(self) -> list[float]:
        """When writes were acknowledged, at either door."""
        return sorted(each for writer in self.writers.values() for each in writer.answers)

    @property
    def errors(self) -> int:
        """Writes that were answered with an error."""
        return sum(len(writer.errors) for writer in self.writers.values())

    async def check(self, client: NbdClient, *, seconds: float) -> list[str]:
        """What was acknowledged is there, read through ``client``; the doors whose clients wait too long."""
        return [
            host for host, writer in self.writers.items() if not await writer.check(client, seconds=seconds)
        ]

    def judge(self) -> None:
        """`ProgramError` if two hosts have served at once."""
        found = overlap(self.sightings)
        if found is not None:
            raise ProgramError(f"two hosts have served at once: {found}")


def _runs(guest: Mapping[str, Any]) -> bool:
    return guest["role"] == "active" and not guest["paused"]
