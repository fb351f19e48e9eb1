"""Chains made to happen in a lab that writes all the time, and judged.

What must hold, whatever comes: nothing acknowledged is missing; no two hosts serve at once; no process ends
with a traceback; nobody speaks of two truths, of a refusal or of a difference, for no person overrules
anything here; what `status` says of the next failure comes about; and when all is mended, everybody is
served, the pair is whole, and a scrub finds nothing.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from pairsync.errors import ConfigError, PairsyncError
from pairsync.node.control import ask
from pairsync.node.labfile import HOSTS, LINK, STAYS, WITNESS, control_socket_of
from pairsync.testing.failuretable.runner import ANSWER_S, CHECK_S, Runner
from pairsync.testing.lab import RunningLab, running_lab
from pairsync.testing.ledger import BLOCK
from pairsync.testing.nbd_client import NbdReplyError
from pairsync.testing.programs import ProgramError, descendants, kill_now

from .clients import SIZES, Clients
from .plan import LAB, Step

__all__ = ["Chain", "soak"]

GROWS_BYTES: Final = 3 * BLOCK - 512
"""So much larger it becomes each time."""

SETTLE_S: Final = 1.5
"""Beyond the failover time: then what was done has been dealt with, or is not going to be."""

LATE_S: Final = 4.0
"""Of a busy machine: so much later than foretold the guest may be served again."""

MENDED_S: Final = 90.0
"""How long all commands together may take that mend what is broken."""

ORDER_S: Final = 30.0
"""How long an order of a person may take before he gives up, in the midst of failures."""

CHECK_AFTER_S: Final = 1.0
"""After a pause that is longer everything is read; in a shorter one that would take too long."""

LOOK_S: Final = 0.05

ALARMS: Final = frozenset({"two-truths", "difference", "scrub-finding", "discord", "no-way-back"})
"""Events that nothing in a chain may cause."""


class Chain:
    """Steps that are left of one chain, and what was done and found so far."""

    def __init__(self, name: str, steps: Iterable[Step]) -> None:
        self.name = name
        self.left = deque(steps)
        self.notes: list[str] = []
        """What was done and when, and what was answered."""
        self.wrong: list[str] = []
        self.broken: list[Step] = []
        """What is to be mended."""
        self.errors = 0
        """Writes that were answered with an error."""
        self.disk_failed = False  # so writes may be, of an owner that is alone
        self.replaced = False  # a second empty disk could be one too many
        self._began_s = trio.current_time()

    def note(self, text: str) -> None:
        """Put down what happens."""
        self.notes.append(f"{trio.current_time() - self._began_s:7.2f} {text}")


class _Soak:
    """What outlives one `up` of the lab: the clients, and the chain that is under way."""

    def __init__(self, directory: Path, clients: Clients, failover_s: float) -> None:
        self._directory = directory
        self._failover_s = failover_s
        self._clients = clients
        self._watch = clients.watch
        self._under_way = 0  # commands that are not done yet
        self._touched_s = 0.0  # when something was last done to the lab
        self._settled = False
        self._second_bytes = SIZES["vdb"]
        self._points = 0
        self._log_bytes: dict[Path, int] = {}

    # ------------------------------------------------------------------ one lab

    async def go(self, lab: RunningLab, chain: Chain) -> bool:
        """Do what is left, until it is done (True) or another `up` is needed."""
        mark = lab.mark()
        async with trio.open_nursery() as nursery:
            self._lab, self._nursery, self._chain = lab, nursery, chain
            self._touch()
            again = await self._steps()
            if not again:
                await self._finish()
            nursery.cancel_scope.cancel()
        events = [each for each in lab.events[mark:] if each["event"] != "progress"]
        chain.wrong += [f"event {each}" for each in events if each["event"] in ALARMS]
        chain.notes += [json.dumps(each) for each in events]
        chain.wrong += self._tracebacks()
        return not again

    async def _steps(self) -> bool:
        """Whether another `up` is needed."""
        while self._chain.left and not self._chain.wrong:
            step = self._chain.left.popleft()
            if step.what == "restart" or step.words == (LAB,):
                await self._end(step)
                return True
            try:
                await self._do(step)
                if step.what == "settle" or (step.what == "wait" and float(step.words[0]) > CHECK_AFTER_S):
                    await self._check_now()
            except ProgramError as error:
                self._chain.wrong.append(str(error))
        return False

    async def _end(self, step: Step) -> None:
        self._chain.note(str(step))
        self._chain.broken.clear()
        self._chain.left = deque(each for each in self._chain.left if each.what != "mend")
        if step.what == "kill":
            for pid in [self._lab.process.pid, *descendants(self._lab.process.pid)]:
                kill_now(pid)
            await self._lab.kill_supervisor()

    # ------------------------------------------------------------------ steps

    async def _do(self, step: Step) -> None:
        self._chain.note(str(step))
        settled, self._settled = self._settled, False
        match step.what:
            case "wait":
                await trio.sleep(float(step.words[0]))
                return
            case "settle":
                await self._settle()
                return
            case "mend":
                if broken := self._chain.broken:
                    self._background(self._mend, broken.pop(int(step.words[0]) % len(broken)))
                self._touch()
                return
            case "move":
                self._background(self._order, "move", {})
            case "scrub":
                for volume in SIZES:
                    self._background(self._order, "scrub", {"volume": volume, "repair": True})
            case "grow":
                self._second_bytes += GROWS_BYTES
                self._background(self._order, "grow", {"volume": "vdb", "size_bytes": self._second_bytes})
            case "point":
                self._background(self._point)
            case _:
                await self._strike(step, settled=settled)
        self._touch()

    async def _strike(self, step: Step, *, settled: bool) -> None:
        foretold = self._foretold(step) if settled else None
        since_s = trio.current_time()
        match step.what:
            case "kill":
                for name in step.words:
                    if (pid := await self._pid(name)) is not None and len(step.words) > 1:
                        kill_now(pid)
                for name in step.words:
                    self._chain.broken.append(Step("start", (name,)))
                    await self._command("kill", host=name)
            case "guard":
                if (pid := await self._pid(step.words[0])) is not None:
                    for child in descendants(pid):
                        kill_now(child)
            case "pause":
                self._chain.broken.append(Step("resume", step.words))
                await self._command("pause", host=step.words[0])
                self._watch.stand_still(step.words[0])
            case "cut":
                self._chain.broken.append(Step("heal", step.words))
                await self._command("cut", cable=step.words[0])
            case _:
                await self._disk(*step.words)
        if foretold is not None:
            await self._comes_about(step, foretold, since_s)

    def _stands_still(self, host: str) -> bool:
        """Such a host does later what it was told meanwhile, in any order: its disks are left alone."""
        return Step("resume", (host,)) in self._chain.broken

    async def _disk(self, host: str, volume: str, state: str) -> None:
        if self._stands_still(host):
            self._chain.note("  not now")
            return
        if state == "replace":
            other = HOSTS[1 - HOSTS.index(host)]
            whole = self._watch.active() == other and not self._under_way and not self._chain.disk_failed
            if not whole or self._chain.replaced:
                self._chain.note("  not now")
                return
            self._chain.replaced = True
        else:
            self._chain.broken.append(Step("ok", (host, volume)))
        self._chain.disk_failed = True
        self._background(self._command_disk, host, volume, state)

    async def _command_disk(self, host: str, volume: str, state: str) -> None:
        await self._command("disk", host=host, volume=volume, disk=state)

    async def _mend(self, what: Step) -> None:
        self._chain.note(f"  {what}")
        host = what.words[0]
        if what.what == "ok" and self._stands_still(host):
            self._chain.broken.append(what)
            return
        match what.what:
            case "heal":
                done = await self._command("heal", cable=host)
            case "ok":
                done = await self._command("disk", host=host, volume=what.words[1], disk="ok")
            case _:
                done = await self._command(what.what, host=host)
        if not done:
            self._chain.broken.append(what)

    async def _order(self, what: str, more: dict[str, Any]) -> None:
        await self._command(what, seconds=ORDER_S, **more)

    async def _point(self) -> None:
        self._points += 1
        name, active = f"p{self._points}", self._watch.active()
        if active is None:
            return
        socket = control_socket_of(self._directory, active)
        for what in ("point-make", "point-drop"):
            with suppress(PairsyncError), trio.move_on_after(ORDER_S):
                await ask(socket, {"do": what, "volume": "vda", "name": name})

    async def _command(self, do: str, *, seconds: float = MENDED_S, **more: Any) -> bool:
        """Ask the supervisor; whether it did it.  What it says otherwise is noted."""
        try:
            await self._lab.request(do, seconds=seconds, **more)
        except PairsyncError as error:
            self._chain.note(f"  {do} {more}: {error}")
            return "is not running" in str(error)  # its guard was quicker, and it is started by itself
        except ProgramError:
            self._chain.note(f"  {do} {more}: no answer within {seconds:g} s")
            return False
        return True

    def _background(self, do: Callable[..., Any], *arguments: Any) -> None:
        async def work() -> None:
            self._under_way += 1
            try:
                await do(*arguments)
            finally:
                self._under_way -= 1
                self._touch()

        self._nursery.start_soon(work)

    def _touch(self) -> None:
        self._touched_s = trio.current_time()

    async def _pid(self, name: str) -> int | None:
        status = await self._lab.status()
        found = status["witness"] if name == WITNESS else status["hosts"][name]
        return found["pid"] if found["running"] else None

    # ------------------------------------------------------------------ what was foretold

    async def _settle(self) -> None:
        quiet_s = self._failover_s + SETTLE_S
        with trio.move_on_after(ORDER_S + quiet_s):
            while self._under_way or trio.current_time() < self._touched_s + quiet_s:  # noqa: ASYNC110
                await trio.sleep(LOOK_S)
        self._settled = not self._under_way

    def _foretold(self, step: Step) -> str | None:
        """What the active host says will come of that failure; None: nothing."""
        active = self._watch.active()
        if active is None or (len(step.words) != 1 and step.what != "disk"):
            return None
        survives = self._watch.latest[active]["survives"]
        role = "owner" if step.words[0] == active else "standby"
        match step.what:
            case "kill":
                failure = WITNESS if step.words[0] == WITNESS else role
            case "cut" if step.words[0] == LINK:
                failure = "link"
            case "disk" if step.words[2] == "fail":
                failure = f"{role}-disk"
            case _:
                return None
        if survives is None:
            return None
        return str(survives["single"][failure]["fate"])

    async def _comes_about(self, step: Step, fate: str, since_s: float) -> None:
        """`ProgramError` where the guest should be served and is not."""
        self._chain.note(f"  foretold: {fate}")
        if fate == "stops":
            return
        # what was on its way may be answered even so: what is sent later counts
        with trio.move_on_after(self._failover_s + LATE_S):
            while True:
                now_s = trio.current_time()
                served = [each for each in self._watch.answers() if each > max(since_s + 0.3, now_s - 0.3)]
                if served and now_s > since_s + self._failover_s + 0.5:
                    return
                await trio.sleep(LOOK_S)
        answers = self._watch.answers()
        last = f"{answers[-1] - since_s:.2f} s" if answers else "never"
        raise ProgramError(f"{step}: it {fate}, they said, and nobody serves; last answer {last} after it")

    # ------------------------------------------------------------------ checks

    async def _check_now(self) -> None:
        """What can be read now is read, before later writes hide what was lost."""
        active = self._watch.active()
        if active is not None:
            with suppress(OSError, PairsyncError, NbdReplyError):
                await self._clients.check(self._lab, active, seconds=CHECK_S)
        self._watch.judge()

    async def _finish(self) -> None:
        """Mend everything, wait until all is whole, and look at everything."""
        chain = self._chain
        chain.note("finish")
        chain.left.clear()
        try:
            await self._mend_all()
            await Runner(self._lab, self._watch, self._failover_s).until_whole()
            chain.note("whole")
            await self._check_all()
        except ProgramError as error:
            chain.wrong.append(str(error))
        except (PairsyncError, OSError, NbdReplyError) as error:
            chain.wrong.append(f"{type(error).__name__}: {error}")
        errors = self._clients.errors
        if errors > chain.errors and not chain.disk_failed:
            chain.wrong.append(f"{errors - chain.errors} writes were answered with an error")
        chain.errors = errors

    async def _mend_all(self) -> None:
        broken = self._chain.broken
        with trio.move_on_after(MENDED_S):
            while broken or self._under_way:
                # processes first: one that is stopped can be told nothing
                broken.sort(key=lambda each: each.what not in {"start", "resume"})
                for what in list(broken):
                    broken.remove(what)
                    await self._mend(what)
                await trio.sleep(LOOK_S)
        if broken or self._under_way:
            raise self._lab.error(f"not mended: {broken}, {self._under_way} commands under way")
        self._chain.note("mended")

    async def _check_all(self) -> None:
        for door in HOSTS:
            if waiting := await self._clients.check(self._lab, door, seconds=ANSWER_S):
                raise self._lab.error(f"read at door {door}: clients of {waiting} are not answered")
        for volume in SIZES:
            report = await self._scrub(volume)
            if report["findings"]:
                raise ProgramError(f"a scrub of {volume} finds {report}")
        self._watch.judge()

    async def _scrub(self, volume: str) -> dict[str, Any]:
        with trio.move_on_after(ANSWER_S):
            while True:
                try:
                    return await self._lab.request("scrub", volume=volume)
                except ConfigError:  # the guest goes home just now
                    await trio.sleep(LOOK_S)
        raise self._lab.error(f"no scrub of {volume} within {ANSWER_S:g} s")

    def _tracebacks(self) -> list[str]:
        """What the logs say that they may never say."""
        found = []
        for path in [self._directory / each / "log" for each in (*HOSTS, WITNESS)]:
            if not path.exists():
                continue
            with path.open(errors="replace") as file:
                file.seek(self._log_bytes.get(path, 0))
                said = file.read()
                self._log_bytes[path] = file.tell()
            at = said.find("Traceback")
            if at >= 0:
                found.append(f"{path}: {said[at : at + 6000]}")
        return found


async def soak(
    directory: Path,
    chains: Iterable[tuple[str, list[Step]]],
    *,
    seed: int,
    failover_s: float,
    network: str,
    home: str = STAYS,
    tell: Callable[[str], None],
) -> int:
    """Make these chains happen, one after the other; how many went wrong.

    ``network``: of the lab, one of `labfile.NETWORKS`.  ``tell`` hears a line for each, and everything about
    one that went wrong.  Ends early where the lab does not recover.
    """
    clients = Clients(directory, seed)
    whole = _Soak(directory, clients, failover_s)
    volumes = dict(SIZES)
    more = [f"--failover={failover_s:g}", f"--home={home}", f"--network={network}"]
    errors = wrong = 0
    waiting = deque(chains)
    chain: Chain | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run)
        while waiting or chain is not None:
            async with running_lab(directory, volumes, in_sync=False, more=more) as lab:
                volumes = {}
                while chain is not None or waiting:
                    if chain is None:
                        chain = Chain(*waiting.popleft())
                        chain.errors = errors
                    if not await whole.go(lab, chain):
                        break
                    errors = chain.errors
                    tell(f"{chain.name}: {'WRONG' if chain.wrong else 'ok'}")
                    if chain.wrong:
                        wrong += 1
                        tell("\n".join((*chain.notes, *chain.wrong)))
                        waiting.clear()
                    chain = None
        nursery.cancel_scope.cancel()
    if not wrong:
        clients.check_files()
    return wrong
