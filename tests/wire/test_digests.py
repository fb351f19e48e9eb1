"""Digests: known answers, and joined is the same as in parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pairsync.wire.digests import payload_digest, payload_digest_of


def test_known_answers() -> None:
    """They are part of the protocol: another library, or another version of it, must agree."""
    assert payload_digest(b"") == 0
    assert payload_digest(b"pairsync") == 0x10A1EA164D32D4BE


@given(st.lists(st.binary(max_size=600), max_size=6))
def test_parts_are_the_whole(parts: list[bytes]) -> None:
    assert payload_digest_of(parts) == payload_digest(b"".join(parts))
