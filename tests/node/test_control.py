"""The control socket: what a client sends ends at worst its own connection."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import trio

from pairsync.errors import PeerLost
from pairsync.node.control import LINE_BYTES_MAX, ask, serve_control

HOSTILE = {
    "not JSON": b"{\n",
    "no object": b"[]\n",
    "brackets within brackets": b"[" * 200_000 + b"\n",
    "no text": b"\xff\xfe\n",
    "a line without an end": b"x" * (2 * LINE_BYTES_MAX),
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_client_that_speaks_something_else_is_hung_up_on_and_others_are_served(
    tmp_path: Path, sent: bytes
) -> None:
    async def ping(_: object) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return {"pong": 1}

    path = tmp_path / "control.sock"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, path, {"ping": ping})
            async with await trio.open_unix_socket(path) as stream:
                with pytest.raises(trio.BrokenResourceError) if len(sent) > LINE_BYTES_MAX else nullcontext():
                    await stream.send_all(sent)
                    assert await stream.receive_some() == b""
            assert (await ask(path, {"do": "ping"}))["pong"] == 1
            nursery.cancel_scope.cancel()
    with pytest.raises(PeerLost):
        await ask(path, {"do": "ping"})
