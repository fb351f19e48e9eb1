"""The command line: it teaches, answers quickly, and its errors are one line with the right exit status."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from cyclopts import App
from tests.cli.conftest import Command, Ended

import pairsync
from pairsync import cli
from pairsync.cli import app as app_module
from pairsync.cli.app import app

SRC = Path(pairsync.__file__).parent.parent
DEADLINE_S = 60.0

FIXED = [
    *(["lab", name] for name in ("up", "status", "kill", "start", "cut", "heal", "disk", "wait", "check")),
    *(["lab", name] for name in ("scrub", "grow")),
    *(["lab", "overlay", name] for name in ("list", "export", "undo")),
]
"""Scripts of others depend on these."""


def _commands(place: App, words: list[str]) -> Iterator[list[str]]:
    yield words
    for name in place:
        if not name.startswith("-"):
            yield from _commands(place[name], [*words, name])


COMMANDS = list(_commands(app, []))


def _run(*words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The command as installed, in a process of its own."""
    return subprocess.run(
        [sys.executable, *options, "-c", "from pairsync.cli import main; main()", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "100", "NO_COLOR": "1"},
    )


def _help(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    app([*words, "--help"], result_action="return_value")
    return capsys.readouterr().out


# -- help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(words, capsys)
    assert re.search(rf"Usage: .*{re.escape(' '.join(words))}", text)
    sentences = [line for line in text.splitlines()[1:] if re.match(r"[A-Z].*[.a-z,]\s*$", line)]
    assert sentences, "a sentence that says what it does"
    unexplained = re.findall(r"│[ *]+(-?-?[A-Za-z_-]+)(?: [A-Z.]+)?\s+(?:\[[^\]]*\]\s*)*│", text)
    assert unexplained == []


def test_the_list_of_commands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert [words for words in FIXED if words not in COMMANDS] == []
    for words in COMMANDS:
        if words:
            assert re.search(rf"│ {words[-1]} ", _help(words[:-1], capsys)), words


def test_units_and_forms_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "NAME=SIZE" in _help(["lab", "up"], capsys)
    assert "Seconds" in _help(["lab", "wait"], capsys)
    init = _help(["host", "init"], capsys)
    assert "/dev/" in init
    assert "10888" in init


def test_help_and_version_load_neither_trio_nor_cryptography() -> None:
    for words in (
        [],
        ["--help"],
        ["--version"],
        ["lab", "up", "--help"],
        ["host", "init", "--help"],
        ["witness", "serve", "--help"],
        ["demo", "--help"],
    ):
        done = _run(*words, options=("-X", "importtime"))
        assert done.returncode == 0, done.stderr
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "pairsync" in loaded
        assert loaded & {"trio", "cryptography", "msgpack", "bitarray", "asyncio", "ssl"} == set(), words


def test_the_version_is_the_packages() -> None:
    done = _run("--version")
    assert (done.stdout.strip(), done.returncode) == (version("pairsync"), 0)


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "finding"),
    [
        (["nonsense"], "nonsense"),
        (["lab", "kil"], "kil"),
        (["lab", "kill"], "DIRECTORY"),
        (["lab", "kill", "x", "c"], "'a'.*'b'|\"a\".*\"b\"|a, b|Choose from"),
        (["lab", "disk", "x", "b", "vda", "melt"], "melt"),
        (["lab", "wait", "x", "--timeout", "soon"], "soon"),
        (["lab", "up", "x", "--level", "epoch"], "epoch"),
        (["lab", "up", "x", "--volume"], "volume"),
        (["lab", "status", "x", "--yaml"], "yaml"),
        (["demo", "--directory"], "directory"),
        (["host", "init"], "DIRECTORY"),
    ],
)
def test_a_wrong_command_is_status_2(command: Command, words: list[str], finding: str) -> None:
    done = command(*words)
    assert (done.status, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("pairsync: ")
    assert line.endswith(" --help")
    assert re.search(finding, line)


def test_statuses_are_those_of_the_process() -> None:
    wrong = _run("nonsense")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    impossible = _run("lab", "status", "NOWHERE")
    assert (impossible.returncode, impossible.stdout) == (1, "")
    assert impossible.stderr == "pairsync: NOWHERE holds no lab (no lab.json)\n"


@pytest.mark.parametrize(
    ("words", "finding"),
    [
        (["lab", "status", "NOWHERE"], "NOWHERE holds no lab"),
        (["lab", "kill", "NOWHERE", "a"], "NOWHERE holds no lab"),
        (["lab", "start", "NOWHERE", "b"], "NOWHERE holds no lab"),
        (["lab", "cut", "NOWHERE"], "NOWHERE holds no lab"),
        (["lab", "heal", "NOWHERE"], "NOWHERE holds no lab"),
        (["lab", "check", "NOWHERE"], "NOWHERE holds no lab"),
        (["lab", "wait", "NOWHERE", "--in-sync"], "NOWHERE holds no lab"),
        (["lab", "wait", "NOWHERE"], "say what to wait for: --in-sync"),
        (["lab", "wait", "NOWHERE", "--in-sync", "--timeout", "0"], "--timeout must be positive"),
        (["lab", "wait", "NOWHERE", "--in-sync", "--timeout", "nan"], "--timeout must be positive"),
        (["lab", "grow", "NOWHERE", "vda", "1M", "--timeout", "-1"], "--timeout must be positive"),
        (["lab", "up", "lab", "--volume", "vda=1M", "--failover", "0"], "from 1 to 60 s are possible"),
        (["lab", "up", "lab"], "needs at least one --volume"),
        (["lab", "up", "lab", "--volume", "vda"], "NAME=SIZE"),
        (["lab", "up", "lab", "--volume", "vda=much"], "'much' is not a size"),
        (["lab", "up", "FILE/lab", "--volume", "vda=1M"], "FILE"),
        (["lab", "up", "lab", "--volume", f"vda={'9' * 5000}"], "is not a size"),
        (["lab", "up", "FILE", "--volume", "vda=1M"], "FILE: File exists"),
        (["lab", "up", "ODD", "--volume", "vda=1M"], "ODD/lock: Is a directory"),
        (["lab", "status", "FILE"], "FILE holds no lab"),
        (["lab", "status", "ODD"], r"ODD/lab\.json: Is a directory"),
        (["witness", "serve", "FILE"], r": FILE/witness\.toml: Not a directory$"),
        (["host", "override", "NOWHERE"], "NOWHERE: No such file"),
        (["host", "init", "host", "--volume", "vda=1M", "--name", "x" * 51], "no name for a certificate"),
        (["host", "run", "NOWHERE"], "NOWHERE: No such file"),
        (["host", "run", "FILE"], "FILE: "),
        (["host", "status", "NOWHERE"], "NOWHERE: No such file"),
        (["host", "init", "host"], "at least one --volume"),
        (["host", "init", "host", "--volume", "vda=1M", "--pair", "zz"], "not hexadecimal"),
        (
            ["host", "init", "host", "--volume", "vda=1M", "--peer", "here:port"],
            "'here:port' is not an address",
        ),
        (["host", "init", "host", "--volume", "vda=1M", "--overwrite"], "first host is the active one"),
        (["host", "init", "FILE/host", "--volume", "vda=1M"], "FILE"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], finding: str
) -> None:
    (tmp_path / "FILE").write_text("neither a directory nor a host's file")
    for name in ("lock", "lab.json"):
        (tmp_path / "ODD" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    done = command(*words)
    assert (done.status, done.out) == (1, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("pairsync: ")
    assert re.search(finding, done.err), done.err


def test_several_errors_are_a_line_each(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ExceptionGroup(
            "beside each other",
            [pairsync.ConfigError("one"), ExceptionGroup("deeper", [pairsync.ConfigError("two")])],
        )

    monkeypatch.setattr(app_module, "app", fail)
    assert command() == Ended(1, "", "pairsync: one\npairsync: two\n")


def test_a_place_that_cannot_be_had_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise wrong

    monkeypatch.setattr(app_module, "app", fail)
    wrong = OSError(errno.EACCES, "Permission denied", "host.toml")
    assert command() == Ended(1, "", "pairsync: host.toml: Permission denied\n")
    wrong = OSError(errno.EBADF, "Bad file descriptor")
    with pytest.raises(ExceptionGroup):
        app_module.run()


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(app_module, "app", fail)
    with pytest.raises(ZeroDivisionError):
        app_module.run()


def test_ctrl_c_is_status_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app_module, "app", fail)
    assert command() == Ended(130, "", "")


def test_ctrl_c_while_the_command_is_being_loaded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loading(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, app_module.__name__, Loading(app_module.__name__))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
