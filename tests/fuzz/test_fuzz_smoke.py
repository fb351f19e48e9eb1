"""Every fuzz target holds for some hundred inputs, and the fuzzer finds a planted bug."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.fuzz import run_fuzz

SMOKE_COUNT = 400
BURST_S = 2
PLANTED_S = 20  # a bound, not a wait: the bug is found within a second
DEADLINE_S = 120.0
TARGETS = run_fuzz.discover()

PLANTED = '''
"""A decoder with a bug that noise alone does not find: a right magic, then a length that is believed."""


def fuzz_magic(data: bytes) -> None:
    if len(data) > 4 and data[0] == 0x50 and data[1] == 0x53 and data[2] == 0x59 and data[3] == data[4]:
        raise IndexError("a length that was believed")


def fuzz_sound(data: bytes) -> None:
    data.decode("latin-1")


def seeds_sound() -> list[bytes]:
    return [b"a seed"]
'''


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, run_fuzz.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    (tmp_path / "fuzz_planted.py").write_text(textwrap.dedent(PLANTED), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_target_holds(target: run_fuzz.Target) -> None:
    function, seeds = run_fuzz.load(target)
    for number, data in enumerate(run_fuzz.smoke_inputs(target.name, seeds, SMOKE_COUNT)):
        try:
            function(data)
        except Exception as error:
            error.add_note(f"input {number} of {target.name}: {data.hex()}")
            raise


def test_smoke_inputs_are_the_same_every_time_and_differ() -> None:
    first, again = (list(run_fuzz.smoke_inputs("a.b", [bytes(range(64))], SMOKE_COUNT)) for _ in range(2))
    assert first == again
    assert first[:2] == [bytes(range(64)), b""]
    assert len(set(first)) > SMOKE_COUNT * 0.9
    assert list(run_fuzz.smoke_inputs("a.c", [bytes(range(64))], SMOKE_COUNT)) != first


def test_targets_are_found_without_importing_them(planted: Path) -> None:
    assert [target.name for target in run_fuzz.discover(planted)] == ["planted.magic", "planted.sound"]
    assert _run("list", "--directory", planted).stdout.split() == ["planted.magic", "planted.sound"]


def test_an_unknown_target_is_named(planted: Path) -> None:
    done = _run("one", "planted.nothing", planted / "x", "--directory", planted)
    assert done.returncode == 1
    assert "there are: planted.magic, planted.sound" in done.stderr


def test_the_fuzzer_finds_a_planted_bug_and_says_how_to_replay_it(planted: Path) -> None:
    store = planted / "store"
    options = ("--directory", planted, "--store", store, "--seed", "1")
    done = _run("all", "--seconds", str(PLANTED_S), "--only", "planted.magic", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "a length that was believed" in done.stdout
    found = re.search(r"make fuzz-one TARGET=planted.magic INPUT=(\S+)", done.stdout)
    assert found, done.stdout
    assert Path(found[1]).read_bytes()[:3] == b"PSY"
    replayed = _run("one", "planted.magic", found[1], "--directory", planted)
    assert replayed.returncode == 1
    assert "IndexError: a length that was believed" in replayed.stderr


def test_a_sound_target_holds_for_its_time(planted: Path) -> None:
    directory, name = (run_fuzz.HERE, TARGETS[0].name) if TARGETS else (planted, "planted.sound")
    store = planted / "store"
    done = _run("all", "--seconds", str(BURST_S), "--only", name, "--directory", directory, "--store", store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 target(s) held" in done.stdout
    executions = re.search(r"([\d,]+) executions", done.stdout)
    assert executions
    assert int(executions[1].replace(",", "")) > 100
    assert any((store / name).iterdir())
