"""What an open guest needs of others."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Arbiter", "Warden"]


class Arbiter(Protocol):
    """Whoever speaks for the guest in the grant register.  Must not block."""

    def ask_alone(self) -> None:
        """The guest has to go on without its peer; `Guest.permitted` answers."""

    def link_up(self) -> None:
        """The link has a session: the peer's half can be reached."""

    @property
    def patience_ns(self) -> int:
        """How long what is known of the peer may be behind what it is: two heartbeats."""

    @property
    def alone(self) -> bool:
        """Whether the peer is out by the grant in force: it does not own the guest next."""

    @property
    def overtaken(self) -> bool:
        """Whether a guest that is becoming active is not to be after all."""

    def disk_failed(self) -> str:
        """The owner's disk has failed or hangs: why can the peer not own the guest?

        If it can (""), the guest is halted here at once, and whoever was asked sees to it that the peer owns:
        `Guest.become` a standby here, without order, and active there.  Or, where that fails, active here
        again, which opens the disks anew.
        """


class Warden(Protocol):
    """Who stops the guest if this process cannot, and keeps its clients from where it does not run."""

    def lease_until(self, until_ns: int | None) -> None:
        """The guest must have stopped at that time of the arbiter's clock; None: it needs no lease."""

    async def settled(self) -> None:
        """Return when that is sure; `BackendError` if it cannot be."""

    def rest(self) -> None:
        """Nothing of the guest runs here that could be stopped, and nothing may."""

    def lease_valid(self) -> bool:
        """Whether the guest may be served at this moment, as far as it holds the deadline."""

    def take_lateness_ns(self) -> int:
        """By how much it was late at worst since the last call."""
