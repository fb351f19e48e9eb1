"""Effects and messages as short words, for the trace: only what the seed decides, never payload."""

from __future__ import annotations

import errno

from pairsync.core.effects import (
    Apply,
    AskAlone,
    Complete,
    DiskFailed,
    DropSession,
    Effect,
    Emit,
    Journal,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.messages import Applied, Barrier, BarrierDone, Message, Serving, Write, WriteOp

__all__ = ["show_effect", "show_message", "show_op"]

SHOWN_MAX = 6
"""Items of a list that are shown; the digest has their count too."""


def show_op(op: WriteOp) -> str:
    """Kind, offset, length, and ! for FUA."""
    return f"{op.kind.name.lower()}@{op.offset}+{op.length}{'!' if op.fua else ''}"


def _several(items: list[str]) -> str:
    more = f" ({len(items)} in all)" if len(items) > SHOWN_MAX else ""
    return " ".join(items[:SHOWN_MAX]) + more


def show_message(message: Message) -> str:
    """Its type, and its number if it has one."""
    name = type(message).__name__
    if isinstance(message, Write):
        return f"{name}:{message.volume}:{message.number}{'r' if message.resync else ''}"
    if isinstance(message, Applied):
        return f"{name}:{message.volume}:{message.number}"
    if isinstance(message, (Barrier, BarrierDone)):
        return f"{name}:{message.volume}:{message.barrier}"
    if isinstance(message, Serving):
        return f"{name}:{message.term}:{'yes' if message.serves else 'no'}"
    return name


def show_effect(effect: Effect) -> str:
    """What it is about."""
    if isinstance(effect, Send):
        return _several([show_message(message) for message in effect.messages])
    if isinstance(effect, Apply):
        return f"{effect.volume} " + _several([show_op(op) for op in effect.ops])
    if isinstance(effect, Journal):
        extents = [f"{start}..{stop}" for start, stop in effect.extents]
        return f"{effect.volume} generation {effect.generation}: {_several(extents)}"
    if isinstance(effect, Read):
        return f"{effect.volume} " + _several([extent.describe() for extent in effect.extents])
    if isinstance(effect, SavePages):
        return f"{effect.volume} pages {sorted(effect.pages)} release {effect.release}"
    if isinstance(effect, Persist):
        block = effect.superblock
        newest = block.lineage[0].describe() if block.lineage else "-"
        flags = f"{' peer-in-sync' if block.peer_in_sync else ''}{' clean' if block.clean else ''}"
        return f"{effect.volume} {block.condition.name} {newest} term {block.term}{flags}"
    if isinstance(effect, Complete):
        return "" if effect.errnos is None else _several([errno.errorcode.get(e, "0") for e in effect.errnos])
    if isinstance(effect, DropSession | DiskFailed):
        return effect.reason
    if isinstance(effect, AskAlone):
        return ""
    if isinstance(effect, Emit):
        return effect.event.kind
    return str(effect.volume)
