"""Two hosts and a witness in three network namespaces, and cables between them that are unplugged for real.

The failure table cuts cables inside the processes; here is what that is held against: the kernel's own
silence, in which a connection neither ends nor answers, and a cable that carries one way only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from pairsync.testing.failuretable.watch import SIZE_BYTES, Place, Watch, longest_gap
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.programs import (
    EventStream,
    ProgramError,
    pairsync_command,
    run_program,
    running_service,
)

FAILOVER_S = 2.0
CABLES = (("a", "b"), ("a", "w"), ("b", "w"))
PATIENCE_S = 30.0
LOOK_S = 0.02
SLACK_S = 1.0
"""Beyond the failover time: the machine is busy with others."""


@dataclass
class Net:
    """The namespaces, and what runs in them."""

    directory: Path
    watch: Watch
    services: dict[str, EventStream]

    async def cable(self, first: str, second: str, state: str) -> None:
        """Unplug (``down``) or plug in (``up``) the cable between two of them, at the first one's end."""
        await run_program("ip", "-n", namespace(first), "link", "set", f"to-{second}", state)

    async def firewall(self, where: str, *words: str) -> None:
        """Change what that one lets in."""
        await run_program(*inside(where), "iptables", "--wait", *words)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(PATIENCE_S):
            while not condition():
                await trio.sleep(LOOK_S)
            return
        logs = [f"{name}: {service.logs()}" for name, service in self.services.items()]
        raise ProgramError("\n".join([f"not within {PATIENCE_S:g} s: {what}: {self.watch.latest}", *logs]))

    async def until_whole(self) -> str:
        """Both in sync by grant, and three voters again; where the guest runs."""

        def whole() -> bool:
            active = self.watch.active()
            grant = None if active is None else self.watch.grant(active)
            return grant is not None and len(grant["in_sync"]) == 2 and not grant["sole"]

        await self.until(whole, "whole")
        return self.watch.active() or ""


def namespace(name: str) -> str:
    return f"pairsync-{os.getpid()}-{name}"


def inside(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace(name))


def address(name: str, other: str) -> str:
    """The address of one of them on the cable to another one."""
    (number,) = [at for at, cable in enumerate(CABLES) if {name, other} == set(cable)]
    return f"10.232.{number}.{'abw'.index(name) + 1}"


async def plug() -> None:
    for name in "abw":
        await run_program("ip", "netns", "add", namespace(name))
    for first, second in CABLES:
        words = ["ip", "-n", namespace(first), "link", "add", f"to-{second}", "type", "veth"]
        await run_program(*words, "peer", "name", f"to-{first}", "netns", namespace(second))
        for here, there in ((first, second), (second, first)):
            to = ["dev", f"to-{there}"]
            await run_program(
                "ip", "-n", namespace(here), "address", "add", f"{address(here, there)}/24", *to
            )
            await run_program("ip", "-n", namespace(here), "link", "set", f"to-{there}", "up")


async def init(directory: Path) -> None:
    pair: list[str] = []
    for name, peer in (("a", "b"), ("b", "a")):
        words = ["host", "init", str(directory / name), "--name", name, f"--volume=vda={SIZE_BYTES}", *pair]
        words += [f"--peer={address(peer, name)}", f"--witness={address('w', name)}"]
        words += [f"--failover={FAILOVER_S:g}"]
        said = (await run_program(*pairsync_command(*words))).stdout.decode()
        if not pair:
            (pair_id,) = [line.split()[-1] for line in said.splitlines() if line.startswith("pair id")]
            pair = ["--pair", pair_id]
    await run_program(*pairsync_command("witness", "init", directory / "w"))
    certificate = Path("identity") / "host.crt"
    for name, peer in (("a", "b"), ("b", "a")):
        shutil.copy(directory / peer / certificate, directory / name / "peer.pem")
        shutil.copy(directory / "w" / certificate, directory / name / "witness.pem")
    hosts = [f"--host={directory / name / certificate}" for name in "ab"]
    await run_program(*pairsync_command("witness", "add", directory / "w", f"--pair={pair[1]}", *hosts))


