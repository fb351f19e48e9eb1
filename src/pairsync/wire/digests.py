"""Digests of payloads: xxh3, because it runs at memory speed; keys and seals protect against malice.

A digest here finds bits that fell over between two hosts' memories (a seal ends where the plaintext
begins), and tells whether two blocks are equal.  64 bits serve a message; 128 bits serve blocks, where
billions are compared and nothing else vouches for equality.
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128_digest

from pairsync.core.messages import Buffer

__all__ = ["BLOCK_DIGEST_BYTES", "block_digest", "payload_digest", "payload_digest_of"]

BLOCK_DIGEST_BYTES = 16
"""Size of `block_digest`."""


def payload_digest(payload: Buffer) -> int:
    """xxh3_64 of the payload; 0 where there is none."""
    return xxh3_64_intdigest(payload) if len(payload) else 0


def payload_digest_of(parts: Iterable[Buffer]) -> int:
    """xxh3_64 of the parts joined, without joining them; 0 where there is not a byte."""
    state = xxh3_64()
    length_bytes = 0
    for part in parts:
        state.update(part)
        length_bytes += len(part)
    return state.intdigest() if length_bytes else 0


def block_digest(block: Buffer) -> bytes:
    """xxh3_128 of one block, 16 bytes."""
    return xxh3_128_digest(block)
