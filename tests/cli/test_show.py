"""What a host says of itself, as lines for people."""

from __future__ import annotations

from typing import Any

import pytest

from pairsync.cli.show import agreed_lines, guest_lines, host_lines, scrubbed

_VOLUME: dict[str, Any] = {
    "name": "vda",
    "state": "in-sync",
    "size_bytes": 256 << 20,
    "generation": "1.1/8b",
    "dirty_blocks": 0,
    "resync_fraction": None,
    "resync_bytes_per_s": None,
    "resync_remaining_s": None,
    "failed": None,
}


def _show(refusal: str | None = None, **changes: Any) -> list[str]:
    return list(guest_lines({"refusal": refusal, "volumes": [{**_VOLUME, **changes}]}))


def test_a_volume_in_sync() -> None:
    assert _show() == ["  vda            256 MiB  in-sync      0 dirty blocks, generation 1.1/8b"]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"generation": None, "state": "blank"}, "blank        0 dirty blocks, generation none"),
        ({"dirty_blocks": 17}, "17 dirty blocks"),
        (
            {"resync_fraction": 0.4321, "resync_bytes_per_s": 100 << 20, "resync_remaining_s": 12.4},
            "43.2 %  100 MiB/s  12 s left",
        ),
        ({"resync_fraction": 0.0, "resync_bytes_per_s": 0.0}, "0.0 %  0 B/s  0 dirty"),
        ({"failed": "EIO"}, "FAILED: EIO"),
    ],
)
def test_other_states(changes: dict[str, Any], shown: str) -> None:
    (line,) = _show(**changes)
    assert shown in line


def test_a_refusal_comes_first() -> None:
    assert _show("diverged: both hosts wrote apart")[0] == "  refused: diverged: both hosts wrote apart"


def test_volumes_stand_in_columns() -> None:
    lines = list(
        guest_lines({"refusal": None, "volumes": [_VOLUME, {**_VOLUME, "name": "d", "size_bytes": 1 << 40}]})
    )
    assert lines[0].index("in-sync") == lines[1].index("in-sync")


def test_a_failover_time_that_is_not_kept_is_said_first() -> None:
    timing = {"failover_s": 5.0, "verdict": "ok", "reason": "", "smallest_failover_s": 1.0}
    guest: dict[str, Any] = {"refusal": None, "volumes": [], "timing": timing}
    assert list(guest_lines(guest)) == []
    timing |= {"verdict": "warn", "reason": "a late guard"}
    assert list(guest_lines(guest)) == ["  failover time of 5 s hardly kept: a late guard"]
    timing |= {"verdict": "broken"}
    assert list(guest_lines(guest)) == ["  failover time of 5 s NOT KEPT: a late guard"]


def _agreed(**more: Any) -> dict[str, Any]:
    return {"term": 3, "epoch": 2, "in_sync": ["a", "b"], "sole": False, "survives": None, **more}


def _survives(**fates: tuple[str, int]) -> dict[str, Any]:
    single = {
        name: {"fate": fate, "within_s": 5.0, "lost_bytes": lost} for name, (fate, lost) in fates.items()
    }
    redundant = all(fate != "stops" and not lost for fate, lost in fates.values())
    return {"redundant": redundant, "single": single, "safe_pairs": []}


def test_what_is_agreed_and_what_would_survive() -> None:
    whole = _agreed(survives=_survives(owner=("moves", 0), witness=("goes-on", 0)))
    assert list(agreed_lines(whole, "lab", "runs on a")) == [
        "guest lab: runs on a; in sync: a and b; grant 3.2",
        "  any single failure is survived with nothing lost",
    ]
    whole["survives"]["single"] |= {"standby": {"fate": "goes-on", "lost_bytes": 0}}
    whole["survives"]["safe_pairs"] = [["owner", "witness"], ["standby", "witness"], ["witness", "standby"]]
    assert list(agreed_lines(whole, "lab", "runs on a"))[2:] == [
        "  a second one is not: standby after owner",
        "  a second one is not: owner after witness or standby",
    ]
    alone = _agreed(in_sync=["b"], sole=True, survives=_survives(owner=("stops", 0), link=("goes-on", 0)))
    assert list(agreed_lines(alone, "lab", "runs on b")) == [
        "guest lab: runs on b, decides alone; in sync: b; grant 3.2",
        "  stops if one of these is lost: owner",
    ]
    lagging = _agreed(survives=_survives(owner=("moves", 4096)))
    assert list(agreed_lines(lagging, "lab", "runs on a"))[1:] == [
        "  loses up to 4 KiB with one of these: owner"
    ]
    assert list(agreed_lines(_agreed(), "lab", "runs NOWHERE"))[1:] == []
    assert list(agreed_lines({"term": 1}, "lab", "runs on a")) == []  # fixed roles


_GUEST: dict[str, Any] = {
    "name": "db1",
    "role": "active",
    "paused": False,
    "in_sync": True,
    "connected": True,
    "refusal": None,
    "volumes": [_VOLUME],
    "survives": {"redundant": True},
    "grant": {
        "owner": "here",
        "term": 1,
        "epoch": 2,
        "sole": False,
        "in_sync": ["here", "peer"],
        "waits": "",
    },
}


def test_a_host_says_when_only_a_person_can_decide() -> None:
    lost = {**_GUEST, "role": "standby", "grant": {**_GUEST["grant"], "forgotten": True}}
    assert any("a person does (override)" in line for line in host_lines(lost, "alpha"))
    untold = {**_GUEST, "role": "standby", "grant": None}
    assert any("has not been told who owns" in line for line in host_lines(untold, "alpha"))
    assert not any("override" in line for line in host_lines(_GUEST, "alpha"))


def test_a_host_says_who_owns_the_guest_and_what_would_survive() -> None:
    assert list(host_lines(_GUEST, "alpha"))[:-1] == [
        "in sync",
        "guest db1: runs here; in sync: this host and the other host; grant 1.2",
        "  any single failure is survived with nothing lost",
        "host alpha: active, peer connected",
    ]
    empty = {**_GUEST, "role": "standby", "grant": {**_GUEST["grant"], "waits": "vda was never written"}}
    assert "  owns the guest and DOES NOT RUN it: vda was never written" in host_lines(empty, "alpha")
    waiting = {**_GUEST, "role": "standby", "grant": {**_GUEST["grant"], "owner": "peer"}}
    assert "guest db1: belongs to the other host; in sync" in "\n".join(host_lines(waiting, "beta"))
    halted = {**_GUEST, "paused": True}
    assert "guest db1: belongs to this host; in sync" in "\n".join(host_lines(halted, "alpha"))


def test_where_nothing_is_agreed_on_it_says_nothing_of_it() -> None:
    fixed = {**_GUEST, "grant": None, "connected": False, "in_sync": False}
    assert list(host_lines(fixed, "alpha"))[:2] == ["NOT in sync", "host alpha: active, peer away"]


def test_how_far_a_scrub_is() -> None:
    told: list[tuple[int, int]] = []
    for fraction in (None, 0.25):
        guest = {"volumes": [{**_VOLUME, "scrub_fraction": fraction}]}
        scrubbed(guest, "vda", lambda done, total: told.append((done, total)))
        scrubbed(guest, "other", lambda done, total: told.append((done, total)))
    scrubbed(None, "vda", lambda done, total: told.append((done, total)))
    assert told == [(250, 1000)]
