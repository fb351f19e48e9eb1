"""Messages and effects of the session machine as lines for people: of transcripts and traces."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import (
    Apply,
    AskAlone,
    Complete,
    DiskFailed,
    DropPoints,
    DropSession,
    Effect,
    Emit,
    Examine,
    Extend,
    Flush,
    Journal,
    MakePoint,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.messages import (
    Adopt,
    Adopted,
    Applied,
    Barrier,
    BarrierDone,
    Begin,
    Failed,
    Fetch,
    Generation,
    Grow,
    Grown,
    Introduce,
    KeepOnly,
    Leave,
    Marked,
    Message,
    OpKind,
    Prove,
    Relay,
    Relayed,
    RelayFlush,
    RelayRead,
    Remember,
    Remembered,
    Serving,
    Unfetched,
    Write,
    WriteOp,
)
from pairsync.core.stream import Renew
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, Extent

__all__ = ["describe_effect", "describe_message", "describe_superblock", "error_name"]


def _generation(generation: Generation | None) -> str:
    return "-" if generation is None else generation.describe()


def _range(op: WriteOp) -> str:
    start, stop = op.offset, op.offset + op.length
    if start % BLOCK_BYTES or stop % BLOCK_BYTES or start == stop:
        return f"@{start}+{op.length}"
    return Extent(start // BLOCK_BYTES, stop // BLOCK_BYTES).describe()


def _ops(ops: Sequence[WriteOp]) -> str:
    names = {OpKind.DATA: "data", OpKind.ZERO: "zero", OpKind.TRIM: "trim", OpKind.ZERO_ALLOCATE: "keep"}
    return ", ".join(f"{names[op.kind]} {_range(op)}{' fua' if op.fua else ''}" for op in ops)


def describe_superblock(block: Superblock) -> str:
    """One line."""
    parts = [f"term {block.term}", block.condition.name.lower()]
    parts.append("<".join(g.describe() for g in block.lineage) or "-")
    if block.sync_target is not None:
        parts.append(f"towards {block.sync_target.describe()}")
    parts.append(f"map since {_generation(block.map_base)}")
    if block.peer_in_sync:
        parts.append("peer in sync")
    if block.clean:
        parts.append("clean")
    return ", ".join(parts)


def _introduction(message: Introduce) -> str:
    volumes = "; ".join(
        f"{v.name} {v.condition.name.lower()} {'<'.join(g.describe() for g in v.lineage) or '-'}"
        f"{'' if v.sync_target is None else f' towards {v.sync_target.describe()}'}"
        f" map since {_generation(v.map_base)} dirty {v.dirty_blocks}"
        for v in message.volumes
    )
    return f"Introduce {message.role.name.lower()} term {message.term}: {volumes}"


def _generations(message: Adopt | Adopted) -> str:
    lineage = message.lineage if isinstance(message, Adopt) else (message.generation,)
    return "<".join(generation.describe() for generation in lineage)


def _outcome(message: Grow | Grown) -> str:
    return f": {error_name(message.errno)}" if isinstance(message, Grown) else ""


def describe_message(message: Message) -> str:
    """One line for people: the kind of message and what matters of it."""
    name = type(message).__name__
    volume = getattr(message, "volume", 0)
    if volume:
        name = f"{name} volume {volume}"
    if isinstance(message, Serving | Relay | RelayRead | RelayFlush | Relayed):
        return _describe_relay(name, message)
    return _describe_replication(name, message)


def _describe_replication(name: str, message: Message) -> str:
    match message:
        case Introduce():
            return _introduction(message)
        case Begin(plan=plan):
            return f"{name} {plan.mode.name.lower()} ({plan.rule}) to {plan.target.describe()}"
        case Write():
            return f"{name} {message.number}{' resync' if message.resync else ''}: {_ops(message.ops)}"
        case Applied(number=number) | Barrier(barrier=number) | BarrierDone(barrier=number):
            return f"{name} {number}"
        case Marked(extents=extents):
            return f"{name} {_extents(extents)}"
        case Adopt() | Adopted():
            return f"{name} {_generations(message)}"
        case Fetch(number=number, extents=extents):
            return f"{name} {number}: {_extents(extents)}"
        case Unfetched(number=number, errno=error):
            return f"{name} {number}: {error_name(error)}"
        case Prove(level=level, first=first, stop=stop):
            return f"{name} level {level}: {first}..{stop}"
        case Grow() | Grown():
            return f"{name} to {message.size_bytes} bytes{_outcome(message)}"
        case Failed(reason=reason) | Leave(reason=reason) | Renew(reason=reason):
            return f"{name}: {reason}"
        case Remember() | Remembered() | KeepOnly():
            return f"{name} {_of_points(message)}"
        case _:
            return name


def _describe_relay(name: str, message: Serving | Relay | RelayRead | RelayFlush | Relayed) -> str:
    match message:
        case Relay(number=number, ops=ops):
            return f"{name} {number}: {_ops(ops)}"
        case RelayRead(number=number, offset=offset, length=length):
            return f"{name} {number}: @{offset}+{length}"
        case RelayFlush(number=number):
            return f"{name} {number}"
        case Relayed(number=number, errnos=errnos):
            return f"{name} {number}: {' '.join(map(error_name, errnos)) or 'ok'}"
        case Serving(term=term, serves=serves):
            return f"{name} term {term}: {'yes' if serves else 'no'}"


def describe_effect(effect: Effect) -> list[str]:
    """What a session wants, one line each."""
    match effect:
        case Send():
            return [f"-> {describe_message(message)}" for message in effect.messages]
        case Emit():
            return [f"! {effect.event.describe()}"]
        case Complete():
            return [f"done {effect.ticket}: {_result(effect.errnos)}"]
        case AskAlone():
            return ["ask whether to go on alone"]
        case DiskFailed():
            return [f"the disk failed: {effect.reason}"]
        case DropSession():
            return [f"drop the session: {effect.reason}"]
        case _:
            return [_describe_job(effect, f" volume {effect.volume}" if effect.volume else "")]


def _describe_job(effect: Effect, where: str) -> str:
    """What is to be done with a disk."""
    match effect:
        case Journal():
            extents = " ".join(extent.describe() for extent in effect.extents)
            return f"journal{where} generation {effect.generation}: {extents}"
        case Apply():
            return f"apply{where} {_ops(effect.ops)}"
        case Read():
            return f"read{where} {_extents(effect.extents)}"
        case SavePages():
            pages = [f"page {number} {_page(content)}" for number, content in effect.pages.items()]
            pages += [f"release segment {segment}" for segment in effect.release]
            return f"save{where} {', '.join(pages) or 'nothing'}"
        case Persist():
            return f"persist{where} {describe_superblock(effect.superblock)}"
        case Examine():
            return f"digests{where} level {effect.level}: {effect.first}..{effect.stop}"
        case Extend():
            return f"room{where} for {effect.size_bytes} bytes"
        case Flush():
            return f"flush{where}"
        case MakePoint() | DropPoints():
            return f"points{where}: {_of_points(effect)}"
        case _:
            return f"find what is allocated{where}"


def _of_points(said: Remember | Remembered | KeepOnly | MakePoint | DropPoints) -> str:
    match said:
        case Remember(mark=mark) | MakePoint(mark=mark):
            return mark.name
        case Remembered(errno=error):
            return error_name(error)
        case KeepOnly(tags=tags) | DropPoints(keep=tags):
            return f"none but {len(tags)}"


def _result(errnos: Sequence[int] | None) -> str:
    return "ok" if errnos is None else " ".join(map(error_name, errnos))


def _page(content: bytes) -> str:
    shown = DirtyMap(8 * len(content))
    shown.load_page(0, content)
    return shown.describe()


def _extents(extents: Sequence[tuple[int, int]]) -> str:
    return " ".join(Extent(*extent).describe() for extent in extents)


def error_name(number: int) -> str:
    """An errno as people know it; ``ok`` for 0."""
    return errno.errorcode[number] if number else "ok"
