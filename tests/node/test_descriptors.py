"""A process of ours takes all descriptors that it may have."""

from __future__ import annotations

import resource

from pairsync.node.descriptors import raise_descriptor_limit


def test_the_soft_limit_becomes_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
    try:
        for _ in range(2):
            raise_descriptor_limit()
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
