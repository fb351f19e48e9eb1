"""What the supervisor of a lab understands on its control socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from pairsync.errors import ConfigError

from .control import Answer, Handler
from .labfile import GUEST, LINK
from .labtruths import keep_side

if TYPE_CHECKING:
    from .lab import Lab

__all__ = ["lab_handlers"]


def lab_handlers(lab: Lab) -> dict[str, Handler]:
    """What the supervisor's control socket understands."""

    async def status(_: Mapping[str, Any]) -> Answer:
        return await lab.status()

    async def kill(request: Mapping[str, Any]) -> Answer:
        await lab.kill(str(request.get("host")))
        return {}

    async def start(request: Mapping[str, Any]) -> Answer:
        await lab.start(str(request.get("host")))
        return {"host": lab.describe(str(request.get("host")))}

    async def pause(request: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        lab.pause(str(request.get("host")))
        return {}

    async def resume(request: Mapping[str, Any]) -> Answer:
        await lab.resume(str(request.get("host")))
        return {}

    async def cut(request: Mapping[str, Any]) -> Answer:
        return await lab.cables(str(request.get("cable", LINK)), cut=True)

    async def heal(request: Mapping[str, Any]) -> Answer:
        return await lab.cables(str(request.get("cable", LINK)), cut=False)

    async def wait(_: Mapping[str, Any]) -> Answer:
        await lab.wait_in_sync()
        return {}

    async def disk(request: Mapping[str, Any]) -> Answer:
        host, volume, what = (str(request.get(key)) for key in ("host", "volume", "disk"))
        await lab.disk(host, volume, what)
        return {"host": host, "volume": volume, "disk": what}

    async def scrub(request: Mapping[str, Any]) -> Answer:
        repair = request.get("repair") is True
        return await lab.on_volume(str(request.get("volume")), "scrub", repair=repair)

    async def grow(request: Mapping[str, Any]) -> Answer:
        size_bytes = request.get("size_bytes")
        return await lab.on_volume(str(request.get("volume")), "grow", size_bytes=size_bytes)

    link = {"cut": cut, "heal": heal, "wait": wait, "scrub": scrub, "grow": grow}
    process = {"kill": kill, "start": start, "pause": pause, "resume": resume}
    return {"status": status, "disk": disk, **process, **link, **_owner_handlers(lab)}


def _owner_handlers(lab: Lab) -> dict[str, Handler]:
    """Who owns the guest, by a person's word."""

    async def move(request: Mapping[str, Any]) -> Answer:
        guest = request.get("guest", GUEST)
        if guest != GUEST:
            raise ConfigError(f"no guest {guest!r}; there is {GUEST}")
        return await lab.move()

    async def override(request: Mapping[str, Any]) -> Answer:
        host, operator = str(request.get("host")), str(request.get("operator", ""))
        await lab.ask(host, "override", operator=operator, insist=request.get("insist") is True)
        return {"host": host, "operator": operator}

    async def keep(request: Mapping[str, Any]) -> Answer:
        host, operator = str(request.get("host")), str(request.get("operator", ""))
        return await keep_side(lab, host, operator)

    return {"move": move, "override": override, "keep": keep}
