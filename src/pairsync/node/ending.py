"""What ends a process of ours in order: a signal, or that its parent is gone."""

from __future__ import annotations

import signal
import sys

import trio

__all__ = ["await_signal", "follow_stdin"]

STDIN_BYTES = 4096
"""Nobody writes there; whatever comes is dropped."""


async def await_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancel ``scope`` at SIGINT or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return


async def follow_stdin(scope: trio.CancelScope) -> None:
    """The parent holds the other end of our standard input for as long as it lives."""
    stream = trio.lowlevel.FdStream(sys.stdin.fileno())
    while await stream.receive_some(STDIN_BYTES):
        pass
    scope.cancel()
