"""`Ledger`: a client that writes as fast as it can and remembers what was promised to it, block by block.

Every write carries a version that is in every 16 bytes of every block that it fills, so a block that is read
later says which write it came from, or that it came from none.  What may stand in a block is its *history*:
the last version that was acknowledged, and those that were sent since and never answered.  `check` compares
with that, and then takes what it found for settled: a block may not change its mind a second time.

Requests that are under way at the same time never share a block, so "last" is well defined.

A block that is written again hides what became of it before.  Who looks for a loss some time after it may
have happened writes the blocks ``in_turn`` and slowly enough (``pause_s``) not to come round before he looks.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import trio

from pairsync.errors import PeerLost
from pairsync.nbd import constants as c

from .nbd_client import NbdClient
from .programs import ProgramError

__all__ = ["BLOCK", "ZEROES", "Ledger", "content_of"]

BLOCK = 4096
ZEROES = bytes(BLOCK)
_STAMP = struct.Struct(">QQ")


def content_of(block: int, version: int) -> bytes:
    """What a write of that version leaves in that block; versions <= 0 are zeroes."""
    return _STAMP.pack(block, version) * (BLOCK // _STAMP.size) if version > 0 else ZEROES


class Ledger:
    """Blocks ``first .. first + count`` of one volume, written by one client at a time."""

    def __init__(
        self,
        seed: int,
        *,
        first: int = 0,
        count: int,
        blocks_max: int = 8,
        zeroes: bool = True,
        in_turn: bool = False,
        pause_s: float = 0.0,
        tell: Callable[[float], None] = lambda _: None,
    ) -> None:
        """``tell`` hears the time (`trio.current_time`) of each answer without an error."""
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._first = first
        self._count = count
        self._blocks_max = blocks_max
        self._zeroes = zeroes
        self._in_turn = in_turn
        self._pause_s = pause_s
        self._tell = tell
        self._at = 0  # where the next request begins, if they go in turn
        self._version = 0
        # block -> what may stand in it: the acknowledged version first, then those that were never answered
        self._history: dict[int, list[int]] = {}
        self._moved = trio.lowlevel.ParkingLot()
        self.acknowledged = 0
        """Requests that were answered without an error."""
        self.errors: list[int] = []
        """Errors that were answered, as the protocol numbers them."""
        self.slowest_s = 0.0
        """Longest time that a request took to be answered."""

    async def wait_acknowledged(self, count: int) -> None:
        """Return when that many more requests have been acknowledged than now."""
        goal = self.acknowledged + count
        while self.acknowledged < goal:
            await self._moved.park()

    async def run(
        self,
        client: NbdClient,
        *,
        requests: int | None = None,
        depth: int = 16,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Write until ``requests`` were sent, or ``stop`` says so; False if the server hung up before.

        All that was sent has been answered when it returns True.
        """
        under_way: dict[int, tuple[int, range, float]] = {}  # cookie -> version, blocks, when sent
        busy: set[int] = set()
        left = requests
        try:
            while True:
                more = not stop() and left != 0
                if not under_way and not more:
                    return True
                if more and len(under_way) < depth:
                    await self._send(client, under_way, busy)
                    left = None if left is None else left - 1
                else:
                    await self._answer(client, under_way, busy)
        except PeerLost:
            return False

    async def _send(
        self, client: NbdClient, under_way: dict[int, tuple[int, range, float]], busy: set[int]
    ) -> None:
        if self._pause_s:
            await trio.sleep(self._pause_s)
        while True:
            start = self._first + (self._at if self._in_turn else self._random.randrange(self._count))
            stop = min(start + 1 + self._random.randrange(self._blocks_max), self._first + self._count)
            blocks = range(start, stop)
            self._at = (stop - self._first) % self._count
            if busy.isdisjoint(blocks):
                break
        busy.update(blocks)
        self._version += 1
        draw = self._random.random()
        zero = self._zeroes and draw < 0.1
        version = -self._version if zero else self._version
        for block in blocks:
            self._history.setdefault(block, [0]).append(version)
        offset, length = start * BLOCK, len(blocks) * BLOCK
        if zero:
            kind = c.CMD_TRIM if draw < 0.05 else c.CMD_WRITE_ZEROES
            cookie = await client.request(kind, offset, length)
        else:
            payload = b"".join(content_of(block, version) for block in blocks)
            flags = c.CMD_FLAG_FUA if draw > 0.98 else 0
            cookie = await client.request(c.CMD_WRITE, offset, length, flags=flags, payload=payload)
        under_way[cookie] = version, blocks, trio.current_time()

    async def _answer(
        self, client: NbdClient, under_way: dict[int, tuple[int, range, float]], busy: set[int]
    ) -> None:
        reply = await client.reply()
        version, blocks, sent = under_way.pop(reply.cookie)
        busy.difference_update(blocks)
        self.slowest_s = max(self.slowest_s, trio.current_time() - sent)
        if reply.error:
            self.errors.append(reply.error)
            return
        for block in blocks:
            self._history[block] = [version]
        self.acknowledged += 1
        self._tell(trio.current_time())
        self._moved.unpark_all()

    # ------------------------------------------------------------------ checking

    def _judge(self, block: int, found: bytes) -> str | None:
        """What is wrong with the content of a block, or None; then it is settled."""
        history = self._history[block]
        for version in reversed(history):
            if found == content_of(block, version):
                self._history[block] = [version]
                return None
        stamp = _STAMP.unpack_from(found)
        whole = found == found[: _STAMP.size] * (BLOCK // _STAMP.size)
        return f"block {block} holds {stamp}{'' if whole else ' (torn)'}, expected one of {history}"

    async def check(self, client: NbdClient) -> None:
        """Read everything that was ever written through the front door; `ProgramError` with what is wrong."""
        wrong = []
        for start in range(self._first, self._first + self._count, 256):
            blocks = range(start, min(start + 256, self._first + self._count))
            data = await client.read(start * BLOCK, len(blocks) * BLOCK)
            wrong += self._judge_all(blocks, data)
        if wrong:
            raise ProgramError(f"{len(wrong)} blocks are wrong: {wrong[:5]}")

    def check_file(self, path: Path) -> None:
        """The same from a replica's file; the lab should be down."""
        wrong = []
        with path.open("rb") as file:
            for start in range(self._first, self._first + self._count, 256):
                blocks = range(start, min(start + 256, self._first + self._count))
                wrong += self._judge_all(blocks, os.pread(file.fileno(), len(blocks) * BLOCK, start * BLOCK))
        if wrong:
            raise ProgramError(f"{path}: {len(wrong)} blocks are wrong: {wrong[:5]}")

    def _judge_all(self, blocks: range, data: bytes) -> list[str]:
        found = []
        for index, block in enumerate(blocks):
            content = data[index * BLOCK : (index + 1) * BLOCK]
            if block not in self._history:
                if content != ZEROES:
                    found.append(f"block {block} was never written and is not zero")
            elif problem := self._judge(block, content):
                found.append(problem)
        return found
