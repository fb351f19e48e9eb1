"""Fixtures of the link tests; what they hand out is in ``harness``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
import trio
from tests.io.harness import MemoryNetwork, Pair, Relay

from pairsync.io import Address, HostIdentity, make_identity

StartRelay: TypeAlias = Callable[[Address], Awaitable[Relay]]


@pytest.fixture(scope="session")
def identities() -> tuple[HostIdentity, HostIdentity]:
    """The host that dials and the host that listens."""
    first, second = sorted([make_identity(), make_identity()], key=lambda one: one.fingerprint)
    return first, second


@pytest.fixture
def pair(identities: tuple[HostIdentity, HostIdentity]) -> Pair:
    """Two hosts on the real network."""
    return Pair(*identities)


@pytest.fixture
def memory(pair: Pair) -> MemoryNetwork:
    """The same two hosts on a network in memory, for tests under a mock clock."""
    network = MemoryNetwork()
    pair.networks = (network, network)
    return network


@pytest.fixture
def start_relay(nursery: trio.Nursery) -> StartRelay:
    """Put a relay before an address."""

    async def start(target: Address) -> Relay:
        relay = Relay(target)
        await nursery.start(relay.run)
        return relay

    return start
