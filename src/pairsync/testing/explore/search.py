"""Search through worlds: breadth first through all within bounds, or deep by random ways."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import NamedTuple

from .hosts import Violation
from .model import Model
from .world import BUDGETS, Bounds, World

__all__ = ["Result", "explore", "walk"]


class Result(NamedTuple):
    """What an exploration found.

    ``states``: distinct worlds; ``steps``: transitions tried; ``complete``: all worlds within the bounds were
    seen; ``violation`` with the ``way`` that led to it, or None.
    """

    states: int
    steps: int
    complete: bool
    host_states: int
    violation: str | None = None
    way: tuple[str, ...] = ()


def explore(bounds: Bounds, *, states_max: int = 0) -> Result:
    """Explore until all is seen, something is wrong, or ``states_max`` worlds were seen (0: no limit).

    What is left of the budgets is no part of a world: one that was seen with as much left of everything is
    not looked at again.  The least spent comes first, so that this is the rule.
    """
    model = Model(bounds)
    start = model.start()
    seen: dict[World, tuple[World, ...]] = {start[:BUDGETS]: (start[BUDGETS:],)}
    came: dict[World, World | None] = {start: None}
    total = sum(start[BUDGETS:])
    queues = [deque([start]), *(deque[World]() for _ in range(total))]
    steps = 0
    for queue in queues:
        while queue:
            world = queue.popleft()
            if world[BUDGETS:] not in seen[world[:BUDGETS]]:
                continue  # the same was seen with more left meanwhile
            try:
                for _, after in model.steps(world):
                    steps += 1
                    if _is_new(seen, after):
                        came[after] = world
                        if model.inside(after):
                            queues[total - sum(after[BUDGETS:])].append(after)
            except Violation as violation:
                way = _way(model, came, world)
                return Result(len(seen), steps, False, len(model.worker.deciders), str(violation), way)
            if states_max and len(seen) >= states_max:
                return Result(len(seen), steps, False, len(model.worker.deciders))
    return Result(len(seen), steps, True, len(model.worker.deciders))


def _is_new(seen: dict[World, tuple[World, ...]], world: World) -> bool:
    """Whether the world was not seen with as much left of every budget."""
    key, left = world[:BUDGETS], world[BUDGETS:]
    before = seen.get(key)
    if before is None:
        seen[key] = (left,)
        return True
    for other in before:
        if all(ours <= theirs for ours, theirs in zip(left, other, strict=True)):
            return False
    kept = (each for each in before if not all(a <= b for a, b in zip(each, left, strict=True)))
    seen[key] = (*kept, left)
    return True


def _way(model: Model, came: dict[World, World | None], world: World) -> tuple[str, ...]:
    """The steps that led there, by name."""
    way: list[str] = []
    before = came[world]
    while before is not None:
        way.append(next(name for name, after in model.steps(before) if after == world))
        world, before = before, came[before]
    return tuple(reversed(way))


def walk(bounds: Bounds, *, seed: int, ways: int, length: int = 120) -> Result:
    """Random ways of so many steps from the start, for what lies deeper than all can be seen.

    ``states`` are the worlds that were come to, repetitions included.
    """
    model = Model(bounds)
    random = Random(seed)  # noqa: S311 - not for secrets: the same ways each time
    steps = states = 0
    for _ in range(ways):
        world = model.start()
        way: list[str] = []
        for _ in range(length):
            try:
                open_ways = [
                    each for each in model.steps(world) if each[1] != world and model.inside(each[1])
                ]
            except Violation as violation:
                return Result(states, steps, False, len(model.worker.deciders), str(violation), tuple(way))
            steps += len(open_ways)
            if not open_ways:
                break
            name, world = random.choice(open_ways)
            way.append(name)
            states += 1
    return Result(states, steps, False, len(model.worker.deciders))
