"""How the machines of one volume are put together, and what they say of it when a session begins.

The active host has a `VolumeSource`, the standby a `VolumeTarget`; both begin with the same `VolumeSetup`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .copier import Copier
from .dirty import DirtyMap
from .dirtyview import DirtyView
from .effects import Effect
from .fetcher import Fetcher
from .growth import Growth
from .intake import Intake
from .limits import VolumeOptions
from .messages import VolumeState
from .permit import Permit
from .points import TargetPoints
from .questions import Questions
from .resync import Pacer
from .scrubber import Scrubber
from .setup import VolumeSetup
from .source import VolumeSource
from .standing import Standing
from .superblock import Superblock
from .target import VolumeTarget
from .tracker import Tracker
from .units import block_count_of
from .window import Window

__all__ = ["make_source", "make_target", "source_state", "state_of", "target_state"]


def make_source(
    index: int,
    setup: VolumeSetup,
    window: Window,
    draw_tag: Callable[[], int],
    permit: Permit,
    out: list[Effect],
) -> VolumeSource:
    """The active host's machine of a volume, with all its parts."""
    block, options = setup.superblock, setup.options
    tracker = Tracker(
        block_count_of(block.size_bytes),
        setup.recovered,
        window_bytes=options.intent_window_bytes,
        first_generation=setup.first_generation,
    )
    standing = Standing(index, block, draw_tag, out, permit, setup.milestone)
    pacer = Pacer(options.latency_goal_ns, quota_bytes_max=options.copying_bytes)
    questions = Questions(index, standing, out)
    fetcher = Fetcher(index, standing, out)
    parts = (tracker, standing, questions, fetcher, pacer)
    copier = Copier(index, block.size_bytes, *parts, out, sync=options.level == "sync")
    scrubber = Scrubber(index, tracker, standing, questions, fetcher, pacer, copier.written, copier.want, out)
    growth = Growth(index, block.size_bytes, tracker, standing, copier, scrubber, out)
    source = VolumeSource(index, tracker, standing, copier, scrubber, growth, window, options, out)
    source.points.found(setup.points)
    return source


def make_target(index: int, setup: VolumeSetup, intake: Intake, out: list[Effect]) -> VolumeTarget:
    """The standby's."""
    points = TargetPoints(index, setup.points, out)
    return VolumeTarget(index, setup, intake, points, out)


def state_of(
    block: Superblock,
    dirty: DirtyMap | DirtyView,
    options: VolumeOptions,
    points: Iterable[int] = (),
    *,
    reached: int | None,
    given: int,
) -> VolumeState:
    """What a host says of its replica when it introduces itself."""
    return VolumeState(
        block.name,
        block.volume_id,
        block.size_bytes,
        block.condition,
        block.lineage,
        block.sync_target,
        block.map_base,
        dirty.count,
        options.digests,
        tuple(points),
        reached,
        given,
    )


def source_state(source: VolumeSource, given: int) -> VolumeState:
    """Likewise, of the active host's; ``given``: see `VolumeSetup`."""
    block, dirty = source.standing.superblock, source.tracker.dirty()
    reached = source.standing.given
    return state_of(block, dirty, source.options, source.points.tags, reached=reached, given=given)


def target_state(target: VolumeTarget) -> VolumeState:
    """Likewise, of the standby's."""
    block, dirty, tags = target.superblock, target.own_dirty, target.points.tags
    return state_of(block, dirty, target.options, tags, reached=target.reached, given=target.given)
