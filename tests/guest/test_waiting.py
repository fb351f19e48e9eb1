"""Waiting for the end of a request: what went wrong is said in the caller's words."""

from __future__ import annotations

import errno

import pytest
import trio

from pairsync.errors import BackendError
from pairsync.guest.waiting import Waiter


async def test_an_end_is_heard_before_and_after_it_is_waited_for() -> None:
    early, late = Waiter(), Waiter()
    early(None)
    with trio.fail_after(5):
        await early.wait("reading")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(late.wait, "reading")
            late(None)


async def test_an_errno_becomes_an_error_that_says_what_was_being_done() -> None:
    waiter = Waiter()
    waiter([0, errno.ENOSPC])
    with pytest.raises(BackendError, match="volume vda: writing: ENOSPC") as caught:
        await waiter.wait("volume vda: writing")
    assert caught.value.errno == errno.ENOSPC
