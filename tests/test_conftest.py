"""The shared helpers of the suite do what they promise: a suite that skips or leaks unseen proves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 60.0

SAMPLE = """
import os
import pytest
import trio

@pytest.mark.tools("sh", "no-such-program", "/no/such/file-*")
def test_marked(): pass

def test_asks(require_tool):
    assert require_tool("sh").endswith("/sh")
    require_tool("sh", "python:no_such_module")

def test_skips_itself():
    pytest.skip("not today")

@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail():
    raise ValueError

@pytest.mark.root
def test_root():
    assert os.geteuid() == 0

@pytest.mark.tools("sh")
def test_can_run(): pass

def test_leaks(leak_guard):
    os.dup(0)

def test_clean(leak_guard):
    os.close(os.dup(0))

async def test_settles(leak_guard):
    with pytest.raises(RuntimeError, match="rebase"):
        leak_guard.check()
    leak_guard.rebase()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 0.05)
        await trio.lowlevel.checkpoint()
        with pytest.raises(pytest.fail.Exception, match="1 trio task"):
            leak_guard.check()
        await leak_guard.settle()
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own with our conftest and settings, and the sample as its only tests."""
    directory = tmp_path_factory.mktemp("sample")
    shutil.copy(ROOT / "pyproject.toml", directory)
    shutil.copytree(ROOT / "tools", directory / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", directory / "tests")
    (directory / "tests" / "test_sample.py").write_text(SAMPLE, encoding="utf-8")
    return directory


def _summary(directory: Path, *, ci: bool) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "CI"))}
    environment |= {"CI": "true"} if ci else {}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-vv"]
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return done.stdout.partition("short test summary info")[2].splitlines()


@pytest.fixture(scope="module")
def by_hand(sample: Path) -> list[str]:
    """The summary of a person's run."""
    return _summary(sample, ci=False)


def _with(lines: list[str], *parts: str) -> list[str]:
    return [line for line in lines if all(part in line for part in parts)]


def test_skips_are_named_with_the_reason(by_hand: list[str]) -> None:
    assert _with(
        by_hand, "SKIPPED", "test_marked: needs no-such-program, /no/such/file-* (make tools as root"
    )
    assert _with(by_hand, "SKIPPED", "test_asks: needs python:no_such_module")
    assert _with(by_hand, "SKIPPED", "test_skips_itself: not today")
    assert _with(by_hand, "PASSED", "test_can_run")
    assert _with(by_hand, "PASSED" if os.geteuid() == 0 else "SKIPPED", "test_root")
    assert len(_with(by_hand, "SKIPPED")) == (3 if os.geteuid() == 0 else 4)


def test_a_skip_is_a_failure_under_ci(sample: Path) -> None:
    lines = _summary(sample, ci=True)
    assert _with(lines, "SKIPPED") == []
    for name in ("test_marked", "test_asks", "test_skips_itself"):
        assert _with(lines, f"test_sample.py::{name}", "under CI=true a skip is a failure"), lines
    assert _with(lines, "XFAIL", "test_expected_to_fail")
    assert _with(lines, "PASSED", "test_can_run")


def test_leaks_are_found(by_hand: list[str]) -> None:
    assert _with(by_hand, "ERROR", "test_leaks", "the test left behind: descriptor")
    assert len(_with(by_hand, "ERROR")) == 1
    assert _with(by_hand, "PASSED", "test_clean")
    assert _with(by_hand, "PASSED", "test_settles")
