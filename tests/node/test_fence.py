"""Power fencing with a stand-in agent, and with the dummy of Debian's fence-agents."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.conftest import RequireTool

from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import ConfigError
from pairsync.node.fence import FenceConfig, PowerFence, PowerState
from pairsync.testing.programs import wait_gone

SECRET = "s3cret-W0rd"
SHORT_NS = 3 * NS_PER_S
"""Of an attempt that is to take too long: the agent, an interpreter that starts, has got that far by then."""
AGENT = """
import os, sys, subprocess, time
from pathlib import Path
here = Path(sys.argv[1])
options = dict(line.rstrip("\\n").split("=", 1) for line in sys.stdin)
action = options["action"]
power = here / "power"
calls = here / "calls"
with calls.open("a") as file:
    file.write(action + "\\n")
(here / "argv").write_text(" ".join(sys.argv))
(here / "environment").write_text(repr(dict(os.environ)))
count = calls.read_text().split().count(action)
script = here / action
plan = script.read_text().split() if script.exists() else []
what = plan[min(count, len(plan)) - 1] if plan else "ok"
if what == "hang":
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    (here / "child").write_text(str(child.pid))
    print("waiting with", options.get("password"), flush=True)
    time.sleep(600)
if what == "leave":  # a child that holds the pipe, after an orderly end
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    (here / "child").write_text(str(child.pid))
elif what == "babble":
    sys.stdout.write("x" * 1000000)
elif what.startswith("exit"):
    print("cannot log in with", options.get("password"), "as", options.get("username"), file=sys.stderr)
    sys.exit(int(what[4:]))
if action == "metadata":
    names = ("on", "off", "status")
    print("".join(f'<action name="{name}"/>' for name in names))
elif action in ("on", "off") and what != "lie":
    power.write_text(action)
elif action == "status":
    sys.exit(0 if power.read_text() == "on" else 2)
"""


class Bench:
    """A fence with a stand-in agent, whose answers the files of a directory plan: a word a call."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "agent.py").write_text(AGENT)
        (directory / "power").write_text("on")
        self.config = FenceConfig(
            command=(sys.executable, "-I", "-S", str(directory / "agent.py"), str(directory)),
            options={"ip": "192.0.2.7", "username": "fencer", "password": SECRET},
            turn_on=False,
            deadline_ns=30 * NS_PER_S,
            attempt_ns=10 * NS_PER_S,
            backoff_first_ns=NS_PER_MS,
            backoff_limit_ns=20 * NS_PER_MS,
        )

    def plan(self, action: str, *words: str) -> None:
        (self.directory / action).write_text(" ".join(words))

    def fence(self, **changes: Any) -> PowerFence:
        return PowerFence(replace(self.config, **changes), entropy=lambda: 0.5)

    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().split()

    def power(self) -> str:
        return (self.directory / "power").read_text()

    async def child_is_gone(self) -> None:
        await wait_gone([int((self.directory / "child").read_text())], seconds=10)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_off_is_confirmed_by_status(bench: Bench) -> None:
    result = await bench.fence().fence()
    assert (result.stopped, result.attempts) == (True, 1)
    assert result.reason == "turned off, and seen to be off"
    assert 0 < result.taken_ns < 30 * NS_PER_S
    assert bench.calls() == ["off", "status"]
    assert bench.power() == "off"


async def test_the_host_is_turned_on_again_only_then(bench: Bench) -> None:
    result = await bench.fence(turn_on=True).fence()
    assert result.stopped
    assert bench.calls() == ["off", "status", "on"]
    assert bench.power() == "on"


async def test_the_proof_is_told_before_the_host_is_turned_on_again(bench: Bench) -> None:
    told: list[tuple[str, str]] = []
    await bench.fence(turn_on=True).fence(proven=lambda reason: told.append((reason, bench.power())))
    assert told == [("turned off, and seen to be off", "off")]


async def test_no_attempt_is_begun_that_is_not_wanted_any_more(bench: Bench) -> None:
    bench.plan("off", "exit1")
    result = await bench.fence().fence(wanted=lambda: not (bench.directory / "calls").exists())
    assert (result.stopped, result.attempts) == (False, 1)
    assert result.reason.startswith("it is not to be turned off any more; off: exit status 1")
    assert bench.calls() == ["off"]


async def test_a_host_that_cannot_be_turned_on_has_stopped_all_the_same(bench: Bench) -> None:
    bench.plan("on", "exit1")
    result = await bench.fence(turn_on=True).fence()
    assert result.stopped
    assert "it could not be turned on again: exit status 1" in result.reason


async def test_failures_are_tried_again(bench: Bench) -> None:
    bench.plan("off", "exit1", "exit5", "ok")
    bench.plan("status", "exit1", "ok")
    result = await bench.fence().fence()
    assert (result.stopped, result.attempts) == (True, 4)
    assert bench.calls() == ["off", "off", "off", "status", "off", "status"]


@pytest.mark.parametrize(
    ("off", "status", "reason"),
    [
        ("exit1", "ok", "off: exit status 1"),
        ("exit2", "exit2", "off: exit status 2"),  # wrong arguments, which 'status' would call off
        ("lie", "ok", "reported as turned off, and then as on: exit status 0"),
        ("ok", "exit1", "reported as turned off, and then as unknown: exit status 1"),
        ("ok", "exit3", "and then as unknown"),
    ],
)
async def test_nothing_less_than_both_is_a_proof(bench: Bench, off: str, status: str, reason: str) -> None:
    bench.plan("off", off)
    bench.plan("status", status)
    calls = bench.directory / "calls"
    result = await bench.fence().fence(wanted=lambda: not calls.exists() or bench.calls().count("off") < 2)
    assert not result.stopped
    assert reason in result.reason
    assert result.attempts == 2


