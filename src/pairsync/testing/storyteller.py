"""Transcripts of `pairsync.testing.story`.

The form is that of `pairsync.testing.scenario`: a command, ``----``, and all that it brings about, each line
with its time in milliseconds and the host.  `run_story` returns the text with what happens today.

``pair [witness=none] [failover=DURATION]``
    host ``a`` with the first grant, host ``b`` without memory; they meet, and ``b``'s replica is proven
``run DURATION``
    time passes
``cut LINK``, ``heal LINK``
    LINK is ``a-b``, ``a-w``, ``b-w`` or ``all``: nothing that is under way on it arrives
``crash HOST``, ``forget HOST``, ``start HOST``
    a process ends (``forget``: and its host loses memory and replica), or begins
``forget w``
    the witness's store is lost, and begins anew
``pause HOST DURATION``
    a process stands still, its guard does not
``move``, ``out``, ``own-out``
    wishes at the owner: to the other host; without the peer's replica; without its own
``override HOST NAME``
    an operator makes HOST the owner
``status``
    how everybody stands
"""

from __future__ import annotations

from pairsync.core.arbiter import Arbiter
from pairsync.core.arbitration import Effect
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import ConfigError

from .story import Story, StoryHost

__all__ = ["run_story"]

SEPARATOR = "----"


def _duration_ns(text: str) -> int:
    for unit, factor in (("ms", NS_PER_MS), ("s", NS_PER_S)):
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    raise ConfigError(f"{text!r} is no duration: 500ms or 2s")


class _Teller:
    """Executes commands."""

    def __init__(self) -> None:
        self._story: Story | None = None

    def tell(self, command: str) -> list[str]:
        verb, *words = command.split()
        if verb == "pair":
            settings = dict(word.split("=", 1) for word in words)
            failover_ns = _duration_ns(settings.get("failover", "5s"))
            self._story = Story(witness=settings.get("witness") != "none", failover_ns=failover_ns)
        elif self._story is None:
            raise ConfigError("a story begins with 'pair'")
        elif verb == "status":
            return self._story.status()
        else:
            self._strike(self._story, verb, words)
        lines, self._story.lines = self._story.lines, []
        self._story.check()
        return lines

    def _strike(self, story: Story, verb: str, words: list[str]) -> None:
        owner = story.a if story.a.running else story.b
        if verb == "run":
            story.run(_duration_ns(words[0]))
        elif verb in {"cut", "heal"}:
            story.cut(words[0], heal=verb == "heal")
        elif verb == "forget":
            story.forget(words[0])
        elif verb == "crash":
            story.host(words[0]).crash()
        elif verb == "start":
            story.host(words[0]).start()
        elif verb == "pause":
            story.pause(story.host(words[0]), _duration_ns(words[1]))
        elif verb == "override":
            owner = story.host(words[0])
            fork = words[1].encode().ljust(8)[:8]
            owner.lacking, owner.other.lacking = False, True  # by the operator's word
            owner.does(lambda arbiter, now_ns: arbiter.override(words[1], fork, now_ns))
        elif verb == "out":
            owner.does(lambda arbiter, now_ns: arbiter.peer_out(now_ns))
        elif verb == "own-out":
            owner.does(lambda arbiter, now_ns: arbiter.own_out(now_ns)[1])
        elif verb == "move":
            owner.does(lambda arbiter, now_ns: self._move(story, owner, arbiter, now_ns))
        else:
            raise ConfigError(f"no command is called {verb!r}")

    def _move(self, story: Story, owner: StoryHost, arbiter: Arbiter, now_ns: int) -> list[Effect]:
        refusal, effects = arbiter.move(now_ns)
        if refusal:
            story.say(owner, f"refuses to move: {refusal}")
        return effects


def run_story(text: str) -> str:
    """The story with what its commands bring about today; `ConfigError` for one that is not understood."""
    teller = _Teller()
    blocks: list[str] = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if all(line.startswith("#") for line in lines):
            blocks.append(block)
            continue
        try:
            output = teller.tell(lines[0])
        except (ConfigError, IndexError, ValueError) as error:
            raise ConfigError(f"{lines[0]!r}: {error}") from error
        blocks.append("\n".join([lines[0], SEPARATOR, *output]))
    return "\n\n".join(blocks) + "\n"
