"""Doubts: blocks that a resync has read on the active host and that are not what their digests say.

Such a block must not be sent: the peer may have the good copy.  Either the block has fallen over, or its
digest has, and the peer tells which.  It is asked what it holds there, read and compared with its own digest
(`core.questions`), and there are four cases::

    the peer's copy is sound, and ...
        what is recorded here                      the block has fallen over here
        what is read here, and was never missing   the digest has: both hosts hold the same
                                                   ── either way: fetched from the peer, written again here
        anything else                              lost: nobody has what is recorded
    the peer's copy is not sound                   wrong on both hosts

That both hosts hold the same proves nothing of a block that was written while the peer was not there: this
disk may have dropped that write, and both have what was there before.

Writing the block again records its digest anew, and makes the two the same; it counts as sent then, so that a
flush on both hosts comes before it leaves the dirty map.  A write of the guest ends every doubt about its
blocks, for what they hold is something else from then on: they are read again, or were sent whole.

What is lost is told, block by block, and everything else is copied; once only such blocks are missing the
session ends with the reason, as with a sector that cannot be read, and the next one begins after an ever
longer wait (`core.session`).  It ends for good when the guest writes those blocks anew.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import partial

from .effects import Apply, Effect, Emit
from .events import ScrubFindingEvent
from .fetcher import FETCH_BLOCKS_MAX, Fetcher, Repair
from .messages import WriteOp
from .questions import DIGEST_BYTES, QUESTIONS_MAX, Answer, BadBlock, Questions
from .scrubber import FINDINGS_MAX, Fault
from .standing import Standing
from .tracker import Tracker
from .units import BLOCK_BYTES, Extent

__all__ = ["DOUBTS_MAX", "Doubts"]

DOUBTS_MAX = 1024
"""Blocks in doubt from which on nothing more is read (what is being read may add as much again): a disk that
has gone bad as a whole is found out piece by piece, and given up when so many are lost."""

TRIES_MAX = 16
"""Times in a session that a block was in doubt and could be read well when it was looked at again, or that a
peer left out of its answer what it was asked for: a disk that gives now this and now that is not for copying
from, nor is such a peer."""


class _State(enum.Enum):
    NEW = "new"
    ASKED = "asked"  # both hosts are looking
    SURE = "sure"  # the peer's copy is the one
    FETCHING = "fetching"  # it is on its way, or being written
    LOST = "lost"


class _Doubt:
    __slots__ = ("block", "found", "state")

    def __init__(self, wrong: BadBlock) -> None:
        self.block = wrong.block
        self.found = wrong.found  # the digest of what was read here
        self.state = _State.NEW


class Doubts:
    """Of one volume of an active host; see the module."""

    def __init__(
        self,
        index: int,
        tracker: Tracker,
        standing: Standing,
        questions: Questions,
        fetcher: Fetcher,
        release: Callable[[int], None],
        peer_should_have: Callable[[int], bool],
        out: list[Effect],
    ) -> None:
        """``release`` hears of a block that is in doubt no longer; ``peer_should_have``: whether all that was
        written to the block was sent to the peer."""
        self._index = index
        self._tracker = tracker
        self._standing = standing
        self._questions = questions
        self._fetcher = fetcher
        self._release = release
        self._peer_should_have = peer_should_have
        self._out = out
        self._open: dict[int, _Doubt] = {}  # by block; all of them in `todo`
        self._new = 0  # how many are NEW or SURE, and have to be looked after
        self._lost = 0
        self._tries = 0  # see TRIES_MAX
        self._told = 0  # findings of this session

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def full(self) -> bool:
        """Whether there are too many already."""
        return len(self._open) >= DOUBTS_MAX

    def stop(self) -> None:
        """The session is over, or begins again; the blocks are still to be copied."""
        self._open.clear()
        self._new = self._lost = self._tries = self._told = 0

    def add(self, wrong: Sequence[BadBlock]) -> None:
        """A read has found these, which nobody has written since."""
        for each in wrong:
            self._open[each.block] = _Doubt(each)
        self._new += len(wrong)

    def written(self, ops: Sequence[WriteOp]) -> None:
        """A write of the guest is issued."""
        for op in ops:
            if self._open and op.length > 0:
                start = op.offset // BLOCK_BYTES
                stop = (op.offset + op.length - 1) // BLOCK_BYTES + 1
                within = range(start, stop) if stop - start < len(self._open) else list(self._open)
                for block in within:
                    if start <= block < stop and block in self._open:
                        self._end(self._open[block])

    def _become(self, doubt: _Doubt, state: _State) -> None:
        waits = (_State.NEW, _State.SURE)
        self._new += (state in waits) - (doubt.state in waits)
        self._lost += (state is _State.LOST) - (doubt.state is _State.LOST)
        doubt.state = state

    def _end(self, doubt: _Doubt) -> None:
        self._become(doubt, _State.ASKED)  # counted no more
        del self._open[doubt.block]
        self._release(doubt.block)

    def hopeless(self) -> str | None:
        """Why nothing more can be copied: all that is missing is lost, or very much."""
        if not self._lost or (self._lost < self._tracker.todo.count and self._lost < DOUBTS_MAX):
            return None
        first = min(block for block, doubt in self._open.items() if doubt.state is _State.LOST)
        return (
            f"{self._standing.name}: {self._lost} blocks, the first is {first}, are not what their digests "
            "say here, and could not be mended from the peer"
        )

    # ------------------------------------------------------------------ asking

    def advance(self, now_ns: int, *, proves: bool) -> None:
        """Ask on; ``proves``: both hosts keep digests."""
        if not self._new:
            return
        for state, step in ((_State.NEW, self._ask), (_State.SURE, self._fetch)):
            waiting = [doubt for _, doubt in sorted(self._open.items()) if doubt.state is state]
            if state is _State.NEW and not proves:
                self._lose(waiting, Fault.LOST)
                continue
            for first in range(0, len(waiting), FETCH_BLOCKS_MAX):
                if not step(waiting[first : first + FETCH_BLOCKS_MAX], now_ns):
                    break

    def _ask(self, doubts: Sequence[_Doubt], now_ns: int) -> bool:
        runs: list[list[_Doubt]] = []
        for doubt in doubts:
            if runs and runs[-1][-1].block == doubt.block - 1:
                runs[-1].append(doubt)
            else:
                runs.append([doubt])
        for run in runs:
            if self._questions.count >= QUESTIONS_MAX:
                return False
            for doubt in run:
                self._become(doubt, _State.ASKED)
            first, stop = run[0].block, run[-1].block + 1
            then = partial(self._answered, run)
            self._questions.ask(0, first, stop, read=True, now_ns=now_ns, then=then)
        return True

    def _answered(self, run: Sequence[_Doubt], answer: Answer) -> None:
        for doubt in self._alive(run):
            if doubt.block >= answer.stop:
                self._become(doubt, _State.NEW)
                continue
            at = (doubt.block - answer.first) * DIGEST_BYTES
            theirs = answer.theirs.digests[at : at + DIGEST_BYTES]
            if doubt.block not in answer.mine.bad:
                self._tries += 1
                if self._tries < TRIES_MAX:
                    self._end(doubt)
                else:
                    self._lose([doubt], Fault.HERE)
            elif doubt.block in answer.theirs.bad:
                self._lose([doubt], Fault.BOTH)
            elif theirs == answer.mine.digests[at : at + DIGEST_BYTES]:
                self._sure(doubt, Fault.HERE)
            elif self._peer_should_have(doubt.block) and theirs == doubt.found.to_bytes(
                DIGEST_BYTES, "little"
            ):
                self._sure(doubt, Fault.DIGEST)
            else:
                self._lose([doubt], Fault.LOST)

    def _alive(self, doubts: Sequence[_Doubt]) -> list[_Doubt]:
        return [doubt for doubt in doubts if self._open.get(doubt.block) is doubt]

    def _sure(self, doubt: _Doubt, fault: Fault) -> None:
        self._become(doubt, _State.SURE)
        self._tell(doubt, fault, repair=True)

    def _lose(self, doubts: Sequence[_Doubt], fault: Fault) -> None:
        for doubt in doubts:
            self._become(doubt, _State.LOST)
            self._tell(doubt, fault, repair=False)

    def _tell(self, doubt: _Doubt, fault: Fault, *, repair: bool) -> None:
        self._told += 1
        if self._told <= FINDINGS_MAX:
            event = ScrubFindingEvent(self._standing.name, doubt.block, fault.value, repair=repair)
            self._out.append(Emit(event))

    # ------------------------------------------------------------------ mending

    def _fetch(self, doubts: Sequence[_Doubt], now_ns: int) -> bool:
        if not self._fetcher.room:
            return False
        for doubt in doubts:
            self._become(doubt, _State.FETCHING)
        extents = [Extent(doubt.block, doubt.block + 1) for doubt in doubts]
        self._fetcher.ask(extents, now_ns, partial(self._fetched, doubts))
        return True

    def _fetched(self, doubts: Sequence[_Doubt], ops: Sequence[WriteOp] | None, _errno: int) -> None:
        alive = {doubt.block: doubt for doubt in self._alive(doubts)}
        if ops is None:  # or the session is over: then nobody is told
            self._lose(list(alive.values()), Fault.HERE)
            return
        wanted = [op for op in ops if op.offset // BLOCK_BYTES in alive]
        if wanted:
            mended = [alive.pop(op.offset // BLOCK_BYTES) for op in wanted]
            self._out.append(Apply(self._index, Repair(partial(self._mended, mended)), wanted))
        if alive:  # the peer has left them out: asked for again, but not for ever
            self._tries += 1
        for doubt in list(alive.values()):
            if self._tries < TRIES_MAX:
                self._become(doubt, _State.NEW)
            else:
                self._lose([doubt], Fault.HERE)

    def _mended(self, doubts: Sequence[_Doubt], errnos: Sequence[int] | None) -> None:
        for index, doubt in enumerate(doubts):
            if self._open.get(doubt.block) is not doubt:
                continue
            if errnos is not None and errnos[index]:
                self._lose([doubt], Fault.HERE)
            else:
                self._end(doubt)
                self._tracker.resynced([Extent(doubt.block, doubt.block + 1)], 0)
