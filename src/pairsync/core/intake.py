"""Intake: what a standby has received and not applied yet, of all volumes of its guest.

Received data stays in memory until the disk has taken it.  A peer that keeps to its own bounds never comes
near these (the sums are below, with each bound); one that does is broken, and the session ends before it has
filled this host's memory.  What is still on its way to the disk from an earlier session counts too.
"""

from __future__ import annotations

from pairsync.errors import ProtocolError

from .limits import UNAPPLIED_BYTES_MAX
from .units import MIB

__all__ = ["UNAPPLIED_OPS_MAX", "Intake"]

UNAPPLIED_OPS_MAX = 262_144
"""Ranges received and not applied, 200 bytes each beside their data, and 500 more where each is a message of
its own.  An active host stops at `window.OPS_MAX` (65,536); each of 64 volumes may go beyond by one batch of
512, by 384 that were ready to be copied, and by 128 for each half MiB that it is reading to copy: with the
largest windows that its configuration may have, 213,000 in all."""


class Intake:
    """See the module."""

    __slots__ = ("data_bytes", "op_count")

    def __init__(self) -> None:
        self.data_bytes = 0  # data of the ops that were taken and not given back
        self.op_count = 0  # those ops

    def take(self, data_bytes: int, op_count: int) -> None:
        """A write has come.  Raises `ProtocolError`, and takes nothing, where that is too much."""
        if self.data_bytes + data_bytes > UNAPPLIED_BYTES_MAX:
            raise ProtocolError(f"more than {UNAPPLIED_BYTES_MAX // MIB} MiB of data that was not applied")
        if self.op_count + op_count > UNAPPLIED_OPS_MAX:
            raise ProtocolError(f"more than {UNAPPLIED_OPS_MAX} ranges that were not applied")
        self.data_bytes += data_bytes
        self.op_count += op_count

    def give_back(self, data_bytes: int, op_count: int) -> None:
        """A write has been applied, or has failed."""
        self.data_bytes -= data_bytes
        self.op_count -= op_count
