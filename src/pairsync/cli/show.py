"""What a host says of itself, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .values import show_bytes

__all__ = ["grown_line", "guest_lines"]


def grown_line(answer: Mapping[str, Any]) -> str:
    """What became of a volume that was to grow."""
    before, after = show_bytes(answer["before_bytes"]), show_bytes(answer["size_bytes"])
    return f"{answer['volume']}: {after}" + (f", {before} before" if before != after else "")


def guest_lines(guest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong, if anything, then a line for each volume of a guest's statistics."""
    if guest["refusal"]:
        yield f"  refused: {guest['refusal']}"
    timing = guest.get("timing")
    if timing is not None and timing["verdict"] != "ok":
        kept = "NOT KEPT" if timing["verdict"] == "broken" else "hardly kept"
        yield f"  failover time of {timing['failover_s']:g} s {kept}: {timing['reason']}"
    for volume in guest["volumes"]:
        yield "  ".join(_parts(volume))


def _parts(volume: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {volume['name']:<12} {show_bytes(volume['size_bytes']):>9}  {volume['state']:<11}"
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
