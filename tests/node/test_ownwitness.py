"""A store of one's own as the witness: found by its name, and with two real hosts that agree by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pairsync.core.witness import Conflict, WitnessKey
from pairsync.errors import ConfigError, PeerLost, RefusedError
from pairsync.node.ownwitness import open_own_store
from pairsync.testing.lab import running_lab

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = WitnessKey(b"p" * 16, "db1")
FAILOVER_S = 2.0

STORE = """
from contextlib import asynccontextmanager
from pairsync.errors import RefusedError

class Store:
    async def get(self, key):
        raise RefusedError("not you")

    async def swap(self, key, version, value):
        raise ZeroDivisionError("a bug of somebody else")

@asynccontextmanager
async def opens(path="/"):
    yield Store()

@asynccontextmanager
async def fails():
    raise OSError("no database")
    yield
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_store_of_ours.py").write_text(STORE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_store_of_ours", raising=False)
    return "a_store_of_ours"


async def test_a_store_is_found_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    options = {"path": str(tmp_path / "registers.db")}
    async with open_own_store("own_witness:open_store", options) as store:
        before = await store.get(KEY)
        after = await store.swap(KEY, before.version, b"x")
        assert not isinstance(after, Conflict)
        assert (await store.get(KEY)).value == b"x"
        assert isinstance(await store.swap(KEY, before.version, b"y"), Conflict)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nowhere", {}, "no attribute 'nowhere'"),
        ("fails", {}, "OSError: no database"),
        ("opens", {"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
async def test_what_cannot_be_opened_is_named(
    module: str, name: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        async with open_own_store(f"{module}:{name}", options):
            pytest.fail("it opened")
    with pytest.raises(ConfigError, match="witness store not_installed:x: ModuleNotFoundError"):
        async with open_own_store("not_installed:x", {}):
            pytest.fail("it opened")


async def test_a_bug_of_a_store_is_a_store_that_was_lost(module: str) -> None:
    async with open_own_store(f"{module}:opens", {"path": "x"}) as store:
        with pytest.raises(PeerLost, match="ZeroDivisionError: a bug of somebody else"):
            await store.swap(KEY, 1, b"x")
        with pytest.raises(RefusedError, match="not you"):
            await store.get(KEY)


@pytest.mark.slow
async def test_two_hosts_agree_by_it_and_the_standby_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    more = ["--witness=none", f"--failover={FAILOVER_S:g}"]
    witness = f"""
[[register.witnesses]]
name = "table"
store = "own_witness:open_store"
options = {{ path = "{tmp_path}/registers.db" }}
"""
    async with running_lab(tmp_path / "lab", {"vda": 1 << 20}, more=more) as lab:
        for host in ("b", "a"):
            await lab.kill(host)
            with (lab.directory / host / "host.toml").open("a") as file:
                file.write(witness)
            await lab.start(host)
        await lab.wait_in_sync()
        await lab.wait_status(lambda status: not status["guests"]["lab"]["sole"], "all three decide")
        async with await lab.connect(host="a") as client:
            await client.write(0, b"x" * 4096)
        await lab.kill("a")
        await lab.wait_active("b")
        async with await lab.connect(host="b") as client:
            assert await client.read(0, 4096) == b"x" * 4096
        await lab.start("a")
        await lab.wait_in_sync()
