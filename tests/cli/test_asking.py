"""Asking a host that is down, and one whose answer is an error."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from pairsync.cli.asking import ask_host
from pairsync.errors import ConfigError
from pairsync.node.control import Answer, serve_control
from pairsync.node.hostfile import read_host_file
from pairsync.node.labfile import LabFile
from pairsync.node.labprepare import prepare

LAB = LabFile({"vda": 1 << 20}, "sync", single=True, pair_id="0f" * 16, ports={"a": 1, "b": 2})


async def test_a_host_answers_or_is_down_or_says_what_is_wrong(tmp_path: Path) -> None:
    prepare(tmp_path, LAB)
    host = read_host_file(tmp_path / "a" / "host.toml")
    host.control.parent.mkdir(parents=True, exist_ok=True)

    async def ask(what: str, seconds: float = 20.0) -> dict[str, object] | None:
        return await trio.to_thread.run_sync(partial(ask_host, host, {"do": what}, seconds=seconds))

    async def status(_: object) -> Answer:
        await trio.lowlevel.checkpoint()
        return {"well": True}

    async def never(_: object) -> Answer:
        await trio.sleep_forever()

    assert await ask("status") is None
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, host.control, {"status": status, "never": never})
        assert await ask("status") == {"ok": True, "well": True}
        with pytest.raises(ConfigError, match="unknown request"):
            await ask("nothing")
        with pytest.raises(ConfigError, match="did not answer within"):
            await ask("never", 0.05)
        nursery.cancel_scope.cancel()
