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

    @property
    def patience_ns(self) -> int:
        """How long what is known of the peer may be behind what it is: two heartbeats."""

    def disk_failed(self) -> str:
        """The owner's disk has failed or hangs, and the peer is in sync: why can it not own the guest?

        If it can (""), the guest is halted here at once, and whoever was asked sees to it that the peer owns:
        `Guest.become` a standby here, without order, and active there.  Or, where that fails, active here
        again, which opens the disks anew.
        """
