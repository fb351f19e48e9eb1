"""Is a concurrent history of one register linearizable?  An independent judge for stores.

Each operation took effect at one moment between its call and its answer, or, where the answer was lost, at
some moment after its call, or never.  A history is right if there is an order of such moments in which a
plain register gives every answer that was given.  The judge looks for one, depth first, and remembers what it
has tried (operations that were placed, and the register then); it knows nothing of how a store works.

After a swap whose answer was lost the register's version is not known to the judge: it is bound by the first
answer that shows it, which the values, unique in a history, make unambiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pairsync.core.witness import Conflict, Snapshot

from .bench import WitnessBroken

__all__ = ["Operation", "judge_history"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A look (``value`` is None) or a swap at ``version``: when it was called and answered, and how."""

    called: float
    answered: float
    """Infinite where the answer was lost."""
    version: int | None
    value: bytes | None
    result: Snapshot | Conflict | None
    """None where the answer was lost."""


class _Register(NamedTuple):
    """The register as the judge knows it; with ``version`` None it is some version above ``floor``."""

    version: int | None
    floor: int
    value: bytes | None

    def is_at(self, version: int) -> bool:
        return version == self.version if self.version is not None else version > self.floor


def judge_history(initial: Snapshot, operations: Sequence[Operation]) -> None:
    """Raises `WitnessBroken` if no order explains the answers; lost looks are no matter.

    ``initial`` is the register before the first call.  Values of swaps must be unique.
    """
    history = [each for each in operations if each.result is not None or each.value is not None]
    values = [each.value for each in history if each.value is not None]
    if len(set(values)) != len(values):
        raise ValueError("a history whose values are not unique cannot be judged")
    for each in history:
        shown = each.result.current if isinstance(each.result, Conflict) else each.result
        if shown is not None and shown.incarnation != initial.incarnation:
            raise WitnessBroken(f"an answer shows another incarnation: {each}")
    history.sort(key=lambda each: each.called)
    if not _explain(initial, history):
        told = "\n".join(f"  {each}" for each in history)
        raise WitnessBroken(f"no order explains these answers, beginning with {initial}:\n{told}")


def _explain(initial: Snapshot, history: Sequence[Operation]) -> bool:
    everything = sum(1 << place for place, each in enumerate(history) if math.isfinite(each.answered))
    tried: set[tuple[int, _Register]] = set()
    stack = [(0, _Register(initial.version, initial.version, initial.value))]
    while stack:
        placed, register = stack.pop()
        if placed & everything == everything:
            return True
        if (placed, register) in tried:
            continue
        tried.add((placed, register))
        # The next one was called before any other that is not placed yet was answered.
        open_ones = [place for place in range(len(history)) if not placed >> place & 1]
        horizon = min(history[place].answered for place in open_ones)
        choices: dict[int, _Register] = {}
        for place in open_ones:
            if history[place].called > horizon:
                break
            after = _apply(history[place], register)
            if after is not None:
                choices[place] = after
        forced = _forced([(place, history[place]) for place in choices], register)
        taken = choices if forced is None else (forced,)
        stack += [(placed | 1 << place, choices[place]) for place in taken]
    return False


def _forced(choices: Sequence[tuple[int, Operation]], register: _Register) -> int | None:
    """Which of those that may come next can be taken to come next without looking at the others.

    What only shows the register changes nothing, so it may as well come now.  Else a swap that was done at
    the very version that the register has must come now: whatever else is done would lead past that version.
    """
    for place, operation in choices:
        if operation.value is None or isinstance(operation.result, Conflict):
            return place
    for place, operation in choices:
        if operation.result is not None and register.version is not None:
            return place
    return None


def _apply(operation: Operation, register: _Register) -> _Register | None:
    """The register after the operation; None if it would have answered otherwise."""
    result, value = operation.result, operation.value
    if value is None or isinstance(result, Conflict):
        shown = result.current if isinstance(result, Conflict) else result
        if shown is None or not register.is_at(shown.version) or shown.value != register.value:
            return None
        if isinstance(result, Conflict) and shown.version == operation.version:
            return None
        return _Register(shown.version, shown.version, shown.value)
    if operation.version is None or not register.is_at(operation.version):
        return None
    if result is None:
        return _Register(None, operation.version, value)
    if result.version <= operation.version or result.value != value:
        return None
    return _Register(result.version, result.version, value)
