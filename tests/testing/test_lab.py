"""What a lab that is driven from a test says when something does not come about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.node.control import Answer, serve_control
from pairsync.node.labfile import control_socket_of
from pairsync.testing.lab import RunningLab
from pairsync.testing.programs import ProgramError

STATUS = {"guests": {"lab": {"sole": True}}}
SAID = '"guests":{"lab":{"sole":true}}'
SHORT_S = 0.1


async def test_what_does_not_come_about_is_told_with_the_last_status(tmp_path: Path) -> None:
    async def status(_: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        return STATUS

    async def wait(_: Mapping[str, Any]) -> Answer:
        await trio.sleep_forever()

    socket = control_socket_of(tmp_path)
    socket.parent.mkdir(parents=True, exist_ok=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, socket, {"status": status, "wait": wait})
        process = await trio.lowlevel.open_process(["true"])
        await process.wait()
        lab = RunningLab(tmp_path, process)
        assert "status" not in str(lab.error("none was seen yet"))
        with pytest.raises(ProgramError, match="no answer to wait within") as caught:
            await lab.wait_in_sync(SHORT_S)
        assert SAID in str(caught.value)
        with pytest.raises(ProgramError, match="no event grant") as caught:
            await lab.wait_event("grant", seconds=SHORT_S)
        assert SAID in str(caught.value)
        nursery.cancel_scope.cancel()
