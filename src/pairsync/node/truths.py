"""Two truths of one guest: what each host has that the other lacks, and which of them goes on.

A host that runs is asked (`truth_handlers`), the files of one that is down are opened here.  What a host
says of its replicas travels as on the link (`Introduce`), so that both are held against each other by the
same rules.  Giving way is ``guest.concede``'s; here it gets the host's memory as a voter, which goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from pairsync.core.acceptor import AcceptorState
from pairsync.core.grants import Grant
from pairsync.core.messages import Introduce, Role, VolumeState
from pairsync.core.truths import truth_of
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import ConfigError, InternalError
from pairsync.guest.concede import Given, concede_replicas, introduction_of, look_at_concession
from pairsync.guest.guest import Guest
from pairsync.io.keys import host_subject, open_identity
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.wire.arbitration import decode_host_memory
from pairsync.wire.codec import decode, encode

from .arbitrate import Ballots, create_memory
from .control import Answer, Handler
from .hostfile import HostFile

__all__ = [
    "Side",
    "concede_host",
    "describe_sides",
    "look_at_conceding",
    "side_from_answer",
    "stopped_side",
    "truth_handlers",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One host: what it says of its replicas, and what it knows of who owns the guest."""

    running: bool
    introduction: Introduce
    peer: Introduce | None
    """What the other host said of itself when it was heard last."""
    grant: Mapping[str, Any] | None


def truth_handlers(guest: Guest, votes: Ballots | None) -> dict[str, Handler]:
    """What the control socket of a host understands of it."""

    async def truths(_: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        met = guest.session.met
        return {
            "introduction": _encoded(guest.session.introduction()),
            "peer": None if met is None else _encoded(met),
            "grant": None if votes is None else votes.describe()["grant"],
        }

    return {"truths": truths}


def _encoded(introduction: Introduce) -> str:
    return b"".join(encode(introduction)).hex()


def _decoded(text: str) -> Introduce:
    message = decode(bytes.fromhex(text), b"")
    if not isinstance(message, Introduce):
        raise InternalError("a host introduced itself by another message")
    return message


def side_from_answer(answer: Mapping[str, Any]) -> Side:
    """A host that runs, from its answer to ``truths``."""
    peer = answer["peer"]
    return Side(
        running=True,
        introduction=_decoded(answer["introduction"]),
        peer=None if peer is None else _decoded(peer),
        grant=answer["grant"],
    )


def stopped_side(host: HostFile) -> Side:
    """A host that is down; `BusyError` if it runs, and what opening its files raises."""
    grant: dict[str, Any] | None = None
    memory = None if host.register is None else AcceptorFile.peek(host.register.memory)
    if memory is not None:
        base = decode_host_memory(memory).acceptor.base
        identity = open_identity(host.identity, host_subject(host.name))
        grant = None if base is None else _grant(base, identity.fingerprint)
    introduction = introduction_of(host.volumes, host.pair_id, host.guest)
    return Side(running=False, introduction=introduction, peer=None, grant=grant)


def _grant(grant: Grant, host: bytes) -> dict[str, Any]:
    def call(each: bytes) -> str:
        return "here" if each == host else "peer"

    return {
        "term": grant.term,
        "epoch": grant.epoch,
        "owner": call(grant.owner),
        "in_sync": sorted(map(call, grant.in_sync)),
        "sole": grant.sole is not None,
        "override": grant.override,
    }


# ---------------------------------------------------------------------- what each has


def describe_sides(host: HostFile, side: Side, theirs: Introduce | None) -> dict[str, Any]:
    """What this side has that the other's replicas, as ``theirs`` says, lack: JSON values."""
    others = {} if theirs is None else {each.name: each for each in theirs.volumes}
    paths = {volume.name: Path(volume.path) for volume in host.volumes}
    return {
        "running": side.running,
        "role": side.introduction.role.name.lower() if side.running else None,
        "grant": side.grant,
        "other_known": theirs is not None,
        "volumes": {
            each.name: _describe_volume(each, others.get(each.name), paths[each.name])
            for each in side.introduction.volumes
        },
    }


def _describe_volume(mine: VolumeState, theirs: VolumeState | None, path: Path) -> dict[str, Any]:
    foreign = theirs is not None and theirs.volume_id != mine.volume_id
    truth = truth_of(mine, None if foreign else theirs)
    return {
        "condition": mine.condition.name.lower(),
        "relation": "foreign" if foreign else None if truth.relation is None else truth.relation.value,
        "generation": mine.lineage[0].describe() if mine.lineage else None,
        "common": None if truth.common is None else truth.common.describe(),
        "own_generations": [each.describe() for each in truth.own],
        "own_blocks": truth.blocks,
        "own_bytes": None if truth.blocks is None else truth.blocks * BLOCK_BYTES,
        "last_written_s": int(path.stat().st_mtime) if path.is_file() else None,
    }


# ---------------------------------------------------------------------- giving way


def _check_role(host: HostFile) -> None:
    if host.register is None and host.role is Role.ACTIVE:
        raise ConfigError(
            f"host {host.name}: its file says that it is the active one: "
            'set role = "standby" first, so that it cannot go on alone; nothing was changed'
        )


def look_at_conceding(
    host: HostFile, theirs: Introduce | None, common: Mapping[str, str] | None = None
) -> list[Given]:
    """What `concede_host` would do; errors as `concede_replicas`."""
    _check_role(host)
    return look_at_concession(host.volumes, host.pair_id, theirs=theirs, common=common)


def concede_host(
    host: HostFile, theirs: Introduce | None, common: Mapping[str, str] | None = None
) -> tuple[list[Given], int]:
    """Have a host that is down give way to the other one; the owner's term must not be below the second.

    Its memory becomes that of a voter that has lived through nothing: it learns who owns the guest.  Errors
    as `concede_replicas`.
    """
    _check_role(host)
    term = 0
    memory: AcceptorFile | None = None
    if host.register is not None:
        memory = AcceptorFile.open_or_begin(host.register.memory, create_memory())
    try:
        if memory is not None:
            term = _highest_term(decode_host_memory(memory.state).acceptor)

        def forget() -> None:
            if memory is not None:
                memory.store(create_memory())

        given = concede_replicas(host.volumes, host.pair_id, theirs=theirs, common=common, forget=forget)
    finally:
        if memory is not None:
            memory.close()
    return given, max(term, *(each.term for each in given))


def _highest_term(state: AcceptorState) -> int:
    known = (state.base, state.accepted)
    return max((grant.term for grant in known if grant is not None), default=0)
