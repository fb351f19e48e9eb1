"""Points by way of a host's control socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairsync.core.messages import Role
from pairsync.core.units import MIB
from pairsync.errors import ConfigError
from pairsync.guest.config import GuestConfig, VolumeConfig
from pairsync.guest.guest import open_guest
from pairsync.guest.replica import create_replica
from pairsync.node.points import point_handlers

PAIR = b"p" * 16


async def test_they_are_made_listed_and_dropped(tmp_path: Path) -> None:
    path = tmp_path / "vda.img"
    create_replica(path, name="vda", pair_id=PAIR, volume_id=b"v" * 16, size_bytes=MIB)
    config = GuestConfig("guest", PAIR, Role.ACTIVE, [VolumeConfig("vda", path)])
    async with open_guest(config) as guest:
        handlers = point_handlers(guest)
        request = {"volume": "vda", "name": "monday"}
        made = (await handlers["point-make"](request))["point"]
        assert (made["name"], made["on_peer"]) == ("monday", False)
        assert await handlers["points"](request) == {"role": "active", "points": [made]}
        with pytest.raises(ConfigError, match="already"):
            await handlers["point-make"](request)
        assert await handlers["point-drop"](request) == {}
        assert (await handlers["points"](request))["points"] == []
        with pytest.raises(ConfigError, match="no volume"):
            await handlers["points"]({"volume": "vdz"})
