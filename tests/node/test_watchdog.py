"""The watchdog device, on stand-ins: there is none on an ordinary machine."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from pairsync.node.watchdog import SECONDS_MAX, open_watchdog


class Device:
    """What a driver does with the one request that we make."""

    def __init__(self, *, least: int = 1, fails_with: int | None = None) -> None:
        self.least = least
        self.fails_with = fails_with
        self.asked: list[int] = []

    def ioctl(self, descriptor: int, request: int, argument: bytes) -> bytes:
        assert request == 0xC0045706
        if self.fails_with is not None:
            raise OSError(self.fails_with, "no")
        self.asked.append(struct.unpack("i", argument)[0])
        return struct.pack("i", max(self.least, self.asked[-1]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "watchdog"
    path.touch()
    return path


def test_it_is_armed_fed_and_closed_in_order(path: Path) -> None:
    device = Device()
    watchdog = open_watchdog(str(path), 4, ioctl=device.ioctl)
    assert (device.asked, watchdog.seconds) == ([4], 4)
    watchdog.ping()
    watchdog.ping()
    assert path.read_bytes() == b"\0\0"
    watchdog.close()
    assert path.read_bytes() == b"\0\0V"
    watchdog.close()
    assert path.read_bytes() == b"\0\0V"


def test_a_driver_may_keep_another_time(path: Path) -> None:
    assert open_watchdog(str(path), 1, ioctl=Device(least=16).ioctl).seconds == 16


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_driver_may_not_know_how_to_set_it(path: Path, number: int) -> None:
    watchdog = open_watchdog(str(path), 1, ioctl=Device(fails_with=number).ioctl)
    assert watchdog.seconds is None
    watchdog.ping()
    assert path.read_bytes() == b"\0"


def test_a_driver_that_fails_is_not_left_running(path: Path) -> None:
    with pytest.raises(OSError, match="no"):
        open_watchdog(str(path), 1, ioctl=Device(fails_with=errno.EIO).ioctl)
    assert path.read_bytes() == b"V"


def test_no_device_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_watchdog(str(tmp_path / "none"), 1)


@pytest.mark.parametrize("seconds", [0, -1, SECONDS_MAX + 1])
def test_a_time_that_cannot_be_is_refused(path: Path, seconds: int) -> None:
    with pytest.raises(ValueError, match=f"a watchdog of {seconds} s"):
        open_watchdog(str(path), seconds)
