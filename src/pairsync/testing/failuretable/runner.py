"""Cells made to happen in a lab, one after the other: fail, wait for what must come, mend, wait until whole.

One lab serves many cells.  Nothing sleeps for luck: a step ends when the pair is as foreseen, or has had far
more time than it may need.  Only where the guest must *not* run, that is watched for longer than a failover.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from pairsync.core.outlook import Failure, Fate, State, after
from pairsync.errors import ConfigError, PairsyncError
from pairsync.node.labfile import HOSTS, cables_of
from pairsync.testing.lab import RunningLab
from pairsync.testing.programs import ProgramError

from .cells import WHOLE, Cell, Fault, Step, World, foreseen
from .watch import Watch, longest_gap

__all__ = ["CellResult", "Runner", "StepResult"]

LOOK_S: Final = 0.02
"""Between two looks at what the hosts have said."""

PATIENCE_S: Final = 30.0
"""How long a step may take beyond the failover time: hosts may have to start, on a busy machine."""

QUIET_S: Final = 1.0
"""For so long beyond the failover time what has come of a cell must stay so, above all if nobody serves."""

WHOLE_S: Final = 60.0
"""How long the pair may take to be whole again when everything is mended."""

ANSWER_S: Final = 10.0
"""How long a write may take when everything is mended."""

CHECK_S: Final = 1.0
"""A write that is under way for longer will not be answered before things are mended."""


@dataclass(slots=True)
class StepResult:
    """What came of one failure."""

    fault: str
    foreseen: list[str]
    said: str | None
    """What the pair itself said that would come of it, just before; None: it does not speak of that."""
    fate: str = ""
    runs: str | None = None
    """``A``, ``B`` or nobody."""
    interrupted_s: float | None = None
    """The longest time without an answer to any writer; None where the guest stopped."""


@dataclass(slots=True)
class CellResult:
    """What came of a cell; ``wrong`` is empty if all was as it must be."""

    name: str
    faults: list[str]
    delay_ms: int | None
    steps: list[StepResult] = field(default_factory=list)
    returned_s: float | None = None
    """From the first repair until a stopped guest was served again."""
    whole_s: float | None = None
    """From the first repair until both hosts were in sync and three voters agreed again."""
    lost: int | None = None
    """Acknowledged writes that are missing; None: it did not come to the check."""
    errors: int = 0
    """Writes that were answered with an error."""
    wrong: str = ""


class Runner:
    """Of one lab that is up, whole, and has a `Watch` running."""

    def __init__(self, lab: RunningLab, watch: Watch, failover_s: float) -> None:
        self._lab = lab
        self._watch = watch
        self._failover_s = failover_s
        self._hosts = {"A": "a", "B": "b"}  # of the cell, whose A is where the guest runs when it begins
        self._mend: list[Callable[[], Any]] = []

    # ------------------------------------------------------------------ a cell

    async def run(self, cell: Cell) -> CellResult:
        """Make it happen.  What is wrong is in the result; `ProgramError` where the lab does not recover."""
        watch = self._watch
        result = CellResult(cell.name, [fault.value for fault in cell.faults], cell.delay_ms)
        active = await self.until_whole()
        self._hosts = {"A": active, "B": HOSTS[1 - HOSTS.index(active)]}
        watch.forget()
        errors, term = watch.errors, self._grant(active)["term"]
        steps = foreseen(cell)
        try:
            if cell.delay_ms is None:
                before = WHOLE
                for fault, each in zip(cell.faults, steps, strict=True):
                    await self._strike(fault, each, before, result.steps, last=each is steps[-1])
                    before = each.then
            else:
                await self._strike_soon(cell, steps[-1], result.steps)
            await self._check_now(result)
        except ProgramError as error:
            result.wrong = str(error)
        moves = max((each.term for each in watch.sightings), default=term) - term
        await self._recover(result)
        expected = sum(each.fate == Fate.MOVES.value for each in result.steps)
        result.errors = watch.errors - errors
        # Alone, an owner passes on what its disk says, as any disk does.
        alone = any(each.failure is Failure.OWNER_DISK and Fate.STOPS in each.fates for each in steps)
        result.wrong = result.wrong or self._judged(result, moves, expected, may_fail=alone)
        return result

    def _judged(self, result: CellResult, moves: int, expected: int, *, may_fail: bool) -> str:
        if result.errors and not may_fail:
            return f"{result.errors} writes were answered with an error"
        if moves != expected and result.delay_ms is None:
            return f"the guest has moved {moves} times, and not {expected}"
        try:
            self._watch.judge()
        except ProgramError as error:
            return str(error)
        return ""

    async def _strike(
        self, fault: Fault, expected: Step, before: World, steps: list[StepResult], *, last: bool
    ) -> None:
        """One failure, and what came of it; the ``last`` one is watched for longer than a failover takes."""
        fates = sorted(each.value for each in expected.fates)
        step = StepResult(fault.value, fates, self._said(expected))
        steps.append(step)
        since_s = trio.current_time()
        await self._fail(fault)
        await self._settle(step, expected, before.active, since_s)
        if last and step.runs is not None:
            await trio.sleep(self._failover_s + QUIET_S)
            self._judge(step, expected, before.active, since_s)
        if step.said is not None and step.said != step.fate:
            raise ProgramError(f"{step.fault}: {step.fate}, and the pair had said that it {step.said}")

    async def _strike_soon(self, cell: Cell, expected: Step, steps: list[StepResult]) -> None:
        """Two failures, the second before the first has been dealt with."""
        first, second = cell.faults
        fates = sorted(each.value for each in expected.fates)
        step = StepResult(cell.name, fates, None)
        steps.append(step)
        since_s = trio.current_time()
        await self._fail(first)
        await trio.sleep_until(since_s + (cell.delay_ms or 0) / 1000)
        await self._fail(second)
        await trio.sleep(self._failover_s + QUIET_S)
        self._observe(step, since_s, "A")
        if step.fate not in step.foreseen:
            raise ProgramError(f"{cell.name}: {step.fate}, and not {' or '.join(step.foreseen)}")

    # ------------------------------------------------------------------ failing and mending

    def _cables(self) -> dict[Fault, str]:
        return {
            Fault.LINK: "a-b",
            Fault.A_WITNESS: f"{self._hosts['A']}-witness",
            Fault.B_WITNESS: f"{self._hosts['B']}-witness",
        }

    async def _fail(self, fault: Fault) -> None:
        """Have it fail, and note how it is mended."""
        lab, hosts = self._lab, self._hosts
        match fault:
            case Fault.HOST_A | Fault.HOST_B | Fault.WITNESS:
                names = {Fault.HOST_A: hosts["A"], Fault.HOST_B: hosts["B"], Fault.WITNESS: "witness"}
                name = names[fault]
                self._mend.append(lambda: lab.request("start", host=name))
                await lab.kill(name)
            case Fault.POWER_A | Fault.POWER_B:
                name = hosts["A" if fault is Fault.POWER_A else "B"]
                self._mend.append(lambda: self._switch_on(name))
                for cable in cables_of(name):  # first: nothing of its end is to reach anybody
                    await lab.cut(cable)
                await lab.kill(name)
            case Fault.DISK_A | Fault.DISK_B:
                name = hosts["A" if fault is Fault.DISK_A else "B"]
                self._mend.append(lambda: lab.request("disk", host=name, volume="vda", disk="ok"))
                await lab.request("disk", host=name, volume="vda", disk="fail")
            case Fault.PAUSE:
                name = self._watch.active() or hosts["A"]
                self._mend.append(lambda: lab.request("resume", host=name))
                await lab.request("pause", host=name)
                self._watch.stand_still(name)
            case _:
                cable = self._cables()[fault]
                self._mend.append(lambda: lab.heal(cable))
                await lab.cut(cable)

    async def _switch_on(self, name: str) -> None:
        for cable in cables_of(name):
            await self._lab.heal(cable)
        await self._lab.request("start", host=name)

    async def _recover(self, result: CellResult) -> None:
        """Mend the last failure first, and wait until the pair is whole and nothing is missing."""
        stopped = bool(result.steps) and result.steps[-1].fate == Fate.STOPS.value
        since_s = trio.current_time()
        for mend in reversed(self._mend):
            with suppress(ConfigError):  # a host that its guard has killed is not there to be resumed
                await mend()
        self._mend = []
        await self.until_whole()
        result.whole_s = round(trio.current_time() - since_s, 3)
        answers = [each for each in self._watch.answers() if each > since_s]
        if stopped:
            result.returned_s = round(answers[0] - since_s, 3) if answers else None
        client = await self._lab.connect(host="a")
        async with client:
            waiting = await self._watch.check(client, seconds=ANSWER_S)
        for host in waiting:
            result.wrong = f"a client of host {host} is not answered although all is mended"
            self._watch.writers[host].hang_up()
        result.lost = None if waiting else 0

    async def _check_now(self, result: CellResult) -> None:
        """What can be read while things are broken is read, before later writes hide what was lost."""
        active = self._watch.active()
        if active is None or result.steps[-1].fate != Fate.MOVES.value:
            return
        with suppress(OSError, PairsyncError):
            async with await self._lab.connect(host=active) as client:
                await self._watch.check(client, seconds=CHECK_S)

    # ------------------------------------------------------------------ waiting

    async def until_whole(self) -> str:
        """Both hosts in sync, three voters, clients served, and the pair says that it survives any single
        failure (a standby that comes up has yet to ask the witness); the host on which the guest runs."""
        with trio.move_on_after(WHOLE_S):
            while True:
                active = self._watch.active()
                grant = None if active is None else self._watch.grant(active)
                if active is not None and grant is not None and _is_whole(grant):
                    guest = self._watch.latest[active]
                    redundant = guest["survives"] is not None and guest["survives"]["redundant"]
                    if guest["in_sync"] and redundant and len(self._watch.latest) == len(HOSTS):
                        return active
                await trio.sleep(LOOK_S)
        raise self._lab.error(f"not whole again within {WHOLE_S:g} s: {self._describe()}")

    async def _settle(self, step: StepResult, expected: Step, was: str, since_s: float) -> None:
        """Wait until what was foreseen has come, or has had the time to."""
        (fate,) = expected.fates
        if fate is Fate.STOPS and not expected.restarted:
            await trio.sleep(self._failover_s + QUIET_S)
        else:
            with trio.move_on_after(self._failover_s + PATIENCE_S):
                while not self._as_foreseen(expected, since_s):  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(LOOK_S)
        self._judge(step, expected, was, since_s)

    def _judge(self, step: StepResult, expected: Step, was: str, since_s: float) -> None:
        """`ProgramError` unless it is as foreseen now."""
        self._observe(step, since_s, was, restarted=expected.restarted)
        if step.fate not in step.foreseen or not (step.runs is None or self._as_foreseen(expected, since_s)):
            raise ProgramError(
                f"{step.fault}: {step.fate}, foreseen {step.foreseen}, {expected.then}; {self._describe()}"
            )

    def _as_foreseen(self, expected: Step, since_s: float) -> bool:
        """The guest runs where it must, is served, and the grant is the one that follows."""
        host, state = self._hosts[expected.then.active], expected.then.state
        grant = self._watch.grant(host)
        if self._watch.active() != host or grant is None or grant["owner"] != "here":
            return False
        if (len(grant["in_sync"]) > 1) is not state.in_sync or bool(grant["sole"]) is not state.sole:
            return False
        guest = self._watch.latest[host]
        if state.in_sync and not (guest["in_sync"] and _says_so(guest, state)):
            return False
        return any(each > since_s for each in reversed(self._watch.answers()))

    def _observe(self, step: StepResult, since_s: float, was: str, *, restarted: bool = False) -> None:
        """What has come of it by now; a host that was ``restarted`` has stopped, although it serves again."""
        now_s = trio.current_time()
        names = {host: name for name, host in self._hosts.items()}
        active, answers = self._watch.active(), self._watch.answers()
        served = active is not None and any(each > now_s - QUIET_S for each in answers)
        step.runs = names.get(active or "") if served else None
        if not served:
            step.fate = Fate.STOPS.value
            return
        step.interrupted_s = round(longest_gap(answers, since_s, now_s), 3)
        if step.runs != was:
            step.fate = Fate.MOVES.value
        else:
            step.fate = (Fate.STOPS if restarted else Fate.GOES_ON).value

    # ------------------------------------------------------------------ what was said

    def _said(self, expected: Step) -> str | None:
        """What the pair says just before of what would survive."""
        active = self._watch.active()
        if expected.failure is None or active is None:
            return None
        survives = self._watch.latest[active]["survives"]
        return None if survives is None else str(survives["single"][expected.failure.value]["fate"])

    def _grant(self, host: str) -> Any:
        grant = self._watch.grant(host)
        if grant is None:
            raise ProgramError(f"host {host} knows of no grant")
        return grant

    def _describe(self) -> dict[str, Any]:
        keys = ("role", "paused", "connected", "in_sync", "refusal", "grant")
        return {host: {key: guest.get(key) for key in keys} for host, guest in self._watch.latest.items()}


def _is_whole(grant: Any) -> bool:
    return len(grant["in_sync"]) == len(HOSTS) and not grant["sole"]


def _says_so(guest: Any, state: State) -> bool:
    """Whether an owner says of its own loss what ``state`` means.

    That depends on its peer, which tells with its answers whether it could serve and reaches the witness: it
    looks for that when it comes up, and every now and then, so the owner knows later than it agrees.
    """
    said = guest["survives"]
    return said is not None and all(
        said["single"][each.value]["fate"] == after(state, each)[0].value
        for each in (Failure.OWNER, Failure.OWNER_DISK)
    )
