"""The superblock: a value, replaced as a whole."""

from __future__ import annotations

import dataclasses

import pytest

from pairsync.core.messages import Condition
from pairsync.core.superblock import LINEAGE_GENERATIONS_MAX, Superblock
from pairsync.testing.manual import blank_superblock


def test_it_is_replaced_never_changed() -> None:
    block = blank_superblock("vda", 4096)
    with pytest.raises(dataclasses.FrozenInstanceError):
        block.term = 3  # type: ignore[misc]  # that is what is tested
    newer = dataclasses.replace(block, term=3)
    assert (block.term, newer.term) == (0, 3)
    assert newer != block


def test_a_blank_one_promises_nothing() -> None:
    block = blank_superblock("vda", 4096)
    assert isinstance(block, Superblock)
    assert block.condition is Condition.BLANK
    assert (block.lineage, block.map_base, block.peer_in_sync) == ((), None, False)


def test_a_lineage_fits_a_metadata_slot() -> None:
    """A generation takes 24 bytes; a slot of 16 KiB holds the superblock with room to spare."""
    assert LINEAGE_GENERATIONS_MAX * 24 < 8192
