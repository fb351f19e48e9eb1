"""Promises: how long a host keeps still after a start, whatever it had promised in an earlier life.

A promise lasts as long as the failover time of the host that gives it says, and an operator may have changed
that meanwhile, while the owner cannot be reached and still relies on the longer one (DESIGN rule 10).  So the
memory holds the longest promise that may bind this host::

    given by the failover time of now   <=  written down, and durable before any is given
    given in an earlier life            <=  written down then: the wait after the start lasts as long
    that wait is over                   :   only those of this life are left, and what is written shrinks

It shrinks only when everything that was promised before has run out by this host's own clock, which ran on
since; a restart in between begins the long wait anew.
"""

from __future__ import annotations

from .timing import FAILOVER_NS_MAX

__all__ = ["Promises"]


class Promises:
    """See the module; times are integer nanoseconds of the host's clock."""

    def __init__(self, written_ns: int | None, promise_ns: int) -> None:
        """``written_ns``: what the memory holds; None, of an older version of this software: not known.

        Then it is as long as any can be: a promise fits into the failover time (`core.timing`).
        """
        before_ns = FAILOVER_NS_MAX if written_ns is None else written_ns
        self._promise_ns = promise_ns
        self.longest_ns = max(before_ns, promise_ns)
        """What the memory has to hold."""
        self.written = written_ns == self.longest_ns
        """Whether it does, once what was submitted is durable."""
        # Until when the host may be bound by an earlier life; None before the start.
        self._until_ns: int | None = None

    def begin(self, now_ns: int) -> None:
        """The host has come up."""
        self._until_ns = now_ns + self.longest_ns

    def until_ns(self, now_ns: int) -> int:
        """How long to keep still from now on, if a promise was given just now, or may have been."""
        return max(now_ns + self._promise_ns, self._until_ns or 0)

    def next_deadline_ns(self) -> int | None:
        """When `shrink` has something to do."""
        return self._until_ns if self.longest_ns > self._promise_ns else None

    def shrink(self, now_ns: int) -> bool:
        """Whether less is to be written down from now on: what an earlier life has promised is over."""
        due_ns = self.next_deadline_ns()
        if due_ns is None or now_ns < due_ns:
            return False
        self.longest_ns = self._promise_ns
        return True
