"""The serving helper ends clean, also when the test fails in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from pairsync.testing.nbd_memory import MemoryExport
from pairsync.testing.nbd_service import serving_nbd


async def test_everything_is_closed_when_the_test_fails(tmp_path: Path, leak_guard: object) -> None:
    disk = MemoryExport("vda", 4096)

    async def fail() -> None:
        async with serving_nbd(tmp_path, [disk]) as service:
            await service.connect()
            client = await service.client()
            assert await client.read(0, 4) == bytes(4)
            assert service.uri("vda") == f"nbd+unix:///vda?socket={tmp_path}/nbd.sock"
            raise LookupError("a failing test")

    with pytest.RaisesGroup(LookupError):
        await fail()
    await trio.testing.wait_all_tasks_blocked()
    assert list(tmp_path.iterdir()) == []
    disk.close()
