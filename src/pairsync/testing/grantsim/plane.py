"""One life of the data plane of a host: a `Session` in one role, and the disks that it works on (`medium`).

A life ends with its process, when the guest changes its role, or when a standby's disks are opened anew; the
next one finds what lies on the disks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pairsync.core.claims import Claim, obstacle
from pairsync.core.effects import (
    Apply,
    AskAlone,
    Complete,
    DiskFailed,
    DropSession,
    Emit,
    Examine,
    Flush,
    Journal,
    MapAllocation,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.messages import Role
from pairsync.core.session import Session
from pairsync.core.setup import VolumeSetup

from .medium import GuestRead, Medium, VolumeDisk

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["Plane"]


class Plane:
    """See the module."""

    def __init__(
        self,
        world: GrantWorld,
        host: GrantHost,
        media: Sequence[Medium],
        role: Role,
        term: int,
        *,
        ill: str = "",
        before: Plane | None = None,
    ) -> None:
        """``ill``: a standby whose disks are still to be opened; ``before``: whose jobs may hang in them."""
        self.host = host
        self.role = role
        self.ended = False
        self.gone = False  # with its process: nothing that was asked for happens any more
        self.paused = False
        """The guest is halted: nothing is served."""
        self.deaf = bool(ill)
        """What the link brings is not heard, until its session is over."""
        self.leaving = ""
        """Why the guest leaves this host: nothing is sent any more (`guest.handover`)."""
        self.ill = ill
        """Why a standby takes no part: its disks have to be opened anew (`guest.reopen`)."""
        self.before = before
        self.closing = 0  # requests of `finish` that have not ended
        self.close_failed = False  # one has, with an error
        self._world = world
        self._random = world.random
        on = self._on_volume
        self._perform: dict[type[Any], Callable[[Any], None]] = {
            Apply: lambda job: on(job).push(job),
            Read: lambda job: on(job).push(job),
            Examine: lambda job: on(job).push(job),
            MapAllocation: lambda job: on(job).push(job),
            Flush: lambda effect: on(effect).flush(effect),
            Journal: lambda job: on(job).record(job),
            SavePages: lambda job: on(job).record(job),
            Persist: lambda job: on(job).record(job),
            Send: self._on_send,
            Complete: self._on_complete,
            DropSession: self._on_drop,
            Emit: lambda effect: host.emitted(effect.event),
            AskAlone: lambda _: host.ask_alone(),
            DiskFailed: lambda effect: host.disk_failed(effect.reason),
        }
        setups: list[VolumeSetup] = []
        self.disks: list[VolumeDisk] = []
        self._digests_true = role is Role.ACTIVE or host.digests_settled
        if not ill:
            for index, medium in enumerate(media):
                metadata = medium.stores.metadata
                self.disks.append(VolumeDisk(world, self, medium, index, settled=host.digests_settled))
                options = world.profile.options[index]
                found = (metadata.superblock, metadata.recovered(), options, metadata.first_generation)
                setups.append(VolumeSetup(*found, given=medium.stores.digests.given))
            host.digests_settled = role is Role.ACTIVE
        self.session = Session(
            guest="g",
            pair_id=media[0].stores.metadata.superblock.pair_id,
            role=role,
            term=term,
            boot_id="boot",
            volumes=setups,
            draw_tag=lambda: self._random.getrandbits(64),
            arbitrated=True,
        )

    def _on_volume(self, job: Any) -> VolumeDisk:
        volume: int = job.volume
        return self.disks[volume]

    # ------------------------------------------------------------------ questions

    @property
    def serves(self) -> bool:
        """Whether the guest runs on it."""
        return self.role is Role.ACTIVE and not self.paused and not self.ended

    def could_serve(self, claim: Claim) -> bool:
        """As `guest.roles.obstacle`."""
        return not (self.ill or obstacle(self.session, claim, halted=self.paused))

    @property
    def idle(self) -> bool:
        """Whether no job runs, of this life or of the one before that left its jobs behind."""
        if self.before is not None and not self.before.idle:
            return False
        return all(disk.idle for disk in self.disks)

    def own_fault(self) -> str:
        """As in `guest.roles`: what is wrong with this host's disk, where a halt in order came to nothing."""
        failed = next((source.failed for source in self.session.sources if source.failed), "")
        return failed or ("" if self.idle else "its disk is too slow to stop in order")

    def ailment(self, now_ns: int) -> str:
        """As `guest.watch`: what is wrong with a disk that hangs, or that nobody has asked for a while."""
        for disk in self.disks:
            if disk.overdue(now_ns):
                return "a disk hangs"
            if disk.probe():
                return "a disk says that it does not work"
        return ""

    # ------------------------------------------------------------------ life

    def crash(self, *, power: bool) -> None:
        """The process dies in the midst of whatever was being done, or the power goes."""
        self.ended = self.gone = True
        for disk in (*(self.before.disks if self.before is not None else ()), *self.disks):
            disk.crash(power=power)
        if self.before is not None:
            self.before.gone = True

    def end_in_order(self) -> None:
        """Nothing runs any more, and the disks are given up."""
        self.ended = True
        for disk in self.disks:
            stores = disk.medium.stores
            if disk.medium.sick:
                stores.digests.crashed(self._random)
            else:
                stores.digests.saved(stores.digests.saving())
        self.host.digests_settled = self._digests_true and not any(disk.medium.sick for disk in self.disks)

    def perform(self) -> None:
        """Do, or begin, what the session wants done."""
        while not self.ended and (effects := self.session.take()):
            for effect in effects:
                self._perform[type(effect)](effect)

    def halt(self) -> None:
        """As the second half of `guest.roles.halt`: what was asked for ends with EIO."""
        for disk in self.disks:
            disk.give_up_reads()
        self.session.abandon("the guest does not run here any more")
        self.perform()

    def finish(self) -> None:
        """As `guest.roles.finish`: `closing` falls to 0."""
        self.closing = len(self.session.sources)
        for source in self.session.sources:
            source.close("close", self.host.now_ns)
        self.perform()

    def read(self, volume: int, read: GuestRead) -> None:
        """The guest reads."""
        self.disks[volume].push(read)

    # ------------------------------------------------------------------ the rest

    def _on_send(self, effect: Send) -> None:
        if not self.leaving:
            self._world.network.link.send(self.host.index, effect.messages)

    def _on_complete(self, effect: Complete) -> None:
        if effect.ticket == "close":
            self.closing -= 1
            self.close_failed = self.close_failed or any(effect.errnos or ())
        else:
            self._world.guest.complete(self.host, effect.ticket, effect.errnos)

    def _on_drop(self, effect: DropSession) -> None:
        if self.leaving:
            return
        self._world.trace.note(self.host.name, "drop-session", 0, effect.reason)
        if effect.refused:
            self.session.dropped(self.host.now_ns)
        self._world.network.link.drop(self.host.index, effect.reason)
