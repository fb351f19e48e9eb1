"""Fuzzing of every decoder: arbitrary bytes give a message or the protocol's error, nothing else.

A target is a function ``fuzz_NAME(data: bytes) -> None`` of a module ``tests/fuzz/fuzz_ROOM.py``; its name
here is ``ROOM.NAME``.  It returns where the bytes were understood or refused as they must be, and lets every
other exception through: that is the finding.  Beside it there may be ``seeds_NAME() -> Iterable[bytes]``:
valid inputs to start from, without which nothing behind a digest is ever reached.

::

    run_fuzz.py list
    run_fuzz.py all [--seconds N] [--only ROOM.NAME] [--jobs N] [--seed N]    coverage guided, by atheris
    run_fuzz.py one ROOM.NAME FILE                                            replay one input

Each target runs in a process of its own, for a bounded time and in bounded memory.  What it has learnt stays
in ``.fuzz-corpus/ROOM.NAME`` for the next run; an input that breaks a target is written to
``.fuzz-corpus/crashes`` and printed with the command that replays it.  The test suite uses `smoke_inputs`
instead: the same few hundred inputs each time, without atheris.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CORPUS = ROOT / ".fuzz-corpus"

MAX_RSS_MIB = 512  # a decoder that needs more for 64 KiB of input has allocated what it was told to
MAX_INPUT_BYTES = 64 * 1024  # longer inputs find nothing new in decoders whose headers are tens of bytes
MAX_INPUT_S = 5  # libFuzzer's limit for one input: slower is a finding
START_S = 60.0  # until the interpreter is up, everything imported and instrumented, on a busy machine
OUTPUT_TAIL_LINES = 40
SMOKE_MAX_BYTES = 512


@dataclasses.dataclass(frozen=True)
class Target:
    """One function under fuzz."""

    module: str
    function: str

    @property
    def name(self) -> str:
        """``ROOM.NAME``."""
        return f"{self.module.removeprefix('fuzz_')}.{self.function.removeprefix('fuzz_')}"


def discover(directory: Path = HERE) -> list[Target]:
    """All targets below a directory, without importing anything (atheris has to come first)."""
    pattern = re.compile(r"^def (fuzz_\w+)\(", flags=re.MULTILINE)
    return [
        Target(path.stem, function)
        for path in sorted(directory.glob("fuzz_*.py"))
        for function in pattern.findall(path.read_text(encoding="utf-8"))
    ]


def _target_named(name: str, directory: Path) -> Target:
    targets = discover(directory)
    for target in targets:
        if target.name == name:
            return target
    raise SystemExit(f"no target {name!r}; there are: {', '.join(t.name for t in targets) or 'none'}")


def _module(target: Target, directory: Path) -> ModuleType:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    return importlib.import_module(target.module)


def load(target: Target, directory: Path = HERE) -> tuple[Callable[[bytes], None], list[bytes]]:
    """The function under fuzz and its seeds."""
    module = _module(target, directory)
    seeds: Callable[[], Iterable[bytes]] = getattr(
        module, target.function.replace("fuzz_", "seeds_", 1), tuple
    )
    function: Callable[[bytes], None] = getattr(module, target.function)
    return function, list(seeds())


# -- without atheris -----------------------------------------------------------------------------------------


def _mutate(data: bytes, chance: random.Random) -> bytes:
    """One change of the kind that breaks decoders."""
    spoilt = bytearray(data)
    at = chance.randrange(len(spoilt) + 1)
    match chance.randrange(6):
        case 0:
            del spoilt[at:]
        case 1:
            spoilt[at:at] = chance.randbytes(chance.randrange(1, 9))
        case 2:
            spoilt[at : at + 4] = chance.choice(
                (b"\x00" * 4, b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\x80" + b"\x00" * 3)
            )
        case 3:
            spoilt[at:at] = spoilt[: chance.randrange(len(spoilt) + 1)]
        case 4:
            del spoilt[at : at + chance.randrange(1, 9)]
        case _:
            spoilt[at : at + 1] = chance.randbytes(1)
    return bytes(spoilt)


def smoke_inputs(name: str, seeds: Sequence[bytes], count: int) -> Iterator[bytes]:
    """The seeds themselves, then `count` inputs, the same every time: half noise, half spoilt seeds."""
    yield from seeds
    yield b""
    chance = random.Random(name)
    for number in range(count):
        if number % 2 or not seeds:
            yield chance.randbytes(chance.randrange(SMOKE_MAX_BYTES))
            continue
        data = chance.choice(seeds)
        for _ in range(chance.randrange(1, 5)):
            data = _mutate(data, chance)
        yield data


# -- with atheris --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one target."""

    target: Target
    executions: int
    seconds: float
    peak_rss_mib: int
    corpus_count: int
    crash: Path | None
    output: str  # the end of it, where something went wrong

    @property
    def ok(self) -> bool:
        """Whether the target held for its whole time."""
        return not self.output

    def describe(self) -> str:
        """One line for people."""
        verdict = "ok" if self.ok else "FAILED"
        rate = self.executions / self.seconds if self.seconds else 0.0
        return (
            f"{self.target.name:<28} {verdict:<6} {self.executions:>11,} executions in {self.seconds:.0f} s "
            f"({rate:,.0f}/s), corpus {self.corpus_count}, peak {self.peak_rss_mib} MiB"
        )


