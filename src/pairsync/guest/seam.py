"""What an open guest needs of others."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Arbiter"]


class Arbiter(Protocol):
    """Whoever speaks for the guest in the grant register.  Must not block."""

    def ask_alone(self) -> None:
        """The guest has to go on without its peer; `Guest.permitted` answers."""

    def link_up(self) -> None:
        """The link has a session: the peer's half can be reached."""

    def disk_failed(self, reason: str) -> bool:
        """The owner's disk has failed or hangs, and the peer is in sync: can ownership be moved to it?

        If so (True), the guest is halted here when this returns, and whoever was asked sees to it that the
        peer owns: `Guest.become` a standby here, without order, and active there.  Or, where that fails,
        active here again, which opens the disks anew.
        """
