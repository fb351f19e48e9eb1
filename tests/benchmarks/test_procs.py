"""Outside programs end when they must, and so do those they started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from benchmarks.counters import LinkCounter
from benchmarks.procs import BenchError, Server, cpu_seconds, free_port, require, run, until, with_children


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def test_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {note}; wait"
    started = time.monotonic()
    with pytest.raises(BenchError, match=r"not done after 0\.4 s: sh -c sleep"):
        run(["sh", "-c", script], timeout_s=0.4)
    assert time.monotonic() - started < 10
    child = int(note.read_text())
    until(lambda: not _runs(child), timeout_s=5.0, what="the child of the program is gone")


def test_failure_quotes_the_program() -> None:
    with pytest.raises(BenchError, match=r"exit code 3: sh -c echo why(.|\n)*why"):
        run(["sh", "-c", "echo why >&2; exit 3"], timeout_s=5.0)


def test_missing_programs_are_named() -> None:
    with pytest.raises(BenchError, match="no-such-program, nor-this-one"):
        require("sh", "no-such-program", "nor-this-one")


def test_server_is_gone_after_the_block(tmp_path: Path) -> None:
    port = free_port()
    code = f"import socket; s = socket.create_server(('127.0.0.1', {port}))\nwhile True: s.accept()"
    argv = [sys.executable, "-c", code]
    with Server(argv, listens_on=("127.0.0.1", port), log_path=tmp_path / "log") as server:
        pid = server.pid
        assert pid in with_children(os.getpid())
    assert not _runs(pid)


def test_processor_time_is_that_of_the_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:  # the kernel counts in ticks of 10 ms: more than one
            until(lambda: cpu_seconds([busy.pid]) > 0.02, timeout_s=30.0, what="a loop has used some")
        finally:
            busy.kill()
    assert cpu_seconds([busy.pid]) == 0  # of nobody


def test_server_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "raise SystemExit('no such disk')"]
    with (
        pytest.raises(BenchError, match=r"ended at once:\nno such disk"),
        Server(argv, listens_on=("127.0.0.1", free_port()), log_path=tmp_path / "log"),
    ):
        pytest.fail("entered")


def _transfer(listener: socket.socket, size_bytes: int) -> None:
    """Send `size_bytes` over a new connection to `listener` and have them acknowledged."""

    def receive() -> None:
        stream, _ = listener.accept()
        with stream:
            left = size_bytes
            while left:
                left -= len(stream.recv(min(left, 1 << 16)))
            stream.sendall(b"!")

    taker = threading.Thread(target=receive)
    taker.start()
    with socket.create_connection(listener.getsockname()) as stream:
        stream.sendall(bytes(size_bytes))
        assert stream.recv(1) == b"!"
    taker.join()


@pytest.mark.root
@pytest.mark.tools("iptables")
def test_counter_counts_the_port_and_no_other() -> None:
    size_bytes = 1 << 20
    with socket.create_server(("127.0.0.1", 0)) as counted, socket.create_server(("127.0.0.1", 0)) as other:
        with LinkCounter([counted.getsockname()[1]]).counting() as counter:
            _transfer(other, size_bytes)
            assert counter.packets() == 0
            _transfer(counted, size_bytes)
            packets = counter.packets()
        assert packets is not None
        assert size_bytes < packets < size_bytes * 1.1
        chains = run(["iptables", "-w", "5", "-S"], timeout_s=10.0)
        assert f"pairsync-bench-{os.getpid()}" not in chains


@pytest.mark.tools("ss")
def test_payload_of_a_standing_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        counter = LinkCounter([listener.getsockname()[1]])
        with socket.create_connection(listener.getsockname()) as stream:
            taken, _ = listener.accept()
            with taken:
                stream.sendall(bytes(1000))
                taken.sendall(bytes(500))
                until(lambda: counter.payload() >= 1500, timeout_s=5.0, what="the kernel has counted")
                assert counter.payload() == 1500