def _child(target: Target, directory: Path, flags: Sequence[str]) -> None:
    """The process of one target: libFuzzer takes over and ends it."""
    import atheris

    with atheris.instrument_imports(include=["pairsync", target.module]):
        function, _ = load(target, directory)
    atheris.Setup([sys.argv[0], *flags], function)
    atheris.Fuzz()


def _plant_seeds(target: Target, directory: Path, corpus: Path) -> None:
    for seed in load(target, directory)[1]:
        path = corpus / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}"
        path.write_bytes(seed)


def _statistic(output: str, name: str) -> int:
    found = re.search(rf"^stat::{name}:\s+(\d+)", output, flags=re.MULTILINE)
    return int(found[1]) if found else 0


def _fuzz(target: Target, directory: Path, store: Path, seconds: int, seed: int) -> Outcome:
    """Run one target to its end; never longer than its time and `START_S`."""
    corpus, crashes = store / target.name, store / "crashes"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    _plant_seeds(target, directory, corpus)
    prefix = crashes / f"{target.name}-"
    flags = [
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={MAX_RSS_MIB}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={MAX_INPUT_S}",
        f"-artifact_prefix={prefix}",
        f"-seed={seed}",
        "-print_final_stats=1",
    ]
    before = set(crashes.glob(f"{prefix.name}*"))
    script = str(Path(__file__).resolve())
    command = [sys.executable, script, "child", str(directory), target.name, *flags, str(corpus)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + START_S,
            env=os.environ | {"PYTHONHASHSEED": "0"},
            check=False,
        )
        output, trouble = done.stdout.decode(errors="replace"), f"exit status {done.returncode}"
        failed = done.returncode != 0
    except subprocess.TimeoutExpired as expired:
        output, trouble, failed = (
            (expired.stdout or b"").decode(errors="replace"),
            "did not end in time",
            True,
        )
    took = re.search(r"^Done \d+ runs in (\d+) second", output, flags=re.MULTILINE)
    new = sorted(set(crashes.glob(f"{prefix.name}*")) - before)
    tail = "\n".join([*output.splitlines()[-OUTPUT_TAIL_LINES:], trouble])
    return Outcome(
        target=target,
        executions=_statistic(output, "number_of_executed_units"),
        seconds=float(took[1]) if took else 0.0,
        peak_rss_mib=_statistic(output, "peak_rss_mb"),
        corpus_count=sum(1 for _ in corpus.iterdir()),
        crash=new[0] if new else None,
        output=tail if failed else "",
    )


def _report(outcome: Outcome) -> None:
    print(outcome.describe(), flush=True)
    if outcome.ok:
        return
    print("    " + outcome.output.replace("\n", "\n    "))
    if outcome.crash is not None:
        path = outcome.crash.relative_to(ROOT) if outcome.crash.is_relative_to(ROOT) else outcome.crash
        print(f"replay it:  make fuzz-one TARGET={outcome.target.name} INPUT={path}", flush=True)


def fuzz_all(targets: Sequence[Target], options: argparse.Namespace) -> int:
    """Every target for its time, `options.jobs` at once; 1 if one of them broke."""
    if importlib.util.find_spec("atheris") is None:
        print("fuzzing needs atheris, which has no release for this Python yet; the smoke test needs nothing")
        return 1
    print(f"{len(targets)} target(s), {options.seconds} s each, {options.jobs} at once", flush=True)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=options.jobs) as pool:
        runs = [
            pool.submit(_fuzz, target, options.directory, options.store, options.seconds, options.seed)
            for target in targets
        ]
        for run in concurrent.futures.as_completed(runs):
            outcome = run.result()
            _report(outcome)
            failed += not outcome.ok
    print(f"{len(targets) - failed} of {len(targets)} target(s) held")
    return 1 if failed or not targets else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="names of all targets")
    every = commands.add_parser("all", help="fuzz all targets, or one")
    every.add_argument("--seconds", type=int, default=60, help="each target's time")
    every.add_argument("--only", metavar="ROOM.NAME")
    every.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at once")
    every.add_argument("--seed", type=int, default=0, help="of libFuzzer; 0 draws one")
    every.add_argument("--store", type=Path, default=CORPUS, help="where the corpora are kept")
    one = commands.add_parser("one", help="replay an input")
    one.add_argument("target")
    one.add_argument("input", type=Path)
    for command in (listing, every, one):
        command.add_argument("--directory", type=Path, default=HERE, help="where the fuzz_*.py are")
    return parser


def main(arguments: Sequence[str]) -> int:
    """The command line; see the top of this file."""
    if arguments[:1] == ["child"]:  # started by `_fuzz`; the rest is for libFuzzer
        child_directory = Path(arguments[1])
        _child(_target_named(arguments[2], child_directory), child_directory, arguments[3:])
    options = _parser().parse_args(arguments)
    directory: Path = options.directory
    match options.command:
        case "list":
            print("\n".join(target.name for target in discover(directory)))
        case "all":
            only = [_target_named(options.only, directory)] if options.only else discover(directory)
            return fuzz_all(only, options)
        case _:
            load(_target_named(options.target, directory), directory)[0](options.input.read_bytes())
            print("the target holds for this input")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
