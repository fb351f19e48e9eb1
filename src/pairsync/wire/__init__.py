"""PURE: frames, codec, seals, digests, version negotiation, limits."""
