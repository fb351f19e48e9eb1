"""A host that is lost with all it had, and the new machine that takes its place: as the README says it."""

from __future__ import annotations

import shutil
import signal

from tests.e2e.conftest import MakeDirectory
from tests.e2e.sites import a_site

CONTENT = bytes(range(256)) * 4096


async def test_a_new_machine_takes_the_place_of_a_lost_one(make_directory: MakeDirectory) -> None:
    async with a_site(make_directory()) as site:
        pair = await site.init()
        for name in ("w", "b", "a"):
            await site.start(name)
        await site.grant("a")
        async with await site.client("a") as client:
            await client.write(4096, CONTENT)
            await client.flush()

        await site.end("b", signal.SIGKILL)
        shutil.rmtree(site.directory / "b")
        await site.running["a"].wait_event("grant", sole=True)

        # a new machine: another key, empty disks, no memory of what was agreed
        await site.init_host("b", f"--pair={pair}")
        site.introduce()
        await site.admit(pair, "--replace")
        await site.start("b")
        await site.end("a", signal.SIGTERM)  # it reads the new certificate when it starts
        await site.start("a")
        grant = await site.grant("a")
        assert (grant["owner"], sorted(grant["in_sync"]), grant["sole"]) == ("here", ["here", "peer"], False)
        said = await site.command("host", "status", site.file("a"))
        assert "any single failure is survived" in said
        assert "guest guest: runs here; in sync: this host and the other host" in said
        assert "all well" in await site.command("host", "scrub", site.file("a"))

        # and it counts: it takes over, with all that was acknowledged
        await site.end("a", signal.SIGKILL)
        async with await site.client("b") as client:
            assert await client.read(4096, len(CONTENT)) == CONTENT
            await client.write(0, b"goes on")
