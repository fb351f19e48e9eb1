"""A host gives way to the other one's truth, by a person's decision; no machine calls this.

The host is down.  The order, each step durable before the next, all of it repeatable after a crash:

1. whatever makes this host an owner is forgotten (``forget``: its memory as a voter);
2. of each volume: where its dirty map does not reach back far enough, every block is marked;
3. its superblock goes back to what both hosts lived through (`core.truths`).

Until 3 the replicas are refused as before, and nothing of a volume's data is touched at all: what is
overwritten, is overwritten by the ordinary resync, which keeps it first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pairsync.core.assembly import state_of
from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Condition, Introduce, Role, VolumeState
from pairsync.core.setup import VolumeSetup
from pairsync.core.superblock import Superblock
from pairsync.core.truths import Concession, concession, concession_since
from pairsync.core.units import block_count_of
from pairsync.errors import ArbitrationError, ConfigError, MismatchError
from pairsync.storage.digests import digests_path, given_milestone
from pairsync.storage.metadata import MetadataStore, OpenedMetadata, metadata_path, open_metadata
from pairsync.storage.overlay import overlays_beside
from pairsync.storage.overlayfile import OverlayState
from pairsync.storage.superblock import check_identity

from .config import VolumeConfig

__all__ = ["Given", "concede", "concede_replicas", "introduction_of", "look_at_concession"]

PAGES_AT_ONCE = 256
"""Pages of the bitmap that are written in one go: 1 MiB."""


@dataclass(frozen=True, slots=True)
class Given:
    """What giving way means for one volume."""

    volume: str
    stays: bool
    """Nothing stands between the two replicas; it stays as it is."""
    common: str | None
    """The generation that it goes back to; None: it becomes the target of a full resync."""
    given_up: tuple[str, ...]
    """Generations that it does not claim any more, the newest first."""
    blocks: int
    """Blocks that count as written on its own: what a resync overwrites of them is kept."""
    everything: bool
    """That is all of them, for it is not known which ones were."""
    room_bytes: int
    """What all overlays of the volume may take."""
    term: int
    """The highest term of this replica: the owner's must not be lower."""


class _Planned:
    """One volume, open, and what becomes of it."""

    def __init__(self, opened: OpenedMetadata, dirty_blocks: int, room_bytes: int) -> None:
        self.store = opened.store
        self.dirty_blocks = dirty_blocks
        self.room_bytes = room_bytes
        self.made: Concession | None = None

    def describe(self) -> Given:
        block, made = self.store.superblock, self.made
        everything = made is not None and made.everything
        return Given(
            volume=block.name,
            stays=made is None,
            common=None if made is None or made.common is None else made.common.describe(),
            given_up=() if made is None else tuple(each.describe() for each in made.given_up),
            blocks=block_count_of(block.size_bytes) if everything else self.dirty_blocks,
            everything=everything,
            room_bytes=self.room_bytes,
            term=block.term,
        )


def look_at_concession(
    volumes: Sequence[VolumeConfig],
    pair_id: bytes,
    *,
    theirs: Introduce | None = None,
    common: Mapping[str, str] | None = None,
) -> list[Given]:
    """What `concede_replicas` would do; nothing is changed.  Errors as there."""
    with ExitStack() as stack:
        return [each.describe() for each in _plan(volumes, pair_id, theirs, common or {}, stack)]


def concede_replicas(
    volumes: Sequence[VolumeConfig],
    pair_id: bytes,
    *,
    theirs: Introduce | None = None,
    common: Mapping[str, str] | None = None,
    forget: Callable[[], None],
) -> list[Given]:
    """Have the replicas of this host, which is down, give way; durable on return.

    ``theirs`` is what the other host says of its replicas; ``common`` names, by volume, the newest
    generation that both lived through, where that is not known.  ``forget`` is called first, when all can be
    done.  Raises, with nothing changed: `BusyError` where the host runs, `MismatchError` for another
    volume's or pair's replica, `ArbitrationError` where there is nothing to give way to, or a way back that
    must be taken first, `ConfigError` where the common generation is not known.  `BackendError`: repeat it.
    """
    with ExitStack() as stack:
        planned = _plan(volumes, pair_id, theirs, common or {}, stack)
        told = [each.describe() for each in planned]
        forget()
        for each in planned:
            if each.made is not None:
                concede(each.store, each.made)
    return told


