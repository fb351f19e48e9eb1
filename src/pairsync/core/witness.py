"""What a witness store holds, as values: for each guest of a pair one register with a version.

A *store* is any linearizable register that can be swapped by comparison.  It knows neither grants nor terms,
no clock and no lease: hosts read a `Snapshot`, work out what the witness is to hold next, and swap it in at
the version that they have read.

**Incarnation.**  A store that has lost what it held is another voter (DESIGN rule 4).  So each register has
an incarnation, drawn at random when the register is made, at the first look at it.  A register that is made
again, because the store was emptied, restored or replaced, has another one, and holds nothing.

**Version.**  It grows with every swap, and no version occurs in two incarnations: the first one of an
incarnation is drawn at random from 62 bits (`first_version`).  Therefore a swap needs the version only, and
one that was worked out from a lost incarnation cannot hit the next one by counting up to the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pairsync.errors import ConfigError, InternalError

__all__ = [
    "GUEST_NAME_BYTES_MAX",
    "INCARNATION_BYTES",
    "VALUE_BYTES_MAX",
    "VERSION_MAX",
    "Conflict",
    "Snapshot",
    "WitnessKey",
    "check_value",
    "first_version",
]

INCARNATION_BYTES: Final = 8
"""Random bytes of an incarnation: a pair sees a handful of them in its life."""

VALUE_BYTES_MAX: Final = 1024
"""What a register holds at most.  An acceptor's state with three voters takes about 300 bytes."""

GUEST_NAME_BYTES_MAX: Final = 255
"""Name of a guest in UTF-8: what a file name may have, as on the link."""

VERSION_MAX: Final = (1 << 63) - 1
"""Fits a signed 64-bit integer everywhere."""

_FIRST_VERSION_BITS: Final = 62  # leaves as many swaps as the drawing leaves numbers
_PAIR_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """Which register: the pair's id (16 bytes) and the guest's name; `ConfigError` for what is none."""

    pair_id: bytes
    guest: str

    def __post_init__(self) -> None:
        if len(self.pair_id) != _PAIR_ID_BYTES:
            raise ConfigError(f"witness: a pair id has {_PAIR_ID_BYTES} bytes, not {len(self.pair_id)}")
        try:
            length_bytes = len(self.guest.encode())
        except UnicodeEncodeError as error:
            raise ConfigError(f"witness: a guest's name that is no text: {error}") from error
        if not 0 < length_bytes <= GUEST_NAME_BYTES_MAX:
            raise ConfigError(
                f"witness: a guest's name of {length_bytes} bytes, 1 to {GUEST_NAME_BYTES_MAX} are possible"
            )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A register at one moment; ``value`` is None until the first swap of an incarnation."""

    incarnation: bytes
    version: int
    value: bytes | None

    def is_behind(self, seen: Snapshot) -> bool:
        """Whether the register had been farther when ``seen`` was: it has lost what came since."""
        return self.incarnation == seen.incarnation and self.version < seen.version


@dataclass(frozen=True, slots=True)
class Conflict:
    """A swap did not happen, because the register is not at that version but as ``current`` says."""

    current: Snapshot


def check_value(value: bytes) -> None:
    """`ConfigError` for a value that no store takes."""
    if len(value) > VALUE_BYTES_MAX:
        raise ConfigError(f"witness: a value of {len(value)} bytes, at most {VALUE_BYTES_MAX} are stored")


def first_version(entropy: bytes) -> int:
    """Where the versions of a new incarnation begin, from 8 random bytes."""
    if len(entropy) != 8:
        raise InternalError(f"a first version is drawn from 8 random bytes, not {len(entropy)}")
    return int.from_bytes(entropy, "big") >> (64 - _FIRST_VERSION_BITS)
