"""How the machines of one volume are put together from what is on its disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .copier import Copier
from .dirty import DirtyMap
from .dirtyview import DirtyView
from .effects import Effect
from .fetcher import Fetcher
from .growth import Growth
from .intake import Intake
from .limits import VolumeOptions
from .messages import PointMark, VolumeState
from .permit import Permit
from .points import TargetPoints
from .questions import Questions
from .resync import Pacer
from .scrubber import Scrubber
from .source import VolumeSource
from .standing import Standing
from .superblock import Superblock
from .target import VolumeTarget
from .tracker import Tracker
from .units import block_count_of
from .window import Window

__all__ = ["VolumeSetup", "make_source", "make_target", "state_of"]


class VolumeSetup:
    """What is known of a volume when its guest is opened."""

    __slots__ = ("first_generation", "options", "points", "recovered", "superblock")

    def __init__(
        self,
        superblock: Superblock,
        recovered: DirtyMap,
        options: VolumeOptions,
        first_generation: int = 1,
        points: Sequence[PointMark] = (),
    ) -> None:
        self.superblock = superblock
        self.recovered = recovered  # dirty map on disk, with the write-intent log unless closed in order
        self.options = options
        self.first_generation = first_generation  # of the write-intent log: above every recorded one
        self.points = tuple(points)


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
    standing = Standing(index, block, draw_tag, out, permit)
    pacer = Pacer(options.latency_goal_ns, quota_bytes_max=options.copying_bytes)
    questions = Questions(index, standing, out)
    fetcher = Fetcher(index, standing, out)
    copier = Copier(index, block.size_bytes, tracker, standing, questions, fetcher, pacer, out)
    scrubber = Scrubber(index, tracker, standing, questions, fetcher, pacer, copier.written, copier.want, out)
    growth = Growth(index, block.size_bytes, tracker, standing, copier, scrubber, out)
    source = VolumeSource(index, tracker, standing, copier, scrubber, growth, window, options, out)
    source.points.found(setup.points)
    return source


def make_target(index: int, setup: VolumeSetup, intake: Intake, out: list[Effect]) -> VolumeTarget:
    """The standby's."""
    points = TargetPoints(index, setup.points, out)
    return VolumeTarget(index, setup.superblock, setup.recovered, setup.options, intake, points, out)


def state_of(
    block: Superblock, dirty: DirtyMap | DirtyView, options: VolumeOptions, points: Iterable[int] = ()
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
    )
