"""The tree of digests as its definition reads, for models of disks: slow and plain.

See ``core.prover`` for the levels; ``storage.digests`` is the fast one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from xxhash import xxh3_64_intdigest

from pairsync.core.questions import DIGEST_BYTES, FAN_OUT, UNKNOWN_DIGEST, node_count

__all__ = ["digests_of", "leaf_of"]


def leaf_of(content: bytes | bytearray) -> int:
    """The digest of a block: 0 if it reads as zero, never `UNKNOWN_DIGEST`."""
    return max(xxh3_64_intdigest(content), UNKNOWN_DIGEST + 1) if any(content) else 0


def digests_of(leaf: Callable[[int], int], block_count: int, level: int, first: int, stop: int) -> bytes:
    """The digests of these nodes, as `core.effects.Examined` gives them; ``leaf``: that of a block."""
    return _packed([_node(leaf, block_count, level, number) for number in range(first, stop)])


def _node(leaf: Callable[[int], int], block_count: int, level: int, number: int) -> int:
    if level == 0:
        return leaf(number)
    last = node_count(block_count, level - 1)
    below = range(number * FAN_OUT, min((number + 1) * FAN_OUT, last))
    children = [_node(leaf, block_count, level - 1, child) for child in below]
    if UNKNOWN_DIGEST in children:
        return UNKNOWN_DIGEST
    return leaf_of(_packed(children).ljust(FAN_OUT * DIGEST_BYTES, b"\0"))


def _packed(digests: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(digests)}Q", *digests)
