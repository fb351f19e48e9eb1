"""How a process ends: by a signal, and with its parent."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from pairsync.node.ending import await_signal, follow_stdin


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it(number: signal.Signals) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(await_signal, nursery.cancel_scope)
            os.kill(os.getpid(), number)
            await trio.sleep_forever()


async def test_a_parent_that_is_gone_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    with open(ours, "rb", closefd=False) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow_stdin, nursery.cancel_scope)
                os.write(theirs, b"whatever")
                await trio.testing.wait_all_tasks_blocked()
                os.close(theirs)
                await trio.sleep_forever()
