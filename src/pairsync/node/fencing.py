"""When the other host is turned off: by a standby that is about to take over, and by nobody else.

Fencing is no part of what makes a take-over safe: leases and grants are, and where fencing fails, or is not
configured, everything goes on without it.  What it adds is proof.  A host that was turned off runs no guest
whatever became of its clocks, its guard and its kernel; so the rest of the promise need not be waited for.

**Never both, and never the right one.**  The owner that has lost its peer does not fence: it puts the peer
out by a grant, and needs no more.  A standby fences only

* while the grant in force calls it in sync and a voter, and its disk could serve: it can take over;
* while the owner is silent, in votes and on every path of the link, for as long as after which the owner has
  either gone on without us by a grant, or has stopped by itself (`Timing.yield_after_ns`).  An owner that was
  never heard since this host has started may be one that is just starting, and is left alone;
* when the witness, asked then, knows of no newer grant, and of none that could be one: an owner that has lost
  nothing but the link has asked it for one long before.

What is left is an owner that reaches the witness only in the moment after that question.  It had stopped its
guest; it is turned off with the grant to go on alone in its hands, and goes on with it once it is on again.

One attempt after the other, with back-off, and none any more once the owner is heard.  After a proof there is
no other fencing before the owner was heard again.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Mapping
from typing import Final

import trio

from pairsync.core.acceptor import is_news
from pairsync.core.backoff import Backoff
from pairsync.core.events import FenceEvent
from pairsync.core.units import KIB, NS_PER_S
from pairsync.core.witness import WitnessKey
from pairsync.errors import BackendError, ConfigError, PeerError, ProtocolError
from pairsync.guest.arbitration import Arbitration
from pairsync.guest.guest import Guest
from pairsync.io.witnessstore import WitnessStore
from pairsync.wire.arbitration import decode_view

from .fence import FenceConfig, PowerFence
from .hostfile import FenceFile

__all__ = ["Fencer", "fence_config"]

_log = logging.getLogger("pairsync.fencing")

LOOK_S: Final = 0.05
"""Between two looks whether the owner is to be fenced."""

CHECK_S: Final = 3600.0
"""Between two trials of the agent: what has ceased to work should be known before it is needed."""

WITNESS_S: Final = 15.0
"""A question to the witness is given up then."""

AGAIN_FIRST_NS: Final = 10 * NS_PER_S
AGAIN_LIMIT_NS: Final = 600 * NS_PER_S
"""After a fencing that could not be proven, which has its own back-off and deadline inside."""

SECRETS_BYTES_MAX: Final = 64 * KIB
_FOR_SECRETS = re.compile(r"pass|secret|token|community", re.IGNORECASE)


def fence_config(file: FenceFile) -> FenceConfig:
    """What the agent is told, with the secrets of their own file; `ConfigError` names what is wrong."""
    options = dict(file.options)
    for name in options:
        if _FOR_SECRETS.search(name):
            raise ConfigError(f"[fence]: option {name!r} belongs in the file that 'secrets' names, mode 0600")
    if file.secrets is not None:
        for number, line in enumerate(_read_secrets(file).splitlines(), 1):
            name, equals, value = line.partition("=")
            if not line.strip() or line.startswith("#"):
                continue
            if not equals or name.strip() in options:
                raise ConfigError(f"{file.secrets}: line {number}: NAME=VALUE is expected, each name once")
            options[name.strip()] = value.strip()
    config = FenceConfig(
        command=file.command,
        options=options,
        turn_on=file.turn_on,
        deadline_ns=file.deadline_ns,
        attempt_ns=file.attempt_ns,
    )
    config.check()
    return config


def _read_secrets(file: FenceFile) -> str:
    path = file.secrets
    if path is None:
        return ""
    try:
        with path.open("rb") as opened:
            about = os.fstat(opened.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ConfigError(f"{path}: no file")
            if about.st_mode & 0o077 or about.st_uid not in {0, os.geteuid()}:
                raise ConfigError(
                    f"{path}: it holds secrets, and others may read or change it: it must be yours, mode 0600"
                )
            content = opened.read(SECRETS_BYTES_MAX + 1)
            if len(content) > SECRETS_BYTES_MAX:
                raise ConfigError(f"{path}: more than {SECRETS_BYTES_MAX} bytes")
            return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is no text") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


class Fencer:
    """See the module; `run` is its life.  All methods belong to the trio thread."""

    def __init__(
        self,
        arbitration: Arbitration,
        guest: Guest,
        fence: PowerFence,
        witnesses: Mapping[str, WitnessStore],
        key: WitnessKey,
        now_ns: Callable[[], int],
    ) -> None:
        """``witnesses`` and ``key``: those of ``arbitration``; ``now_ns``: its clock."""
        self._arbitration = arbitration
        self._arbiter = arbitration.arbiter
        self._guest = guest
        self._fence = fence
        self._witnesses = witnesses
        self._key = key
        self._now_ns = now_ns
        self._backoff = Backoff(first_ns=AGAIN_FIRST_NS, limit_ns=AGAIN_LIMIT_NS)
        self._not_before_ns = 0
        self._proven_ns: int | None = None  # the owner was heard last then, and turned off since
        self._agent: str | None = None  # ready or unready, as told last
        self.last: FenceEvent | None = None
        """What was told last, for status."""

    async def run(self) -> None:
        """Fence when it is time, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_checking)
            while True:
                await trio.sleep(LOOK_S)
                await self._look()

    async def _look(self) -> None:
        heard_ns = self._arbiter.heard_ns
        if heard_ns == self._proven_ns or self._now_ns() < self._not_before_ns or not self._owner_is_silent():
            return
        if await self._grant_stands():
            await self._turn_off(heard_ns)
        else:
            self._not_before_ns = self._now_ns() + self._arbiter.timing.witness_probe_ns

    def _owner_is_silent(self) -> bool:
        """As the arbiter says, and nothing is heard on any path of the link either."""
        if not self._arbiter.owner_is_silent(self._now_ns()):
            return False
        paths = () if self._guest.link is None else self._guest.link.statistics().paths
        return all(path.silence_ns >= self._arbiter.timing.silence_ns for path in paths)

    async def _grant_stands(self) -> bool:
        """Whether the witness that votes knows of no newer grant than the one in force."""
        voter, grant = self._arbiter.decider.register.voting_witness(), self._arbiter.grant
        if voter is None or grant is None:
            return False
        try:
            with trio.fail_after(WITNESS_S):
                view = decode_view(await self._witnesses[str(voter.name)].get(self._key))
        except (PeerError, ProtocolError, BackendError, trio.TooSlowError) as error:
            _log.info("not fenced: the witness cannot be asked: %s", str(error) or "no answer")
            return False
        if view.incarnation != voter.incarnation or view.state is None:
            return False
        if view.state.base == grant:
            return view.state.accepted is None
        return is_news(view.state.base, grant)  # it has not even heard of this one

    async def _turn_off(self, heard_ns: int | None) -> None:
        def silent() -> bool:
            return self._arbiter.heard_ns == heard_ns and self._owner_is_silent()

        def proven(reason: str) -> None:
            self._proven_ns = heard_ns
            self._say("proven", reason)
            if silent():  # else it may be on again, and may have been promised something since
                self._arbitration.peer_is_down()

        if not silent():
            return
        self._say("begun", "it owns the guest and is silent")
        result = await self._fence.fence(wanted=silent, proven=proven)
        if result.stopped:
            self._backoff.succeeded()
        else:
            self._not_before_ns = self._now_ns() + self._backoff.failed(self._guest.draw_fraction())
            self._say("failed", result.reason)

    async def _keep_checking(self) -> None:
        while True:
            try:
                state = await self._fence.check_agent()
            except ConfigError as error:
                self._checked("unready", str(error))
            else:
                known = state.value != "unknown"
                self._checked("ready" if known else "unready", f"the other host's power is {state.value}")
            await trio.sleep(CHECK_S)

    def _checked(self, state: str, reason: str) -> None:
        if state != self._agent:
            self._agent = state
            self._say(state, reason)

    def _say(self, state: str, reason: str) -> None:
        self.last = FenceEvent(state, reason)
        self._guest.emit(self.last)
