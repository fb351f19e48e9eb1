"""What two hosts say of their guest, put together: the newest grant counts."""

from __future__ import annotations

from typing import Any

from pairsync.node.labstatus import all_decide, guest_of, runs


def guest(
    role: str, term: int = 1, *, paused: bool = False, in_sync: bool = True, **more: Any
) -> dict[str, Any]:
    return {"role": role, "term": term, "paused": paused, "in_sync": in_sync, **more}


def grant(term: int, epoch: int, owner: str, *in_sync: str, sole: bool = False) -> dict[str, Any]:
    return {"term": term, "epoch": epoch, "owner": owner, "in_sync": list(in_sync), "sole": sole}


def test_a_guest_runs_where_it_is_active_and_not_halted() -> None:
    assert runs(guest("active"))
    assert not runs(guest("active", paused=True))
    assert not runs(guest("standby"))
    assert not runs(None)


def test_hosts_name_each_other_here_and_there() -> None:
    hosts = {
        "a": {"guest": guest("standby", grant=grant(2, 1, "peer", "peer", sole=True), survives=None)},
        "b": {
            "guest": guest("active", grant=grant(2, 2, "here", "here", "peer"), survives={"redundant": True})
        },
    }
    assert guest_of("b", hosts) == {
        "active": "b",
        "owner": "b",
        "term": 2,
        "epoch": 2,
        "in_sync": ["a", "b"],
        "sole": False,
        "survives": {"redundant": True},
    }


def test_an_owner_that_is_down_is_still_the_owner() -> None:
    hosts = {
        "a": {"guest": None},
        "b": {"guest": guest("standby", grant=grant(3, 1, "peer", "peer", sole=True), survives=None)},
    }
    found = guest_of(None, hosts)
    assert (found["active"], found["owner"], found["in_sync"], found["survives"]) == (None, "a", ["a"], None)


def test_fixed_roles_say_what_they_can() -> None:
    hosts = {"a": {"guest": guest("active", 4)}, "b": {"guest": guest("standby", 4)}}
    assert guest_of("a", hosts) == {"active": "a", "term": 4, "in_sync": ["a", "b"], "survives": None}
    assert guest_of(None, {"a": {"guest": None}})["in_sync"] == []


def test_all_decide_where_the_guest_outlives_its_owner_and_its_link() -> None:
    def said(owner: str, link: str) -> dict[str, Any]:
        single = {"owner": {"fate": owner}, "link": {"fate": link}, "owner-disk": {"fate": "stops"}}
        return guest("active", survives={"redundant": False, "single": single})

    assert all_decide(said("moves", "goes-on"))
    assert not all_decide(said("stops", "goes-on"))  # the owner decides alone, or the standby cannot ask
    assert not all_decide(said("moves", "moves"))  # the owner cannot ask
    assert not all_decide(guest("standby", survives=None))
    assert not all_decide(guest("active"))