@asynccontextmanager
async def three_sites(directory: Path) -> AsyncIterator[Net]:
    """Both hosts and the witness up and whole, with a writer at each door; the namespaces are gone after."""
    try:
        await plug()
        await init(directory)
        async with AsyncExitStack() as stack:
            commands = {"w": ("witness", "serve", directory / "w")}
            commands |= {name: ("host", "run", directory / name / "host.toml") for name in "ba"}
            services = {}
            for name, words in commands.items():
                services[name] = await stack.enter_async_context(running_service(*words, before=inside(name)))
            places = {
                name: Place(directory / name / "control.sock", directory / name / "nbd.sock") for name in "ab"
            }
            nursery = await stack.enter_async_context(trio.open_nursery())
            net = Net(directory, Watch(places, 9), services)
            nursery.start_soon(net.watch.run)
            await net.until_whole()
            yield net
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            for name in "abw":
                await run_program("ip", "netns", "delete", namespace(name), status=None)


async def mended(net: Net) -> None:
    """All that was acknowledged is there, and two have never served at once."""
    active = await net.until_whole()
    async with await NbdClient.connect_unix(str(net.directory / active / "nbd.sock")) as client:
        await client.negotiate("vda")
        assert not await net.watch.check(client, seconds=PATIENCE_S)
    net.watch.judge()
    assert not net.watch.errors
    net.watch.forget()


async def moved(net: Net, since_s: float, to: str) -> None:
    """The guest has moved in time."""
    watch = net.watch
    await net.until(lambda: watch.active() == to, f"the guest runs on {to}")
    await net.until(lambda: any(each > since_s for each in watch.writers[to].answers), "it is served")
    gap_s = longest_gap(watch.writers[to].answers, since_s, trio.current_time())
    assert gap_s < FAILOVER_S + SLACK_S


async def unplug_the_link(net: Net) -> None:
    """A lost path alone never moves a guest."""
    await net.cable("a", "b", "down")
    await net.until(lambda: (net.watch.grant("a") or {}).get("in_sync") == ["here"], "a is alone")
    assert net.watch.active() == "a"
    await net.cable("a", "b", "up")
    await mended(net)


async def unplug_the_active(net: Net, active: str, other: str) -> None:
    """It is isolated: it stops by itself, and the other one takes over."""
    since_s = trio.current_time()
    await net.cable(active, other, "down")
    await net.cable(active, "w", "down")
    await moved(net, since_s, other)
    await net.cable(active, other, "up")
    await net.cable(active, "w", "up")
    await mended(net)


async def make_deaf(net: Net, active: str, other: str) -> None:
    """The active host hears nobody, though all hear it: it cannot know that, and gives up all the same."""
    since_s = trio.current_time()
    await net.firewall(active, "-A", "INPUT", "-j", "DROP")
    await moved(net, since_s, other)
    await net.firewall(active, "-F", "INPUT")
    await mended(net)


async def unplug_the_witness(net: Net) -> None:
    """Neither its loss stops or moves anything, nor that of the link some time after."""
    active = net.watch.active() or ""
    for name in "ab":
        await net.cable("w", name, "down")
    await net.until(lambda: bool((net.watch.grant(active) or {}).get("sole")), "the owner decides alone")
    await net.cable("a", "b", "down")
    await net.until(lambda: (net.watch.grant(active) or {}).get("in_sync") == ["here"], "alone")
    assert net.watch.active() == active
    for first, second in CABLES:
        await net.cable(first, second, "up")
        await net.cable(second, first, "up")
    await mended(net)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.tools("ip", "iptables")
async def test_cables_are_unplugged_and_the_guest_runs_once(lab_directory: Path) -> None:
    async with three_sites(lab_directory) as net:
        await unplug_the_link(net)
        await unplug_the_active(net, "a", "b")
        await make_deaf(net, "b", "a")
        await unplug_the_witness(net)
