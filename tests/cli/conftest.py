"""Running commands in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import pytest

from pairsync.cli import app as app_module


class Ended(NamedTuple):
    """How a command ended."""

    status: object
    out: str
    err: str


Command: TypeAlias = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process, which is much quicker."""

    def run(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pairsync", *words])
        with pytest.raises(SystemExit) as ended:
            app_module.run()
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    return run
