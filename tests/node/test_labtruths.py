"""Picking a side in a lab: the order of things, and that the other host is started again whatever happens.

With real hosts: ``tests/e2e/test_truths.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.node.test_truths import FIRST, SECOND, THERE, host_with_past, other

from pairsync.core.messages import Introduce
from pairsync.errors import ConfigError, MismatchError
from pairsync.node.lab import Lab
from pairsync.node.labtruths import keep_side
from pairsync.node.truths import stopped_side
from pairsync.wire.codec import encode

OWNER = {"role": "active", "paused": False, "in_sync": False, "term": 2, "grant": {"owner": "here"}}


class FakeLab:
    """Host b is kept, host a lies in a directory; what is done is noted."""

    def __init__(self, directory: Path, theirs: Introduce, guest: Mapping[str, Any], *, ran: bool) -> None:
        self.directory = directory
        self.theirs = theirs
        self.guest = guest
        self.ran = ran
        self.done: list[object] = []

    def runs(self, name: str) -> bool:
        return name == "b"

    async def end(self, name: str) -> bool:
        self.done.append(("end", name))
        return self.ran

    async def start(self, name: str) -> None:
        self.done.append(("start", name))

    async def ask(self, name: str, what: str, **more: object) -> dict[str, Any]:
        assert name == "b"
        if what == "truths":
            return {"introduction": b"".join(encode(self.theirs)).hex(), "peer": None, "grant": None}
        if what == "status":
            return {"guest": self.guest}
        self.done.append((what, more))
        return {}


async def picked(lab: FakeLab, kept: str = "b") -> dict[str, Any]:
    return await keep_side(cast("Lab", lab), kept, "me")


async def test_an_owner_needs_no_word(tmp_path: Path) -> None:
    host = host_with_past(tmp_path / "a")
    lab = FakeLab(tmp_path, other(host, THERE, FIRST), OWNER, ran=True)
    answer = await picked(lab)
    assert (answer["kept"], answer["conceded"], answer["forced"]) == ("b", "a", False)
    assert answer["volumes"][0]["common"] == FIRST.describe()
    assert lab.done == [("end", "a"), ("start", "a")]
    assert stopped_side(host).introduction.volumes[0].lineage == (FIRST,)


@pytest.mark.parametrize(
    "guest",
    [
        {**OWNER, "paused": True},
        {**OWNER, "grant": {"owner": "peer"}},
        {**OWNER, "grant": None},
        {**OWNER, "term": 0},
    ],
)
async def test_who_does_not_own_the_guest_does_so_by_somebodys_word(
    tmp_path: Path, guest: dict[str, Any]
) -> None:
    host = host_with_past(tmp_path / "a")
    lab = FakeLab(tmp_path, other(host, THERE, FIRST), guest, ran=False)
    assert (await picked(lab))["forced"]
    assert lab.done == [("end", "a"), ("override", {"operator": "me", "above": 1, "insist": True})]


async def test_fixed_roles_are_nobodys_to_force(tmp_path: Path) -> None:
    host = host_with_past(tmp_path / "a")
    guest = {key: value for key, value in OWNER.items() if key != "grant"}
    lab = FakeLab(tmp_path, other(host, THERE, FIRST), guest, ran=False)
    assert not (await picked(lab))["forced"]


async def test_what_cannot_be_is_refused_and_the_host_started_again(tmp_path: Path) -> None:
    host = host_with_past(tmp_path / "a")
    theirs = other(host, THERE, FIRST)
    foreign = replace(theirs, volumes=(replace(theirs.volumes[0], volume_id=b"f" * 16),))
    lab = FakeLab(tmp_path, foreign, OWNER, ran=True)
    with pytest.raises(MismatchError):
        await picked(lab)
    assert lab.done == [("end", "a"), ("start", "a")]
    lab.done.clear()
    with pytest.raises(ConfigError, match="host a is not running: start the host that is to be kept"):
        await picked(lab, "a")
    lab.guest = {**OWNER, "in_sync": True}
    with pytest.raises(ConfigError, match="in sync: there is one truth"):
        await picked(lab)
    assert lab.done == []
    assert stopped_side(host).introduction.volumes[0].lineage == (SECOND, FIRST)
