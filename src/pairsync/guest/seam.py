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
