#!/usr/bin/env python3
"""A thousand pairs for the benchmark of the witness: a program of its own, that does as hosts do.

``witnessload.py DIRECTORY ADDRESS COUNT`` makes the keys of COUNT pairs, puts them on the roll of the witness
in DIRECTORY, waits for a line, connects both hosts of every pair, and then obeys its standard input: ``swap
SECONDS`` lets each pair swap one register, again and again.  It answers with a JSON line each time, and ends
with its input.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path

import trio

from pairsync.core.witness import Conflict, WitnessKey
from pairsync.errors import PeerError
from pairsync.io.keys import HostIdentity, make_identity
from pairsync.io.witness import WitnessClient, WitnessConfig, open_witness
from pairsync.node.witnessdir import add_pair

VALUE_BYTES = 300
"""The state of an acceptor with three voters."""

RETRY_S = 0.1

CONNECTING = 16
"""Hosts that connect at once: the witness takes 200 a second."""


def _enroll(directory: Path, count: int) -> dict[bytes, tuple[HostIdentity, HostIdentity]]:
    pairs: dict[bytes, tuple[HostIdentity, HostIdentity]] = {}
    files = [directory.parent / f"{directory.name}-{name}.crt" for name in "ab"]
    for number in range(count):
        pair_id = number.to_bytes(16, "big")
        pairs[pair_id] = hosts = (make_identity(), make_identity())
        for file, host in zip(files, hosts, strict=True):
            file.write_bytes(host.certificate_pem)
        add_pair(directory, pair_id.hex(), files)
    for file in files:
        file.unlink()
    return pairs


async def _host(
    config: WitnessConfig,
    clients: dict[bytes, WitnessClient],
    places: trio.Semaphore,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """One host: connected from the start to the end."""
    async with open_witness(config) as client:
        async with places:
            while True:
                try:
                    await client.get(WitnessKey(config.pair_id, "guest"))
                    break
                except PeerError:  # it backs off by itself
                    await trio.sleep(RETRY_S)
        clients.setdefault(config.pair_id, client)
        task_status.started()
        await trio.sleep_forever()


async def _swap(client: WitnessClient, pair_id: bytes, seconds: float, counts: list[int]) -> None:
    key, value = WitnessKey(pair_id, "guest"), bytes(VALUE_BYTES)
    version = (await client.get(key)).version
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done = await client.swap(key, version, value)
        if isinstance(done, Conflict):
            raise ValueError(f"nobody else swaps this register: {done}")  # noqa: TRY004
        version = done.version
        counts[0] += 1


async def _swap_all(clients: dict[bytes, WitnessClient], seconds: float) -> float:
    counts = [0]
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        for pair_id, client in clients.items():
            nursery.start_soon(_swap, client, pair_id, seconds, counts)
    return counts[0] / (time.monotonic() - began)


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def _run(directory: Path, address: tuple[str, int], count: int) -> None:
    pairs = _enroll(directory, count)
    _say(enrolled=len(pairs))
    await trio.to_thread.run_sync(sys.stdin.readline)
    certificate = (directory / "identity" / "host.crt").read_bytes()
    places = trio.Semaphore(CONNECTING)
    clients: dict[bytes, WitnessClient] = {}
    configs = [
        WitnessConfig(address=address, certificate_pem=certificate, identity=host, pair_id=pair_id)
        for pair_id, hosts in pairs.items()
        for host in hosts
    ]
    async with trio.open_nursery() as nursery:
        began = time.monotonic()
        async with trio.open_nursery() as starting:
            for config in configs:
                starting.start_soon(nursery.start, partial(_host, config, clients, places))
        _say(connected=len(configs), seconds=time.monotonic() - began)
        while words := (await trio.to_thread.run_sync(sys.stdin.readline)).split():
            _say(swaps_per_s=await _swap_all(clients, float(words[1])))
        nursery.cancel_scope.cancel()


def main() -> None:
    """The program."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, _, port = sys.argv[2].rpartition(":")
    trio.run(_run, Path(sys.argv[1]), (host, int(port)), int(sys.argv[3]))


if __name__ == "__main__":
    main()
