"""What the storage tests share: a superblock to start from, and memory-backed and disk-backed directories."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import Superblock
from pairsync.testing.disks import SimMedium

MakeSuperblock = Callable[..., Superblock]

_PLAIN = Superblock(
    pair_id=b"p" * 16,
    volume_id=b"v" * 16,
    name="vda",
    size_bytes=1 << 20,
    term=1,
    condition=Condition.CONSISTENT,
    lineage=(Generation(1, 1, 0xABCD),),
    sync_target=None,
    peer_in_sync=True,
    map_base=Generation(1, 1, 0xABCD),
    clean=False,
    boot_id="6a1c",
)


@pytest.fixture(scope="session")
def make_superblock() -> MakeSuperblock:
    """`make_superblock(size_bytes=..., ...)`: a valid superblock with some fields replaced."""

    def make(**changes: Any) -> Superblock:
        return dataclasses.replace(_PLAIN, **changes)

    return make


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory on tmpfs; where there is none the test is skipped by name."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs a writable /dev/shm")
    path = tempfile.mkdtemp(prefix="pairsync-test-", dir="/dev/shm")
    yield Path(path)
    shutil.rmtree(path)


OUTCOMES_MAX = 128
"""Outcomes of one cut that are tried one by one; where there are more, that many are drawn."""

Attempt = Callable[[int | None], tuple[SimMedium, Any]]
Judge = Callable[[SimMedium, Any], None]


def _choosers(counts: list[int], step: int) -> Iterator[Callable[[int], int]]:
    """All ways to choose one of ``n`` for each ``n`` of ``counts``, or a drawn part of them."""
    if math.prod(counts) <= OUTCOMES_MAX:
        for choice in itertools.product(*map(range, counts)):
            answers = iter(choice)
            yield lambda _, answers=answers: next(answers)  # type: ignore[misc]
        return
    yield lambda _: 0  # nothing survives
    yield lambda n: n - 1  # everything survives
    rng = random.Random(step)
    for _ in range(OUTCOMES_MAX - 2):
        yield rng.randrange


@pytest.fixture(scope="session")
def every_outcome() -> Callable[[Attempt, Judge], int]:
    """``every_outcome(attempt, judge)``: cut the power at every step, and judge all that may be left.

    ``attempt(step)`` runs a workload on a new medium until that step (None: to its end) and returns the
    medium and what it knows to be durable; ``judge`` looks at a medium after the cut.  How many outcomes
    were judged is returned.
    """

    def run(attempt: Attempt, judge: Judge) -> int:
        judged = 0
        whole, _ = attempt(None)
        for step in range(whole.step + 1):
            counts = attempt(step)[0].undecided()
            for choose in _choosers(counts, step):
                medium, known = attempt(step)
                medium.power_cut(choose)
                medium.cut_at_step = None
                judge(medium, known)
                judged += 1
        return judged

    return run
