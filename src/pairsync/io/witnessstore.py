"""What a witness is to a host: any store with a linearizable compare-and-swap, reached somehow.

The built-in witness (``io.witness``) and etcd (``io.etcd``) are two; an embedder may bring his own, and tries
it with the checks of `pairsync.testing.witness`.  What the values mean is in ``core.witness``.

**Errors** of both methods, whose type says whose fault it is:

- `PeerLost`: the store cannot be reached, or was lost meanwhile;
- `RefusedError`: it, or we, declined: a wrong key, a pair that it does not serve, a disk that failed;
- `ProtocolError`: it answered what it must not;
- `ConfigError`: the caller gave a value or a name that no store takes.

**Too slow** is no error of the store: the caller puts a cancel scope around the call.  After an error (but
`ConfigError`) or a cancellation it is *not known* whether a swap has happened, or will still happen.
"""

from __future__ import annotations

from typing import Protocol

from pairsync.core.arbitration import WitnessGet, WitnessSwap, WitnessView
from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.wire.arbitration import decode_view, encode_acceptor

__all__ = ["RegisterKeeper", "WitnessStore", "ask_witness"]


class WitnessStore(Protocol):
    """A linearizable register for each key; calls may overlap."""

    async def get(self, key: WitnessKey) -> Snapshot:
        """How the register is; it is made, with a new incarnation, if there is none."""
        ...

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """Store ``value`` if the register is at ``version``; durable on return.

        Returns the register as it is now, or the `Conflict` that kept the swap from happening.
        """
        ...


async def ask_witness(
    store: WitnessStore, key: WitnessKey, question: WitnessGet | WitnessSwap
) -> WitnessView:
    """What the store holds, after the swap that was asked for; errors as the store's.

    `ProtocolError` also if that is not what a host has written.
    """
    if isinstance(question, WitnessGet):
        return decode_view(await store.get(key))
    result = await store.swap(key, question.version, encode_acceptor(question.state))
    return decode_view(result.current if isinstance(result, Conflict) else result)


class RegisterKeeper(WitnessStore, Protocol):
    """What the built-in witness serves: a store that can be told that it is behind."""

    async def renew(self, key: WitnessKey, seen: Snapshot) -> None:
        """Begin a new incarnation of the register if it is behind what a host has ``seen``."""
        ...
