"""What a host says of itself, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .progress import Progress
from .values import show_bytes

__all__ = ["agreed_lines", "grown_line", "guest_lines", "host_lines", "scrub_lines", "scrubbed"]

SCRUB_STEPS = 1000
"""Of a whole scrub, as it is shown."""


def grown_line(answer: Mapping[str, Any]) -> str:
    """What became of a volume that was to grow."""
    before, after = show_bytes(answer["before_bytes"]), show_bytes(answer["size_bytes"])
    return f"{answer['volume']}: {after}" + (f", {before} before" if before != after else "")


def scrub_lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What a scrub of each volume has found."""
    for name, each in results.items():
        rate = show_bytes(each["bytes"] / max(each["seconds"], 0.001))
        wrong = f"{each['findings']} blocks are wrong, {each['repaired']} repaired"
        yield f"{name}: {wrong if each['findings'] else 'all well'} ({each['seconds']:.1f} s, {rate}/s)"
        for finding in each["found"]:
            yield f"  byte {finding['offset']}: {finding['fault']}"


def scrubbed(guest: Mapping[str, Any] | None, volume: str, show: Progress) -> None:
    """Show how far the scrub of a volume is, from a guest's statistics."""
    for each in guest["volumes"] if guest else ():
        if each["name"] == volume and each["scrub_fraction"] is not None:
            show(int(SCRUB_STEPS * each["scrub_fraction"]), SCRUB_STEPS)


def host_lines(guest: Mapping[str, Any], name: str) -> Iterator[str]:
    """All that one host says of its guest."""
    yield "in sync" if guest["in_sync"] else "NOT in sync"
    grant = guest.get("grant")
    if grant is not None:
        place = {"here": "this host", "peer": "the other host"}
        runs_here = guest["role"] == "active" and not guest["paused"]
        owner = "runs here" if runs_here else f"belongs to {place[grant['owner']]}"
        in_sync = [place[each] for each in grant["in_sync"]]
        yield from agreed_lines(
            {**grant, "in_sync": in_sync, "survives": guest.get("survives")}, guest["name"], owner
        )
    yield f"host {name}: {guest['role']}, {'peer connected' if guest['connected'] else 'peer away'}"
    yield from guest_lines(guest)


def agreed_lines(guest: Mapping[str, Any], name: str, owner: str) -> Iterator[str]:
    """Who owns a guest, and what would survive now; nothing where that is not agreed on."""
    if "epoch" not in guest:
        return
    alone = ", decides alone" if guest["sole"] else ""
    in_sync = " and ".join(guest["in_sync"])
    yield f"guest {name}: {owner}{alone}; in sync: {in_sync}; grant {guest['term']}.{guest['epoch']}"
    survives = guest.get("survives")
    if survives is None:
        return
    if survives["redundant"]:
        yield "  any single failure is survived with nothing lost"
        yield from _second_lines(survives)
        return
    single = survives["single"]
    stops = [failure for failure, each in single.items() if each["fate"] == "stops"]
    loses = [failure for failure, each in single.items() if each["lost_bytes"]]
    if stops:
        yield f"  stops if one of these is lost: {', '.join(stops)}"
    if loses:
        most = show_bytes(max(each["lost_bytes"] for each in single.values()))
        yield f"  loses up to {most} with one of these: {', '.join(loses)}"


def _second_lines(survives: Mapping[str, Any]) -> Iterator[str]:
    """Which second failures are too many, if anything is said of them."""
    safe = {tuple(pair) for pair in survives.get("safe_pairs", ())}
    failures = survives.get("single", ()) if safe else ()
    firsts: dict[tuple[str, ...], list[str]] = {}
    for first in failures:
        fatal = tuple(second for second in failures if second != first and (first, second) not in safe)
        firsts.setdefault(fatal, []).append(first)
    for fatal, after in firsts.items():
        if fatal:
            yield f"  a second one is not: {_or(fatal)} after {_or(after)}"


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def guest_lines(guest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong, if anything, then a line for each volume of a guest's statistics."""
    if guest["refusal"]:
        yield f"  refused: {guest['refusal']}"
    grant = guest.get("grant")
    if grant is not None and grant["waits"]:
        yield f"  owns the guest and DOES NOT RUN it: {grant['waits']}"
    if grant is not None and grant.get("forgotten"):
        yield "  NOBODY DECIDES any more: too many memories were lost; a person does (override)"
    elif "grant" in guest and grant is None:
        yield "  has not been told who owns the guest: if nobody knows, a person says so (override)"
    timing = guest.get("timing")
    if timing is not None and timing["verdict"] != "ok":
        kept = "NOT KEPT" if timing["verdict"] == "broken" else "hardly kept"
        yield f"  failover time of {timing['failover_s']:g} s {kept}: {timing['reason']}"
    fence = guest.get("fence")
    if fence is not None and fence["state"] in {"unready", "failed"}:
        yield f"  FENCING {fence['state']}: {fence['reason']}"
    for volume in guest["volumes"]:
        yield "  ".join(_parts(volume))


def _parts(volume: Mapping[str, Any]) -> Iterator[str]:
    size = "unknown" if volume["size_bytes"] is None else show_bytes(volume["size_bytes"])
    yield f"  {volume['name']:<12} {size:>9}  {volume['state']:<11}"
    if volume["resync_fraction"] is not None:
        yield f"{100 * volume['resync_fraction']:.1f} %"
        yield f"{show_bytes(volume['resync_bytes_per_s'])}/s"
        if volume["resync_remaining_s"] is not None:
            yield f"{volume['resync_remaining_s']:.0f} s left"
    if volume.get("scrub_fraction") is not None:
        yield f"scrub {100 * volume['scrub_fraction']:.1f} %"
    yield f"{volume['dirty_blocks']} dirty blocks, generation {volume['generation'] or 'none'}"
    if volume["failed"]:
        yield f"FAILED: {volume['failed']}"
