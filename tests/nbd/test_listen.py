"""Listening sockets: private Unix sockets, what they replace and what not, and who can reach TCP."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from pairsync.errors import BackendError, BusyError, ConfigError
from pairsync.nbd.listen import UNIX_PATH_BYTES_MAX, NbdListener, open_tcp_listeners, open_unix_listener


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    return sock


def test_unix_socket_is_private_and_removed(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        listener = open_unix_listener(tmp_path / "vda.sock")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "vda.sock").lstat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["vda.sock"]
    assert listener.address == f"unix:{tmp_path}/vda.sock"
    assert not listener.exposed
    assert listener.port is None
    _connect(tmp_path / "vda.sock").close()
    listener.close()
    listener.close()
    assert os.listdir(tmp_path) == []


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "vda.sock"))
    listener = open_unix_listener(tmp_path / "vda.sock")
    _connect(tmp_path / "vda.sock").close()
    listener.close()


@pytest.mark.parametrize("full", [False, True])
def test_live_socket_is_left_alone(tmp_path: Path, full: bool) -> None:
    path = tmp_path / "vda.sock"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen(0)
        waiting = []
        if full:
            for _ in range(3):
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(str(path))
        with pytest.raises(BusyError, match=r"vda\.sock"):
            open_unix_listener(path)
        for sock in waiting:
            sock.close()
    assert path.exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vda.sock").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        open_unix_listener(tmp_path / "vda.sock")
    assert (tmp_path / "vda.sock").read_text() == "precious"


def test_a_socket_that_took_our_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "vda.sock"
    first = open_unix_listener(path)
    path.unlink()
    second = open_unix_listener(path)
    first.close()
    _connect(path).close()
    second.close()
    assert not path.exists()


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        open_unix_listener(tmp_path / ("x" * UNIX_PATH_BYTES_MAX))
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot listen") as caught:
        open_unix_listener(tmp_path / "nowhere" / "vda.sock")
    assert caught.value.errno == errno.ENOENT


async def _tcp(host: str) -> list[NbdListener]:
    return await open_tcp_listeners(host, 0)


async def test_tcp_on_loopback() -> None:
    (listener,) = await _tcp("127.0.0.1")
    assert not listener.exposed
    assert listener.address == f"tcp:127.0.0.1:{listener.port}"
    listener.close()


async def test_tcp_that_others_can_reach() -> None:
    (listener,) = await _tcp("0.0.0.0")
    assert listener.exposed
    listener.close()


async def test_tcp_port_that_is_taken() -> None:
    (listener,) = await _tcp("127.0.0.1")
    assert listener.port is not None
    with pytest.raises(BackendError, match="cannot listen") as caught:
        await open_tcp_listeners("127.0.0.1", listener.port)
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()


async def test_tcp_name_without_an_address() -> None:
    with pytest.raises(ConfigError, match="no address"):
        await _tcp("name.invalid")
