"""A lab of which both hosts have a truth of their own: one is kept, the other host gives way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from pairsync.errors import ConfigError

from .control import Answer
from .hostfile import read_host_file
from .labfile import HOSTS
from .labstatus import runs
from .truths import concede_host, side_from_answer

if TYPE_CHECKING:
    from .lab import Lab

__all__ = ["keep_side"]


async def keep_side(lab: Lab, kept: str, operator: str) -> Answer:
    """Have the other host give way to ``kept``, which runs; it is down meanwhile, and started if it ran.

    If the guest does not run on the kept host under a term that the other one will accept, it does so from
    then on by the word of ``operator``.  Raises what `concede_host` raises, with nothing changed.
    """
    if not lab.runs(kept):
        raise ConfigError(f"host {kept} is not running: start the host that is to be kept first")
    if (await lab.ask(kept, "status"))["guest"]["in_sync"]:
        raise ConfigError("both hosts are in sync: there is one truth, and nothing to pick")
    other = HOSTS[1 - HOSTS.index(kept)]
    ran = await lab.end(other)
    file = read_host_file(lab.directory / other / "host.toml")
    try:
        theirs = side_from_answer(await lab.ask(kept, "truths")).introduction
        given, term = await trio.to_thread.run_sync(partial(concede_host, file, theirs))
        guest = (await lab.ask(kept, "status"))["guest"]
        forced = "grant" in guest and not _owns(guest, term)
        if forced:
            await lab.ask(kept, "override", operator=operator, above=term, insist=True)
    finally:
        if ran:
            await lab.start(other)
    return {"kept": kept, "conceded": other, "forced": forced, "volumes": [asdict(each) for each in given]}


def _owns(guest: Mapping[str, Any], term: int) -> bool:
    """Whether the guest runs on that host by its own grant, under ``term`` or a higher one."""
    grant = guest["grant"]
    return runs(guest) and grant is not None and grant["owner"] == "here" and guest["term"] >= term
