"""Digests of payloads: xxh3, because it runs at memory speed; keys and seals protect against malice.

A digest here finds bits that fell over between two hosts' memories (a seal ends where the plaintext
begins), nothing else: 64 bits serve.  Digests of blocks are those of ``storage.digests``.
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_64, xxh3_64_intdigest

from pairsync.core.messages import Buffer

__all__ = ["payload_digest", "payload_digest_of"]


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