async def test_an_agent_that_hangs_is_killed_with_what_it_started(bench: Bench) -> None:
    bench.plan("off", "hang", "ok")
    result = await bench.fence(attempt_ns=SHORT_NS).fence()
    assert (result.stopped, result.attempts) == (True, 2)
    await bench.child_is_gone()


async def test_no_answer_until_the_deadline_is_no_proof(bench: Bench) -> None:
    bench.plan("off", "hang")
    result = await bench.fence(deadline_ns=SHORT_NS, attempt_ns=SHORT_NS).fence()
    assert not result.stopped
    assert result.taken_ns < SHORT_NS + 4 * NS_PER_S
    await bench.child_is_gone()


async def test_cancelled_it_leaves_no_agent_behind(bench: Bench) -> None:
    bench.plan("off", "hang")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.fence().fence)
        with trio.fail_after(20):
            while not (bench.directory / "child").exists() or not (bench.directory / "child").read_text():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await bench.child_is_gone()


async def test_a_child_that_stays_does_not_hold_up_the_answer(bench: Bench) -> None:
    bench.plan("off", "leave")
    result = await bench.fence().fence()
    assert result.stopped
    assert result.taken_ns < 8 * NS_PER_S
    await bench.child_is_gone()


async def test_an_agent_that_babbles_is_heard_out(bench: Bench) -> None:
    bench.plan("off", "babble")
    assert (await bench.fence().fence()).stopped


async def test_an_agent_that_is_not_there(bench: Bench) -> None:
    missing = (str(bench.directory / "none"),)
    result = await bench.fence(command=missing, deadline_ns=NS_PER_S, attempt_ns=NS_PER_S).fence()
    assert not result.stopped
    assert result.reason == "off: it cannot be run: No such file or directory"
    with pytest.raises(ConfigError, match="does not tell its metadata: it cannot be run"):
        await bench.fence(command=missing).check_agent()


async def test_secrets_stay_secret(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bench.plan("off", "exit1", "hang")
    calls = bench.directory / "calls"
    result = await bench.fence(attempt_ns=SHORT_NS).fence(
        wanted=lambda: not calls.exists() or len(bench.calls()) < 2
    )
    told = [repr(bench.config), repr(result), caplog.text]
    told += [(bench.directory / name).read_text() for name in ("argv", "environment")]
    assert "cannot log in with *** as ***" in caplog.text
    assert not [text for text in told if SECRET in text]
    assert not [text for text in told if "waiting with" in text and "***" not in text]


async def test_what_an_agent_can_do_is_checked(bench: Bench) -> None:
    fence = bench.fence()
    assert await fence.check_agent() is PowerState.ON
    (bench.directory / "power").write_text("off")
    assert await fence.check_agent() is PowerState.OFF
    bench.plan("status", "exit1")
    assert await fence.status() is PowerState.UNKNOWN
    (bench.directory / "agent.py").write_text(AGENT.replace('"off", "status")', '"status")'))
    with pytest.raises(ConfigError, match="has no action off"):
        await fence.check_agent()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"command": ()}, "no command"),
        ({"options": {"a b": "x"}}, "'a b' is no name of an option"),
        ({"options": {"action": "on"}}, "'action' is not yours to set"),
        ({"options": {"password": f"{SECRET}\nport=2"}}, "the value of option 'password' does not fit"),
        ({"options": {"password": f" {SECRET}"}}, "does not fit"),
        ({"options": {f"o{number}": "1" for number in range(101)}}, "101 options"),
        ({"command": ("fence", f"--password={SECRET}")}, "'password' stands in the command too"),
        ({"attempt_ns": 0}, "time of an attempt"),
        ({"attempt_ns": 31 * NS_PER_S}, "time of an attempt"),
        ({"backoff_first_ns": NS_PER_S}, "back-off"),
    ],
)
def test_what_cannot_be_is_refused_without_its_secrets(
    bench: Bench, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        bench.fence(**changes)
    assert SECRET not in str(caught.value)


@pytest.mark.tools("fence_dummy")
async def test_an_agent_of_the_distribution(tmp_path: Path, require_tool: RequireTool) -> None:
    status = tmp_path / "status"
    status.write_text("on")
    config = FenceConfig(
        command=(require_tool("fence_dummy"),), options={"status_file": str(status)}, turn_on=False
    )
    assert await PowerFence(config).check_agent() is PowerState.ON
    result = await PowerFence(config).fence()
    assert result.stopped, result.reason
    assert status.read_text() == "off"
    assert await PowerFence(config).status() is PowerState.OFF
    result = await PowerFence(replace(config, turn_on=True)).fence()
    assert result.stopped, result.reason
    assert status.read_text() == "on"
    failing = {"status_file": str(status), "type": "fail"}
    short = replace(config, options=failing, deadline_ns=2 * NS_PER_S, attempt_ns=2 * NS_PER_S)
    assert not (await PowerFence(short).fence()).stopped
