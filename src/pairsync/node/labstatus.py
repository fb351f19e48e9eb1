"""What a lab's status says of its guest: what the two hosts say of it, put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .labfile import HOSTS

__all__ = ["all_decide", "guest_of", "runs"]


def runs(guest: Mapping[str, Any] | None) -> bool:
    """Whether a host says that the guest runs there."""
    return guest is not None and guest["role"] == "active" and not guest["paused"]


def all_decide(guest: Mapping[str, Any]) -> bool:
    """Whether the host on which the guest runs says that all three voters decide.

    Then nobody decides alone, and both hosts reach the witness: the guest survives the owner's end, and the
    link's where it is.
    """
    survives = guest.get("survives")
    if survives is None:
        return False
    fates = {failure: each["fate"] for failure, each in survives["single"].items()}
    return (fates["owner"], fates["link"]) == ("moves", "goes-on")


def guest_of(active: str | None, hosts: Mapping[str, Any]) -> dict[str, Any]:
    """The guest as both hosts together see it; the newest grant is what counts."""
    told = {name: each["guest"] for name, each in hosts.items() if each["guest"] is not None}
    grants = {name: guest["grant"] for name, guest in told.items() if guest.get("grant") is not None}
    if not grants:
        term = max((guest["term"] for guest in told.values()), default=0)
        in_sync = active is not None and told[active]["in_sync"]
        return {
            "active": active,
            "term": term,
            "in_sync": list(HOSTS) if in_sync else [active] if active else [],
            "survives": None,
        }
    name = max(grants, key=lambda each: (grants[each]["term"], grants[each]["epoch"]))
    grant, other = grants[name], HOSTS[1 - HOSTS.index(name)]
    call = {"here": name, "peer": other}
    source = active if active is not None else name
    return {
        "active": active,
        "owner": call[grant["owner"]],
        "term": grant["term"],
        "epoch": grant["epoch"],
        "in_sync": sorted(call[each] for each in grant["in_sync"]),
        "sole": grant["sole"],
        "survives": told[source].get("survives"),
    }