def concede(store: MetadataStore, made: Concession) -> None:
    """Steps 2 and 3 of one volume."""
    if made.everything:
        count = block_count_of(made.after.size_bytes)
        every = DirtyMap(count)
        every.mark(0, count)
        numbers = sorted(every.page_numbers())
        for at in range(0, len(numbers), PAGES_AT_ONCE):
            store.write_bitmap(
                {number: every.page_bytes(number) for number in numbers[at : at + PAGES_AT_ONCE]}
            )
    store.write_superblock(made.after)


def introduction_of(volumes: Sequence[VolumeConfig], pair_id: bytes, guest: str) -> Introduce:
    """What a host that is down would say of its replicas; raises as opening them does."""
    states: list[VolumeState] = []
    term = 0
    for volume in volumes:
        opened = _open(volume, pair_id)
        try:
            block, blocks, given = opened.superblock, opened.dirty_map().blocks, _given(volume)
            setup = VolumeSetup(block, blocks, volume.options, opened.generation_next, given=given)
            states.append(state_of(block, blocks, volume.options, reached=setup.milestone, given=given))
            term = max(term, block.term)
        finally:
            opened.store.close()
    return Introduce(pair_id, guest, Role.STANDBY, term, tuple(states))


def _open(volume: VolumeConfig, pair_id: bytes) -> OpenedMetadata:
    opened = open_metadata(_metadata_of(volume))
    try:
        check_identity(opened.superblock, pair_id=pair_id)
        if opened.superblock.name != volume.name:
            raise MismatchError(  # noqa: TRY301
                f"{os.fspath(volume.path)} is volume {opened.superblock.name!r}, not {volume.name!r}"
            )
    except BaseException:
        opened.store.close()
        raise
    return opened


def _metadata_of(volume: VolumeConfig) -> str:
    return os.fspath(volume.metadata or metadata_path(volume.path))


def _plan(
    volumes: Sequence[VolumeConfig],
    pair_id: bytes,
    theirs: Introduce | None,
    common: Mapping[str, str],
    stack: ExitStack,
) -> list[_Planned]:
    """All volumes open, and what becomes of each; nothing is changed."""
    if theirs is not None and theirs.pair_id != pair_id:
        raise MismatchError("the other host belongs to another pair; nothing was changed")
    states = {} if theirs is None else {each.name: each for each in theirs.volumes}
    planned: list[_Planned] = []
    for volume in volumes:
        opened = _open(volume, pair_id)
        stack.callback(opened.store.close)
        block = opened.superblock
        overlays = overlays_beside(
            _metadata_of(volume), block.size_bytes, bytes_max=volume.options.overlay_bytes
        )
        each = _Planned(opened, opened.dirty_map().blocks.count, overlays.bytes_max)
        each.made = _concession(block, states.get(volume.name), common.get(volume.name), _given(volume))
        way_back = any(info.state is OverlayState.UNDO and info.whole for info in overlays.list())
        if each.made is not None and block.condition is Condition.SYNCING and way_back:
            raise ArbitrationError(
                f"volume {volume.name}: was half overwritten by a resync, and what was there is kept: "
                "put it back first (pairsync host promote); nothing was changed"
            )
        planned.append(each)
    return planned


def _given(volume: VolumeConfig) -> int:
    """The milestone that this host was given last."""
    if not volume.options.digests:
        return 0
    return given_milestone(digests_path(_metadata_of(volume)))


def _concession(
    block: Superblock, theirs: VolumeState | None, common: str | None, given: int
) -> Concession | None:
    if theirs is not None:
        return concession(block, theirs, given)
    if common is None:
        raise ConfigError(
            f"volume {block.name}: the newest generation that both hosts lived through is not known: "
            f"give the other host's file (--peer-file), or name it (--common {block.name}=GENERATION); "
            "nothing was changed"
        )
    return concession_since(block, common)
