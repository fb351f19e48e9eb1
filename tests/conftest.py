"""What every test may use: outside programs, root, leaks, and the hypothesis profiles.

Rules that hold for the whole suite:

- A test that needs an outside program says so with ``@pytest.mark.tools("fio", ...)`` or calls the fixture
  ``require_tool("fio", ...)``.  Without the program it is skipped by its name, with the Debian package to
  install.  A test that needs root has ``@pytest.mark.root``.  Files and modules of the system's own Python
  count as programs: ``"/boot/vmlinuz-*-cloud-*"``, ``"python:nbd"``.
- Under ``CI=true`` nothing is skipped: every skip, for whatever reason, is a failure that gives the reason.
- Property tests are derandomized unless ``--hypothesis-profile=dev`` asks for new examples.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeAlias

import hypothesis
import pytest
import trio
from tools import system

CI_EXAMPLES = 100  # examples a property test, derandomized: the suite takes the same time every day
DEV_EXAMPLES = 300  # examples a property test when a person looks for new ones
SETTLE_S = 10.0  # how long descriptors and tasks may take to come back after a session has ended
SETTLE_POLL_S = 0.02

RequireTool: TypeAlias = Callable[..., str]


def _under_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


# -- hypothesis ----------------------------------------------------------------------------------------------

_SLOW_IS_FINE = [hypothesis.HealthCheck.too_slow]  # it reads a wall clock; a busy machine is no failure

hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    max_examples=CI_EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=_SLOW_IS_FINE,
)
hypothesis.settings.register_profile(
    "dev", max_examples=DEV_EXAMPLES, deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
hypothesis.settings.load_profile("ci")  # --hypothesis-profile overrides it


# -- outside programs and root -------------------------------------------------------------------------------


def _extend_path() -> None:
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    directories += [directory for directory in system.SYSTEM_DIRECTORIES if directory not in directories]
    os.environ["PATH"] = os.pathsep.join(directories)


def _missing_tools(probes: tuple[str, ...]) -> str | None:
    """Why the programs (or files, or modules of the system's Python) cannot be used, or None."""
    missing = [probe for probe in probes if system.find(probe) is None]
    if not missing:
        return None
    packages = {need.probe: need.package for need in system.needs()}
    wanted = sorted({packages.get(probe, probe) for probe in missing})
    return f"needs {', '.join(missing)} (make tools as root, or apt-get install {' '.join(wanted)})"


def pytest_configure() -> None:
    _extend_path()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here."""
    for item in items:
        reasons = []
        if item.get_closest_marker("root") and os.geteuid() != 0:
            reasons.append("needs root")
        names = tuple(str(name) for mark in item.iter_markers("tools") for name in mark.args)
        if missing := _missing_tools(names):
            reasons.append(missing)
        if reasons:
            item.add_marker(pytest.mark.skip(reason="; ".join(reasons)))


@pytest.fixture
def require_tool() -> RequireTool:
    """``require_tool("fio", "nbdinfo")`` skips the test without them, else returns the path of the first."""

    def require(first: str, *more: str) -> str:
        missing = _missing_tools((first, *more))
        if missing:
            pytest.skip(missing)
        path = system.find(first)
        if path is None:
            raise FileNotFoundError(f"{first} vanished between two looks")
        return path

    return require


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs that are started end at Ctrl-C: who runs the suite in the background of a shell inherits that
    the signal is ignored, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# -- no skip under CI=true -----------------------------------------------------------------------------------


def _judge_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Name the test in the reason, for the summary folds equal ones; under CI=true make it a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    path, line, said = "", 0, str(report.longrepr)
    if isinstance(report.longrepr, tuple):
        path, line, said = report.longrepr
    reason = f"{report.nodeid.rpartition('/')[2]}: {said.removeprefix('Skipped: ')}"
    report.longrepr = (path, line, reason)
    if _under_ci():
        report.longrepr = f"{path}:{line}: under CI=true a skip is a failure: {reason}"
        report.outcome = "failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _judge_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _judge_skip(report)
    return report


# -- leaks ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Census:
    """What a process holds at one moment; `tasks` is 0 outside a trio run."""

    descriptors: dict[int, str]
    tasks: int

    def excess_over(self, before: Census) -> list[str]:
        """What is held now and was not before, for people; empty when all has come back."""
        new = {fd: what for fd, what in self.descriptors.items() if before.descriptors.get(fd) != what}
        excess: list[str] = []
        if len(self.descriptors) > len(before.descriptors):
            excess += [f"descriptor {fd} -> {what}" for fd, what in sorted(new.items())]
        if self.tasks > before.tasks:
            excess.append(f"{self.tasks - before.tasks} trio task(s)")
        return excess


def _descriptors() -> dict[int, str]:
    """Open descriptors of this process and what they are, without the one that lists them."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the directory listing's own descriptor
            continue
    return found


def _take_census() -> Census:
    gc.collect()
    tasks = trio.lowlevel.current_statistics().tasks_living if trio.lowlevel.in_trio_run() else 0
    return Census(_descriptors(), tasks)


def namespaces_in_use() -> set[str]:
    """The network namespaces in which anything runs."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.add(os.readlink(process / "ns" / "net"))
        except OSError:  # it has ended
            continue
    return found


class LeakGuard:
    """Compares what is held now with what was held when the guard was made or last `rebased`."""

    def __init__(self) -> None:
        self._before = _take_census()

    def rebase(self) -> None:
        """Take what is held now as the baseline (call it inside the trio run, once servers are up)."""
        self._before = _take_census()

    def check(self) -> None:
        """Fail, naming them, if descriptors or tasks are held beyond the baseline."""
        now = _take_census()
        if now.tasks and not self._before.tasks:
            raise RuntimeError("the baseline was taken outside this trio run: call rebase() in it first")
        excess = now.excess_over(self._before)
        if excess:
            pytest.fail("not given back: " + ", ".join(excess))

    async def settle(self) -> None:
        """Wait up to `SETTLE_S` of real time for all to come back, then `check`."""
        deadline = trio.current_time() + SETTLE_S
        while _take_census().excess_over(self._before) and trio.current_time() < deadline:
            await trio.sleep(SETTLE_POLL_S)
        self.check()


@pytest.fixture
def leak_guard() -> Iterator[LeakGuard]:
    """Fails the test if it leaves descriptors or threads behind; `settle` looks inside a test too."""
    guard = LeakGuard()
    outside = _take_census()
    threads = set(threading.enumerate())
    yield guard
    excess = _take_census().excess_over(outside)
    strangers = [
        thread.name for thread in threading.enumerate() if thread not in threads and not thread.daemon
    ]
    excess += [f"thread {name}" for name in strangers]
    if excess:
        pytest.fail("the test left behind: " + ", ".join(excess))
