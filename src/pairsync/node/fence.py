"""Power fencing: a device outside turns the other host off, by the calling convention of fence agents.

A **fence agent** is a program that knows one kind of device (a BMC, a power strip, a hypervisor); Debian's
``fence-agents`` has some eighty.  It takes its options on standard input, ``name=value`` a line, ``action``
among them, and answers by its exit status (ClusterLabs, ``doc/FenceAgentAPI.md``): 0 is done; of ``status``,
0 is on and 2 is off.

What a power cut proves is the strongest input that arbitration has: the other side has stopped, whatever
became of its guard and its clock.  So it is believed only when **both** hold: ``off`` was reported as done,
and ``status`` says off afterwards.  One alone may be an agent that was called wrongly: 2 is also what many
programs say of bad arguments.  Anything else proves nothing, and is tried again until the time is over.

``reboot`` is ``off``, its confirmation, and ``on``.  A plain reset would leave no moment at which ``status``
could tell; and a host that cannot be turned on again has stopped all the same.

Options hold passwords: they never stand in an argument, an environment, a representation, an error or the
log.  What the agent itself says is quoted with the values of the options blotted out.
"""

from __future__ import annotations

import enum
import logging
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from pairsync.core.backoff import Backoff
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import ConfigError

from .guardclient import boottime_ns

__all__ = ["FenceConfig", "FenceResult", "PowerFence", "PowerState"]

OUTPUT_BYTES_MAX = 64 * 1024
"""Of what an agent says this much is kept; metadata are a few kilobytes."""

QUOTED_BYTES = 300
"""Of its last words so many are quoted."""

OPTIONS_MAX = 100

END_S = 2.0
"""How long the pipes of an agent that was killed may take to close."""

_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SECRET = re.compile(r"pass|secret|token|key|community|login|user", re.IGNORECASE)
_BLOTTED_CHARACTERS = 4  # shorter values are blotted out only where their name says that they are secret
_STATUS_OFF = 2

_LOG = logging.getLogger(__name__)


