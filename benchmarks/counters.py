"""How many bytes crossed the link, by the kernel's own counters and not by ours.

Two sources, both read from the kernel: packet counters of iptables on the loopback interface (root only;
they hold every header and every acknowledgement, so they are what is judged), and the TCP statistics that
``ss`` shows of the sockets that use the link's ports (payload only; a connection that has ended is lost).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence

from benchmarks.procs import BenchError, run

__all__ = ["LinkCounter"]

_COMMAND_S = 20.0


class LinkCounter:
    """Counts the bytes of all connections from or to `ports` while its `counting` block is open."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(ports)
        self._chain = f"pairsync-bench-{os.getpid()}"

    @contextlib.contextmanager
    def counting(self) -> Iterator[LinkCounter]:
        """Install the packet counters where that is possible, and remove them afterwards."""
        if os.geteuid() != 0 or not shutil.which("iptables"):
            yield self
            return
        jump = ["OUTPUT", "-o", "lo", "-p", "tcp", "-j", self._chain]
        _iptables("-N", self._chain)
        try:
            for port in self._ports:
                for end in ("--sport", "--dport"):
                    # RETURN at the first match: a packet between two of the ports counts once.
                    _iptables("-A", self._chain, "-p", "tcp", end, str(port), "-j", "RETURN")
            _iptables("-I", *jump)
            try:
                yield self
            finally:
                _iptables("-D", *jump)
        finally:
            _iptables("-F", self._chain)
            _iptables("-X", self._chain)

    def packets(self) -> int | None:
        """Bytes of all packets since `counting` began, headers included; None without root."""
        if os.geteuid() != 0 or not shutil.which("iptables"):
            return None
        lines = _iptables("-nvxL", self._chain).splitlines()
        return sum(int(line.split()[1]) for line in lines if " RETURN " in line)

    def payload(self) -> int:
        """TCP payload, both ways, of the connections that stand now, since they were made."""
        total = 0
        for line in run(["ss", "-tinHO"], timeout_s=_COMMAND_S).splitlines():
            local = re.match(r"\S+\s+\d+\s+\d+\s+\S+:(\d+)\s+\S+:\d+", line)
            # Seen from one end only: the sockets that listen on a port of the link.
            if local and int(local[1]) in self._ports:
                total += sum(int(count) for count in re.findall(r"bytes_(?:sent|received):(\d+)", line))
        return total

    def judged(self, payload: int) -> tuple[int, str]:
        """Return the bytes to be judged and which counter they come from."""
        packets = self.packets()
        if packets is None:
            return payload, "ss, TCP payload"
        if packets < payload * 0.9:
            raise BenchError(f"counters disagree: {packets} bytes of packets, {payload} of payload")
        return packets, "iptables, whole packets"


def _iptables(*words: str) -> str:
    return run(["iptables", "-w", "5", *words], timeout_s=_COMMAND_S)
