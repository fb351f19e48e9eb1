"""Scenario transcripts: a story of two hosts as commands, with everything that each of them brings about.

A scenario is a text file::

    # What the story is about.

    pair blocks=16
    ----
    a: -> ...

    write w1 data 3
    ----
    a: journal generation 1 3..4

Blocks of lines are separated by empty lines.  A block is a comment (its lines begin with ``#``), or a
command, ``----`` and its complete output.  `run_scenario` executes the commands and returns the
text with the output that it found; a test compares it with the file, or writes the file.

``pair [blocks=N] [volumes=N] [OPTION=VALUE ...]``
    two new hosts with blank volumes of that many blocks, ``a`` active and ``b`` standby; OPTION is a field of
    `VolumeOptions`, sizes take K, M, G, durations ms or s: ``level=async lag_bytes=1M lag_ns=2s``
``write NAME OP[, OP ...]``, ``flush NAME``, ``close NAME``, ``grow NAME BLOCKS``
    the guest's requests; OP is ``data``, ``zero``, ``trim`` or ``keep`` (zero and keep the space), then
    ``3`` or ``3..7`` (blocks) or ``@512+1024`` (bytes), then ``fua`` if wanted
``do HOST LANE [N|all] [ERRNO]``
    the oldest effects of ``disk``, ``meta`` or ``side`` end, well or with that error
``run HOST``
    all that is under way at HOST ends well, and what follows from it there
``deliver HOST [N|all]``
    messages that HOST has sent arrive
``connect``, ``cut``, ``crash HOST``, ``powercut HOST``, ``start HOST [standby|active] [TERM]``
    the link's session, and the hosts' processes
``tick DURATION``
    time passes
``settle [quiet]``
    everything happens that can happen at once; ``quiet`` shows only what ended and what was told
``status``, ``check``
    how the volumes stand; whether the disks are equal, and whether a crash of the active host right now would
    leave every difference in its dirty map

Each line of output begins with the host; ``->`` is a message that was sent, ``!`` an event.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import (
    Complete,
    Emit,
)
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import (
    OpKind,
    Role,
    WriteOp,
)
from pairsync.core.units import BLOCK_BYTES, GIB, KIB, MIB, NS_PER_MS, NS_PER_S, block_count_of
from pairsync.errors import ConfigError

from .describe import describe_effect, describe_superblock
from .manual import LANES, ManualHost, ManualPair

__all__ = ["run_scenario"]

SEPARATOR = "----"
BLOCKS_DEFAULT = 16


# ---------------------------------------------------------------------- parsing


def _number(text: str) -> int:
    """A count, or bytes with K, M or G."""
    factor = {"K": KIB, "M": MIB, "G": GIB}.get(text[-1:], 1)
    return int(text if factor == 1 else text[:-1]) * factor


def _error_number(name: str) -> int:
    for number, known in errno.errorcode.items():
        if known == name:
            return number
    raise ConfigError(f"no error is called {name!r}")


def _duration_ns(text: str) -> int:
    if text.endswith("ms"):
        return int(text[:-2]) * NS_PER_MS
    if text.endswith("s"):
        return int(text[:-1]) * NS_PER_S
    raise ConfigError(f"{text!r} is no duration: 500ms or 2s")


def _write_op(text: str, fill: int) -> WriteOp:
    words = text.split()
    kinds = {
        "data": OpKind.DATA,
        "zero": OpKind.ZERO,
        "trim": OpKind.TRIM,
        "keep": OpKind.ZERO_ALLOCATE,
    }
    if len(words) not in {2, 3} or words[0] not in kinds or words[2:] not in ([], ["fua"]):
        raise ConfigError(f"{text!r} is no write: such as 'data 3..5 fua' or 'zero @512+512'")
    if words[1].startswith("@"):
        offset, length = (int(part) for part in words[1][1:].split("+"))
    else:
        start, _, stop = words[1].partition("..")
        offset = int(start) * BLOCK_BYTES
        length = (int(stop) if stop else int(start) + 1) * BLOCK_BYTES - offset
    kind = kinds[words[0]]
    data = bytes([fill % 255 + 1]) * length if kind is OpKind.DATA else None
    return WriteOp(kind, offset, length, data, fua=len(words) == 3)


def _options(settings: dict[str, str]) -> VolumeOptions:
    """`VolumeOptions` by the names of its fields; what ends in ``_ns`` takes a duration."""
    known = {each.name for each in dataclasses.fields(VolumeOptions)}
    found: dict[str, object] = {}
    for name, text in settings.items():
        if name not in known:
            raise ConfigError(f"no option of a volume is called {name!r}")
        parse = (
            _duration_ns if name.endswith("_ns") else _number if name.endswith(("_bytes", "_max")) else str
        )
        found[name] = parse(text)
    return VolumeOptions(**found)  # type: ignore[arg-type]  # the names were looked up, the types follow


# ---------------------------------------------------------------------- running


class _Runner:
    """Executes commands; what each brings about is what the sessions wanted since the last one."""

    def __init__(self) -> None:
        self._pair: ManualPair | None = None
        self._writes = 0  # each has content of its own
        self._table: dict[str, Callable[[list[str]], list[str] | None]] = {
            "pair": self._begin,
            "write": self._write,
            "flush": lambda words: self._active().flush(words[0]),
            "close": lambda words: self._active().close(words[0]),
            "grow": lambda words: self._active().grow(words[0], int(words[1]) * BLOCK_BYTES),
            "do": self._do,
            "run": self._run,
            "deliver": self._deliver,
            "connect": lambda _: self._the_pair().connect(),
            "cut": lambda _: self._the_pair().cut(),
            "crash": lambda words: self._the_pair().crash(self._host(words)),
            "powercut": lambda words: self._the_pair().crash(self._host(words), power=True),
            "start": self._start,
            "tick": lambda words: self._the_pair().tick(_duration_ns(words[0])),
            "settle": self._settle,
            "status": lambda _: self._status(),
            "check": lambda _: self._check(),
        }

    def run(self, command: str) -> list[str]:
        verb, *words = command.split()
        if verb not in self._table:
            raise ConfigError(f"no command is called {verb!r}: {', '.join(self._table)}")
        said = self._table[verb](words)
        return said if said is not None else self._happened()

    def _the_pair(self) -> ManualPair:
        if self._pair is None:
            raise ConfigError("a scenario begins with 'pair'")
        return self._pair

    def _host(self, words: list[str]) -> ManualHost:
        pair = self._the_pair()
        if words[0] not in {"a", "b"}:
            raise ConfigError(f"no host is called {words[0]!r}: a or b")
        return pair.host(words[0])

    def _active(self) -> ManualHost:
        pair = self._the_pair()
        for host in (pair.a, pair.b):
            if host.up and host.session.role is Role.ACTIVE:
                return host
        raise ConfigError("no active host is up")

    def _happened(self, *, quiet: bool = False) -> list[str]:
        pair = self._the_pair()
        lines = []
        for host in (pair.a, pair.b):
            for effect in host.trace:
                if quiet and not isinstance(effect, (Complete, Emit)):
                    continue
                lines += [f"{host.name}: {line}" for line in describe_effect(effect)]
            host.trace.clear()
        return lines

    # ------------------------------------------------------------------ commands

    def _begin(self, words: list[str]) -> None:
        settings = dict(word.split("=", 1) for word in words)
        blocks = int(settings.pop("blocks", BLOCKS_DEFAULT))
        volumes = int(settings.pop("volumes", 1))
        self._pair = ManualPair(blocks * BLOCK_BYTES, _options(settings), volumes=volumes)
        self._pair.a.start(Role.ACTIVE, 1)
        self._pair.b.start(Role.STANDBY, 1)

    def _write(self, words: list[str]) -> None:
        self._writes += 1
        volume = 0
        if words[1].startswith("volume="):
            volume = int(words.pop(1).removeprefix("volume="))
        ops = [_write_op(part, self._writes) for part in " ".join(words[1:]).split(",")]
        self._active().write(words[0], ops, volume)

    def _start(self, words: list[str]) -> None:
        role = Role.ACTIVE if "active" in words else Role.STANDBY
        if "active" not in words and "standby" not in words and words[0] == "a":
            role = Role.ACTIVE
        term = next((int(word) for word in words if word.isdigit()), 1)
        self._host(words).start(role, term)

    def _do(self, words: list[str]) -> None:
        host, lane = self._host(words), words[1]
        if lane not in LANES:
            raise ConfigError(f"no lane is called {lane!r}: {', '.join(LANES)}")
        error = next((_error_number(word) for word in words[2:] if word.startswith("E")), 0)
        volume = next((int(w.removeprefix("volume=")) for w in words[2:] if w.startswith("volume=")), 0)
        count = next((int(word) for word in words[2:] if word.isdigit()), 1)
        if "all" in words:
            count = len(host.waiting(lane, volume))
        for _ in range(count):
            host.complete(lane, volume, error=error)

    def _run(self, words: list[str]) -> None:
        host = self._host(words)
        while host.busy:
            host.complete(*host.busy[0])

    def _deliver(self, words: list[str]) -> None:
        host = self._host(words)
        count = len(host.outbox) if words[1:] == ["all"] else int(words[1]) if len(words) > 1 else 1
        self._the_pair().deliver(host, count)

    def _settle(self, words: list[str]) -> list[str]:
        """In the order in which it happens, host by host within a step."""
        lines: list[str] = []
        while self._the_pair().step():
            lines += self._happened(quiet=words == ["quiet"])
        return lines

    def _status(self) -> list[str]:
        lines = []
        pair = self._the_pair()
        for host in (pair.a, pair.b):
            if not host.up:
                lines.append(f"{host.name}: down")
                continue
            session = host.session
            synced = "in sync" if session.in_sync else "not in sync"
            lines.append(f"{host.name}: {session.role.name.lower()}, {session.phase.value}, {synced}")
            for source in session.sources:
                dirty = source.tracker.dirty().describe()
                lines.append(f"   {source.standing.name}: peer {source.standing.phase.value}, dirty {dirty}")
                lines.append(f"   {source.standing.name}: {describe_superblock(source.standing.superblock)}")
            blocks = [target.superblock for target in session.targets]
            lines += [f"   {block.name}: {describe_superblock(block)}" for block in blocks]
        return lines

    def _check(self) -> list[str]:
        pair = self._the_pair()
        lines = []
        for volume, disk in enumerate(pair.a.disks):
            differing = DirtyMap(block_count_of(len(disk.content)))
            for block in pair.differing(volume):
                differing.mark(block, block + 1)
            name = pair.a.metadata[volume].superblock.name
            lines.append(f"{name}: differing {differing.describe()}" if differing else f"{name}: equal")
            lines += [
                f"{name}: block {block} is not in the active host's dirty map"
                for block in pair.forgotten(volume)
            ]
        return lines


def run_scenario(text: str) -> str:
    """The scenario with the output that its commands bring about today.

    Raises `ConfigError` for a command that is not understood, naming it.
    """
    runner = _Runner()
    blocks: list[str] = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if all(line.startswith("#") for line in lines):
            blocks.append(block)
            continue
        command = lines[0]
        if lines[1:2] not in ([], [SEPARATOR]):
            raise ConfigError(f"{command!r}: one command, {SEPARATOR!r}, and its output")
        try:
            output = runner.run(command)
        except IndexError as error:
            raise ConfigError(f"{command!r}: words are missing") from error
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{command!r}: {error}") from error
        blocks.append("\n".join([command, SEPARATOR, *output]))
    return "\n\n".join(blocks) + "\n"
