"""One process of a lab: it serves, speaks, stands still, goes on and ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.errors import BackendError, ConfigError
from pairsync.node.labprocess import LabProcess

SERVES = """
import json, signal, sys, time
print(json.dumps({"event": "ready", "place": 7}), flush=True)
print(json.dumps({"event": "said", "what": "hello"}), flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
while True:
    time.sleep(0.02)
    print(json.dumps({"event": "beat"}), flush=True)
"""
FAILS = "import sys; sys.stderr.write('pairsync: no room\\n'); sys.exit(1)"


class Heard:
    def __init__(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.codes: list[int] = []
        log = tmp_path / "log"
        self.process = LabProcess("host a", log, nursery, self.lines.append, self.codes.append)

    async def until(self, count: int) -> None:
        with trio.fail_after(20):
            while len(self.lines) < count:
                await trio.sleep(0.01)


async def test_it_speaks_stands_still_goes_on_and_ends(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        heard = Heard(tmp_path, nursery)
        process = heard.process
        with pytest.raises(ConfigError, match="host a is not running"):
            process.pause()
        await process.spawn(["-c", SERVES])
        await process.until_ready()
        assert process.about["place"] == 7
        await heard.until(3)
        assert heard.lines[0] == {"event": "said", "what": "hello"}
        process.pause()
        await trio.sleep(0.1)  # what it had written is taken in
        before = len(heard.lines)
        await trio.sleep(0.2)
        assert len(heard.lines) == before
        assert process.paused
        process.resume()
        await heard.until(before + 2)
        process.pause()
        await process.stop()  # a process that stands still is woken first
        assert heard.codes == [3]
        assert not process.running
        assert not process.about


async def test_a_killed_one_is_gone_when_kill_returns(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        heard = Heard(tmp_path, nursery)
        await heard.process.spawn(["-c", SERVES])
        await heard.process.until_ready()
        await heard.process.kill()
        assert heard.codes == [-9]
        assert not heard.process.running


async def test_one_that_cannot_be_started_is_an_error_of_the_disk(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        heard = Heard(tmp_path, nursery)
        heard.process.log.mkdir()
        with pytest.raises(BackendError, match=r"host a cannot be started: .*log: Is a directory"):
            await heard.process.spawn(["-c", SERVES])
        assert not heard.process.running
        heard.process.log.rmdir()
        await heard.process.spawn(["-c", SERVES])
        await heard.process.until_ready()
        await heard.process.kill()


async def test_one_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        heard = Heard(tmp_path, nursery)
        await heard.process.spawn(["-c", FAILS])
        with pytest.raises(
            BackendError, match=r"host a did not come up \(ended with exit status 1\): .*no room"
        ):
            await heard.process.until_ready()
