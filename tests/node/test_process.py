"""A process of ours: what it says where, and its exit status."""

from __future__ import annotations

import errno
import json

import pytest
import trio

from pairsync.errors import BackendError, ConfigError
from pairsync.node.lines import LineWriter
from pairsync.node.process import run_process


def test_lines_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    async def serve(lines: LineWriter) -> None:
        await trio.lowlevel.checkpoint()
        lines({"event": "ready"})

    assert run_process(serve) == 0
    said = capsys.readouterr()
    assert (json.loads(said.out), said.err) == ({"event": "ready"}, "")


def test_each_thing_that_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def serve(_: LineWriter) -> None:
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup(
            "both", [ConfigError("no peer"), ExceptionGroup("", [BackendError("gone", errno.EIO)])]
        )

    assert run_process(serve) == 1
    assert capsys.readouterr().err == "pairsync: no peer\npairsync: gone\n"


def test_what_is_wrong_is_told_beside_a_bug_too(capsys: pytest.CaptureFixture[str]) -> None:
    async def serve(_: LineWriter) -> None:
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("both", [BackendError("the disk is gone", errno.EIO), ValueError("a bug")])

    with pytest.raises(ExceptionGroup) as caught:
        run_process(serve)
    assert [str(error) for error in caught.value.exceptions] == ["a bug"]
    assert "pairsync: the disk is gone" in capsys.readouterr().err
