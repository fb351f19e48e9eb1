"""Namespaces hold what runs in them, a pulled cable is silent, and nothing is left behind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import LeakGuard, namespaces_in_use

from pairsync.errors import BackendError, ConfigError
from pairsync.node.namespaces import Cable, Namespaces, obstacle, open_namespaces
from pairsync.testing.programs import run_program

CABLES = (
    Cable("main", {"x": "10.1.0.1/24", "y": "10.1.0.2/24"}),
    Cable("other", {"y": "10.2.0.2/24", "x": "10.2.0.1/24"}),
)

DIAL = """
import errno, socket, sys
with socket.socket() as dialer:
    dialer.settimeout(20)
    print(errno.errorcode[dialer.connect_ex((sys.argv[1], 9))])
"""
"""Nobody listens there: who refuses has been reached."""


async def output(space: Namespaces, name: str, *words: str) -> str:
    return (await run_program(*space.inside(name), *words)).stdout.decode()


async def dial(space: Namespaces, name: str, address: str) -> str:
    return (await output(space, name, sys.executable, "-c", DIAL, address)).strip()


async def interface(space: Namespaces, name: str, cable: str) -> dict[str, Any]:
    (found,) = json.loads(await output(space, name, "ip", "-json", "address", "show", cable))
    return dict(found)


@pytest.mark.root
@pytest.mark.tools("ip")
async def test_a_pulled_cable_keeps_its_addresses_and_is_silent() -> None:
    async with open_namespaces(CABLES) as space:
        assert await dial(space, "x", "10.1.0.2") == "ECONNREFUSED"
        assert await dial(space, "y", "10.2.0.1") == "ECONNREFUSED"
        assert await dial(space, "x", "127.0.0.1") == "ECONNREFUSED"
        await space.plug("main", up=False)
        for name, address in CABLES[0].ends.items():
            end = await interface(space, name, "main")
            assert "NO-CARRIER" in end["flags"]
            assert "UP" in end["flags"]  # nobody has switched it off
            assert f"{end['addr_info'][0]['local']}/24" == address
        assert "10.1.0.0/24" in await output(space, "y", "ip", "route")
        assert await dial(space, "x", "10.1.0.2") == "EHOSTUNREACH"  # and not ENETUNREACH: it was tried
        assert await dial(space, "x", "10.2.0.2") == "ECONNREFUSED"  # the other one is as it was
        await space.plug("main", up=True)
        assert await dial(space, "x", "10.1.0.2") == "ECONNREFUSED"


@pytest.mark.root
@pytest.mark.tools("ip")
async def test_nothing_has_a_name_and_nothing_is_left(leak_guard: LeakGuard) -> None:
    leak_guard.rebase()
    before = (await run_program("ip", "link")).stdout, (await run_program("ip", "netns")).stdout
    async with open_namespaces(CABLES) as first, open_namespaces(CABLES) as second:  # the same addresses
        links = [
            await output(each, name, "readlink", "/proc/self/ns/net")
            for each in (first, second)
            for name in "xy"
        ]
        assert len({os.readlink("/proc/self/ns/net"), *(each.strip() for each in links)}) == 5
        assert (await run_program("ip", "link")).stdout == before[0]
        assert (await run_program("ip", "netns")).stdout == before[1]
    assert not {each.strip() for each in links} & namespaces_in_use()
    await leak_guard.settle()


@pytest.mark.root
@pytest.mark.tools("ip")
async def test_what_the_system_refuses_is_told_in_its_own_words(leak_guard: LeakGuard) -> None:
    leak_guard.rebase()
    with pytest.raises(BackendError, match=r"^ip: .*name"):
        async with open_namespaces([Cable("a-name-that-is-too-long", CABLES[0].ends)]):
            pass
    await leak_guard.settle()


@pytest.mark.root
@pytest.mark.tools("ip")
async def test_no_namespace_is_a_refusal_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container may have root and not the right to make any."""
    (tmp_path / "unshare").write_text(
        "#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n"
    )
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(BackendError, match=r"^no network namespace: unshare failed: .* not permitted$"):
        async with open_namespaces(CABLES):
            pass


async def test_who_may_not_is_told_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"^network namespaces need root$"):
        async with open_namespaces(CABLES):
            pass
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert obstacle() == ("missing: ip, nsenter, unshare; on Debian: apt-get install iproute2 util-linux")
