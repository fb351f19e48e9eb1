"""The rules that every `BlockFile` shares: what a failed flush means, and what no space does not."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pairsync.errors import BackendError
from pairsync.storage.blockfile import BlockFile
from pairsync.testing.disks import Fault, SimAction, SimMedium, SimOperation


@pytest.fixture
def medium() -> SimMedium:
    medium = SimMedium()
    medium.create("f", 8192)
    return medium


@pytest.fixture
def block_file(medium: SimMedium) -> Iterator[BlockFile]:
    file = medium.open("f")
    yield file
    file.close()


def _failing(*, when: Callable[[SimOperation], bool], number: int) -> Callable[[SimOperation], Fault | None]:
    return lambda operation: Fault(number) if when(operation) else None


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_flush_is_never_retried(medium: SimMedium, block_file: BlockFile, number: int) -> None:
    block_file.write(0, (b"x",))
    medium.fault = _failing(when=lambda op: op.action is SimAction.FLUSH, number=number)
    with pytest.raises(BackendError, match="flush") as caught:
        block_file.flush()
    assert caught.value.errno == number
    medium.fault = None  # the kernel reports a lost page only once
    assert not block_file.sound
    for again in (block_file.flush, lambda: block_file.write(0, (b"y",), durable=True)):
        with pytest.raises(BackendError, match="an earlier flush failed") as caught:
            again()
        assert caught.value.errno == number
    block_file.write(0, (b"z",))  # what promises nothing goes on
    assert block_file.read(0, 2) == b"z\0"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_for_a_durable_write_is_passing_trouble(
    medium: SimMedium, block_file: BlockFile, number: int
) -> None:
    medium.fault = _failing(when=lambda op: op.action is SimAction.WRITE, number=number)
    with pytest.raises(BackendError) as caught:
        block_file.write(0, (b"x",), durable=True)
    assert caught.value.errno == number
    assert block_file.sound
    medium.fault = None
    block_file.write(0, (b"x",), durable=True)
    medium.power_cut(lambda _: 0)
    assert medium.content("f")[:1] == b"x"


def test_no_room_while_writing_back_is_a_lost_write(medium: SimMedium, block_file: BlockFile) -> None:
    medium.fault = _failing(when=lambda op: op.durable, number=errno.ENOSPC)
    with pytest.raises(BackendError):
        block_file.write(0, (b"x",), durable=True)
    assert not block_file.sound


def test_an_error_in_a_durable_write_is_a_lost_write(medium: SimMedium, block_file: BlockFile) -> None:
    medium.fault = _failing(when=lambda op: op.action is SimAction.WRITE, number=errno.EIO)
    with pytest.raises(BackendError):
        block_file.write(0, (b"x",), durable=True)
    assert not block_file.sound


def test_an_error_in_a_plain_write_is_not(medium: SimMedium, block_file: BlockFile) -> None:
    medium.fault = _failing(when=lambda op: op.action is SimAction.WRITE, number=errno.EIO)
    with pytest.raises(BackendError):
        block_file.write(0, (b"x",))
    assert block_file.sound


def test_read_returns_bytes_of_its_own(block_file: BlockFile, tmp_path: Path) -> None:
    block_file.write(3, (b"abc",))
    taken = block_file.read(2, 5)
    block_file.write(3, (b"xyz",))
    assert taken == b"\0abc\0"
