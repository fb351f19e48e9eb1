"""Cables of a lab on loopback: whom it tells what, and when.  Real ones are pulled in ``tests/e2e``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.errors import ConfigError
from pairsync.node.labcables import ToldCables
from pairsync.node.labfile import CABLES
from pairsync.node.labprocess import LabProcess

SERVES = 'print(\'{"event": "ready"}\', flush=True); import sys; sys.stdin.read()'


class Bench:
    """Two processes that serve, and what they are told."""

    def __init__(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        self.told: list[tuple[str, str]] = []
        self.hosts = {
            name: LabProcess(name, tmp_path / name, nursery, lambda _: None, lambda _: None) for name in "ab"
        }
        self.cables = ToldCables(CABLES, self.hosts, self.ask)

    async def ask(self, name: str, what: str) -> Any:
        await trio.lowlevel.checkpoint()
        self.told.append((name, what))

    async def start(self, name: str) -> list[str]:
        """Returns with what arguments."""
        words = self.cables.starting(name)
        await self.hosts[name].spawn(["-c", SERVES])
        await self.hosts[name].until_ready()
        await self.cables.started(name)
        return words

    def take(self) -> list[tuple[str, str]]:
        told, self.told = self.told, []
        return told


async def test_hosts_hear_once_of_the_cables_that_they_have_an_end_of(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(tmp_path, nursery)
        assert await bench.start("a") == []
        assert await bench.start("b") == []
        assert await bench.cables.turn("b-witness", cut=True) == ("b-witness",)
        assert bench.take() == [("b", "cut-witness")]
        assert await bench.cables.turn("all", cut=True) == CABLES
        assert sorted(bench.take()) == [("a", "cut"), ("a", "cut-witness"), ("b", "cut")]
        assert bench.cables.cut == ["a-b", "a-witness", "b-witness"]
        bench.hosts["b"].pause()  # it can be told nothing
        await bench.cables.turn("all", cut=False)
        assert sorted(bench.take()) == [("a", "heal"), ("a", "heal-witness")]
        bench.hosts["b"].resume()
        await bench.cables.started("b")
        assert sorted(bench.take()) == [("b", "heal"), ("b", "heal-witness")]
        for host in bench.hosts.values():
            await host.stop()


async def test_what_is_cut_stays_so_for_who_is_started_again(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(tmp_path, nursery)
        await bench.start("a")
        await bench.cables.turn("all", cut=True)
        bench.take()
        await bench.hosts["a"].kill()
        assert await bench.start("a") == ["--cut"]  # from its first moment
        assert bench.take() == [("a", "cut-witness")]
        await bench.hosts["a"].stop()


async def test_there_is_no_other_cable() -> None:
    async def ask(*_: str) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.raises(ConfigError, match="no cable 'a-witness'; there are a-b, all"):
        await ToldCables(("a-b",), {}, ask).turn("a-witness", cut=True)
    with pytest.raises(ConfigError, match="a single host and no link"):
        await ToldCables((), {}, ask).turn("all", cut=True)