class PowerState(enum.Enum):
    """What a fence device says of the other host."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceConfig:
    """How the other host is turned off.

    ``command``: the agent, and arguments without secrets; ``options``: what it is told, such as ``ip``,
    ``username``, ``password``, ``plug``, without ``action``.  ``turn_on``: whether the host is turned on
    again.  ``deadline_ns``: for a whole proof; ``attempt_ns``: for one call of the agent.
    """

    command: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    turn_on: bool = True
    deadline_ns: int = 120 * NS_PER_S
    attempt_ns: int = 40 * NS_PER_S
    backoff_first_ns: int = 500 * NS_PER_MS
    backoff_limit_ns: int = 10 * NS_PER_S

    def check(self) -> None:
        """Raises `ConfigError`, without any value of an option in it."""
        if not self.command or not self.command[0]:
            raise ConfigError("fencing: no command")
        if len(self.options) > OPTIONS_MAX:
            raise ConfigError(f"fencing: {len(self.options)} options, at most {OPTIONS_MAX} are allowed")
        for name, value in self.options.items():
            if not _OPTION.fullmatch(name):
                raise ConfigError(f"fencing: {name!r:.80} is no name of an option")
            if name == "action":
                raise ConfigError("fencing: the option 'action' is not yours to set")
            if not value.isprintable() or value != value.strip():
                raise ConfigError(f"fencing: the value of option {name!r} does not fit in a line")
            if value and _SECRET.search(name) and any(value in word for word in self.command[1:]):
                raise ConfigError(f"fencing: the value of option {name!r} stands in the command too")
        if not 0 < self.attempt_ns <= self.deadline_ns:
            raise ConfigError("fencing: 0 < time of an attempt <= deadline")
        if not 0 < self.backoff_first_ns <= self.backoff_limit_ns:
            raise ConfigError("fencing: 0 < first back-off <= limit of the back-off")


@dataclass(frozen=True, slots=True)
class FenceResult:
    """What came of it.  ``stopped``: proven that the other host was off after the call began."""

    stopped: bool
    reason: str
    attempts: int
    taken_ns: int


@dataclass(frozen=True, slots=True)
class _Said:
    """How one call of the agent ended; ``status`` None: not within its time, or not started."""

    status: int | None
    output: str
    words: str


class PowerFence:
    """See the module.  ``entropy`` gives fractions in [0, 1), for the back-off."""

    def __init__(self, config: FenceConfig, *, entropy: Callable[[], float] = random.random) -> None:
        config.check()
        self._config = config
        self._entropy = entropy

    async def check_agent(self) -> PowerState:
        """Whether the agent can do what is asked of it, and what it says of the other host now.

        To be called when the host starts, and now and then: what has never worked will not on the day.
        `ConfigError` if the agent cannot be run, or has no ``off`` or no ``status``.
        """
        said = await self._call("metadata")
        if said.status != 0:
            raise ConfigError(f"fencing: {self._config.command[0]} does not tell its metadata: {said.words}")
        actions = set(re.findall(r"<action\s[^>]*?name=[\"']([\w-]+)[\"']", said.output))
        wanted = {"off", "status"} | ({"on"} if self._config.turn_on else set())
        if missing := wanted - actions:
            raise ConfigError(
                f"fencing: {self._config.command[0]} has no action {', '.join(sorted(missing))}"
            )
        return await self.status()

    async def status(self) -> PowerState:
        """What the device says now; nothing is changed."""
        return _state(await self._call("status"))

    async def fence(
        self,
        *,
        wanted: Callable[[], bool] = lambda: True,
        proven: Callable[[str], None] = lambda _reason: None,
    ) -> FenceResult:
        """Turn the other host off, see that it is, and turn it on again if so configured.

        The proof is had by the deadline or not at all; which of the two is in the result.  Cancelled, it
        leaves no agent behind, and the other host in whatever state.  No attempt is begun that is not
        ``wanted``; ``proven`` hears of the proof, with the reason, before the host is turned on again.
        """
        config = self._config
        began_ns = boottime_ns()
        backoff = Backoff(first_ns=config.backoff_first_ns, limit_ns=config.backoff_limit_ns)
        attempts = 0
        stopped, reason = False, ""
        with trio.move_on_after(config.deadline_ns / NS_PER_S):
            while not stopped:
                if not wanted():
                    reason = "it is not to be turned off any more" + (f"; {reason}" if reason else "")
                    break
                attempts += 1
                stopped, reason = await self._turn_off()
                if not stopped:
                    _LOG.warning("fencing, attempt %d: %s", attempts, reason)
                    await trio.sleep(backoff.failed(self._entropy()) / NS_PER_S)
        taken_ns = boottime_ns() - began_ns
        if stopped:
            proven(reason)
        if stopped and config.turn_on:
            said = await self._call("on")
            if said.status != 0:
                reason += f"; it could not be turned on again: {said.words}"
        result = FenceResult(stopped, reason or "the agent did not answer in time", attempts, taken_ns)
        _LOG.warning("fencing: %s: %s", "proven" if stopped else "not proven", result.reason)
        return result

    async def _turn_off(self) -> tuple[bool, str]:
        said = await self._call("off")
        if said.status != 0:
            return False, f"off: {said.words}"
        said = await self._call("status")
        state = _state(said)
        if state is PowerState.OFF:
            return True, "turned off, and seen to be off"
        return False, f"reported as turned off, and then as {state.value}: {said.words}"

    # ------------------------------------------------------------------ one call

    async def _call(self, action: str) -> _Said:
        """Run the agent once; what it started is gone when this returns, however that is."""
        lines = [*(f"{name}={value}" for name, value in self._config.options.items()), f"action={action}", ""]
        try:
            process = await trio.lowlevel.open_process(
                self._config.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # what it starts itself is killed with it
            )
        except OSError as error:
            return _Said(None, "", f"it cannot be run: {error.strerror}")
        kept = bytearray()
        in_time = False
        drained = trio.Event()
        try:
            with trio.move_on_after(self._config.attempt_ns / NS_PER_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_feed, process, "\n".join(lines).encode())
                    nursery.start_soon(_drain, process, kept, drained)
                    await process.wait()
                    in_time = True
                    nursery.cancel_scope.deadline = trio.current_time() + END_S
        finally:
            if not (in_time and drained.is_set()):  # it, or something that it started, is still there
                _kill_group(process)
            with trio.CancelScope(shield=True):
                await process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        await stream.aclose()
        words = self._blot(kept.decode(errors="replace"))
        if not in_time:
            return _Said(
                None, "", f"no answer within {self._config.attempt_ns / NS_PER_S:g} s{_quoted(words)}"
            )
        return _Said(process.returncode, words, f"exit status {process.returncode}{_quoted(words)}")

    def _blot(self, text: str) -> str:
        """Without any value of an option that could be secret."""
        for name, value in sorted(self._config.options.items(), key=lambda each: -len(each[1])):
            if value and (len(value) >= _BLOTTED_CHARACTERS or _SECRET.search(name)):
                text = text.replace(value, "***")
        return text


def _state(said: _Said) -> PowerState:
    if said.status == 0:
        return PowerState.ON
    return PowerState.OFF if said.status == _STATUS_OFF else PowerState.UNKNOWN


def _quoted(words: str) -> str:
    text = " ".join(words.split())[-QUOTED_BYTES:]
    return f": {text}" if text else ""


async def _feed(process: trio.Process, content: bytes) -> None:
    if process.stdin is not None:
        try:
            await process.stdin.send_all(content)
        except trio.BrokenResourceError:  # it asks for nothing: its exit status says the rest
            return
        await process.stdin.aclose()


async def _drain(process: trio.Process, kept: bytearray, drained: trio.Event) -> None:
    if process.stdout is not None:
        async for chunk in process.stdout:
            kept += chunk
            del kept[:-OUTPUT_BYTES_MAX]
    drained.set()


def _kill_group(process: trio.Process) -> None:
    """The agent and what it started: a group keeps its number while anybody of it is there."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
