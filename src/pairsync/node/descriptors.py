"""How many descriptors a process may have: each client is one, and so is each file of a guest.

The usual soft limit of 1024 is for programs that use ``select``.  A host's front doors take half of it each,
and a host without descriptors can neither write down what it agrees to nor start a guard.
"""

from __future__ import annotations

import contextlib
import resource

__all__ = ["raise_descriptor_limit"]


def raise_descriptor_limit() -> None:
    """Have as many as the machine allows this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
