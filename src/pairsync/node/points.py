"""Points of a host's volumes, for its control socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import trio

from pairsync.guest.guest import Guest

from .control import Answer, Handler

__all__ = ["point_handlers"]


def point_handlers(guest: Guest) -> dict[str, Handler]:
    """What the control socket of a host understands of them."""

    async def points(request: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        found = guest.volume(str(request.get("volume"))).points()
        return {"role": guest.role.name.lower(), "points": [asdict(point) for point in found]}

    async def make(request: Mapping[str, Any]) -> Answer:
        volume = guest.volume(str(request.get("volume")))
        return {"point": asdict(await volume.make_point(str(request.get("name"))))}

    async def drop(request: Mapping[str, Any]) -> Answer:
        await guest.volume(str(request.get("volume"))).drop_point(str(request.get("name")))
        return {}

    return {"points": points, "point-make": make, "point-drop": drop}
