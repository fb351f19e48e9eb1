"""A plain copy of a file over one TCP stream of the loopback, by two processes: the peer of the full sync.

``tcpcopy.py receive FILE SIZE`` prints its port, takes SIZE bytes, writes them to FILE, flushes the file and
answers with one byte.  ``tcpcopy.py send FILE PORT`` reads the file, sends it, waits for that byte and prints
the nanoseconds from its first read to the answer.  Blocking sockets, 1 MiB a system call, no digest, no
encryption: what the machine can do at best in this shape.
"""

from __future__ import annotations

import os
import socket
import sys
import time

CHUNK_BYTES = 1 << 20
DEADLINE_S = 300.0


def receive(path: str, size_bytes: int) -> None:
    """Serve one copy."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        print(listener.getsockname()[1], flush=True)
        stream, _ = listener.accept()
    out = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    view = memoryview(bytearray(CHUNK_BYTES))
    with stream:
        stream.settimeout(DEADLINE_S)
        left = size_bytes
        while left:
            got = stream.recv_into(view, min(left, CHUNK_BYTES), socket.MSG_WAITALL)
            if not got:
                raise SystemExit(f"the sender hung up with {left} bytes to come")
            if os.write(out, view[:got]) != got:
                raise SystemExit(f"short write to {path}")
            left -= got
        os.fsync(out)
        stream.sendall(b"!")
    os.close(out)


def send(path: str, port: int) -> None:
    """Send one file."""
    source = os.open(path, os.O_RDONLY)
    view = memoryview(bytearray(CHUNK_BYTES))
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as stream:
        started_ns = time.monotonic_ns()
        while got := os.readv(source, [view]):
            stream.sendall(view[:got])
        if stream.recv(1) != b"!":
            raise SystemExit("the receiver hung up")
        print(time.monotonic_ns() - started_ns, flush=True)
    os.close(source)


if __name__ == "__main__":
    verb, file, number = sys.argv[1:]
    {"receive": receive, "send": send}[verb](file, int(number))
