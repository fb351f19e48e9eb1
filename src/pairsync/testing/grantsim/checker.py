"""The safety rules, checked from outside after every step; names of rules as in the design.

* ``one-owner`` (rule 1): of one chain, one grant at each place, and one owner of a term.
* ``illegal-grant`` (rules 1, 3): what follows a grant is what may follow it.
* ``lost-write`` (rule 2): whoever the owner's grant calls in sync has what is acknowledged; who takes over
  has all of it.  Of a volume of level ``async``: what a new owner lacks was acknowledged last, within the
  bound on the lag.
* ``stale-read`` (rule 2): nothing older is read than what was acknowledged before it was asked for.
* ``not-linearizable``: what the guest was told, as registers.
* ``two-running`` (rule 10): the guest runs on one host at most, by true time.
* ``in-sync-claim`` (rules 3, 8): a replica that joins holds what was acknowledged; none that is in sync is
  found to be older than the other one, unless it was put back.
* ``dirty-superset`` (rules 7, 8): a proof finds a difference that no map held only where disks were swapped.
* ``term`` (rules 1, 6): terms on a disk only grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pairsync.core.arbitration import TwoTruths
from pairsync.core.claims import is_outdated, peer_is_newer
from pairsync.core.events import DifferenceEvent, Event, InSyncEvent, RefusedEvent, ResyncEvent
from pairsync.core.grants import Grant, objection
from pairsync.core.superblock import Superblock

from .entitled import may_be_decided

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["GrantChecker"]


class GrantChecker:
    """See the module."""

    def __init__(self, world: GrantWorld) -> None:
        self._world = world
        self._chain: dict[tuple[bytes, int, int], Grant] = {}
        self._owners: dict[tuple[bytes, int], object] = {}
        self._forced: set[bytes] = set()  # chains of overrides whose owner has not run yet
        self._newest: Grant | None = None
        self.forked = False
        """Two truths exist, by the word of a person."""
        self.refused: str | None = None  # the last rule by which a session was refused
        self._served_by: int | None = None
        self._served_in: dict[int, int] = {}  # by host: the last life of it that has served the guest
        self.replaced_ns = [-1, -1]  # when a host's disks were last
        # Grants that may have been decided by then: they speak of the disks before.
        self._of_disks_before: list[set[Grant]] = [set(), set()]
        # Hosts whose disks were put back to what they were, until they are in sync: whether that was noticed,
        # and recorded.
        self.rolled_back: dict[int, bool] = {}

    # ------------------------------------------------------------------ grants

    def begin(self, grant: Grant) -> None:
        """What was agreed before the seed begins."""
        self._newest = grant

    def in_force(self, host: GrantHost, grant: Grant) -> None:
        """It is decided, and durable there."""
        world = self._world
        world.trace.note(host.name, "in-force", grant.epoch, grant)
        known = self._chain.setdefault((grant.fork, *grant.order), grant)
        if known != grant:
            world.fail("one-owner", f"{grant.describe()} and {known.describe()}")
        owner = self._owners.setdefault((grant.fork, grant.term), grant.owner_id)
        if owner != grant.owner_id:
            world.fail("one-owner", f"term {grant.term} has two owners")
        before = self._chain.get((grant.fork, grant.term, grant.epoch - 1))
        if before is not None:
            wrong = objection(before, grant)
            if wrong is not None:
                world.fail("illegal-grant", f"{grant.describe()} after {before.describe()}: {wrong}")
        if grant.override:
            self._forced.add(grant.fork)
        before = self._newest
        if before is None or grant.order > before.order:
            self._newest = grant
            left_alone = before is not None and before.sole == host.voter and grant.owner != host.id
            if left_alone and host.plane is not None and peer_is_newer(host.plane.session):
                world.coverage.reach("rolled-back-given-up")
            if before is not None and before.fork == grant.fork and grant.in_sync - before.in_sync:
                self._joins(grant)

    @property
    def newest(self) -> Grant | None:
        """The newest grant that was in force on any host; where a person has spoken, of those still known."""
        if not self._world.overridden:
            return self._newest
        known = [host.base for host in self._world.hosts if host.base is not None]
        return max(known, key=lambda grant: grant.order, default=None)

    @property
    def served_last(self) -> GrantHost:
        """The host on which the guest has run last."""
        return self._world.hosts[self._served_by or 0]

    def died_while_it_gave_way(self, host: GrantHost, grant: Grant) -> bool:
        """Whether it has handed the guest over, and died before its disks had recorded the new term."""
        owned = self._owners.get((grant.fork, grant.term - 1)) == host.voter
        recorded = all(each.stores.metadata.superblock.term >= grant.term for each in host.media)
        return owned and not recorded and self._served_in.get(host.index) != host.life

    def _joins(self, grant: Grant) -> None:
        if not self._world.guest.is_truth(grant.fork):
            return
        for host in self._world.hosts:
            before = grant in self._of_disks_before[host.index]
            if host.id in grant.in_sync and host.up and not self._world.overridden and not before:
                self._owes(host, "in-sync-claim")

    def replaced(self, host: GrantHost) -> None:
        """A disk of that host is an empty one from now on."""
        self.replaced_ns[host.index] = self._world.clock.now
        self._of_disks_before[host.index] = may_be_decided(self._world)

    def _owes(self, host: GrantHost, rule: str) -> None:
        floors = self._world.guest.floors
        guest = self._world.guest
        for volume, medium in enumerate(host.media):
            first, content = guest.first_sector(volume), medium.stores.disk.content
            if self._world.profile.options[volume].level == "sync":
                wrong = floors.first_wrong(content, first, floors.owed[first : first + len(content)])
            else:
                wrong = guest.lags_wrongly(volume, content)
            if wrong is not None:
                self._world.fail(rule, f"host {host.name}, volume {volume}: {wrong}")

    def two_truths(self, host: GrantHost, effect: TwoTruths) -> None:
        """Two chains met; where neither is the newer one, they stay apart until a person speaks."""
        self._world.trace.note(host.name, "two-truths", 0, effect)
        if not self._world.overridden:
            self._world.fail("one-owner", f"{effect.ours.describe()} and {effect.theirs.describe()}")
        self.forked = self.forked or effect.ours.order == effect.theirs.order

    # ------------------------------------------------------------------ data

    def takes_over(self, host: GrantHost, term: int) -> None:
        """The guest begins to run there, from what lies on the disk."""
        world = self._world
        world.trace.note(host.name, "takes-over", term)
        self._served_in[host.index] = host.life
        if not host.serves:
            return  # its machine stood still until its lease had run out: nobody sees it
        if self._served_by is not None:
            world.coverage.reach("returned" if self._served_by == host.index else "took-over")
        moves = self._served_by != host.index
        self._served_by = host.index
        self.rolled_back.pop(1 - host.index, None)  # that one does not serve again before it is in sync
        grant = host.arbiter.grant if host.arbiter is not None else None
        if grant is not None and grant.fork in self._forced:
            self._forced.clear()
            world.guest.overruled(grant.fork, host.content())
        elif grant is not None and self._was_unseen(host, grant):
            world.coverage.reach("rolled-back-unseen")  # a person has to pick a side when they meet
            world.overridden = True
            world.guest.forgotten(grant.fork, host.content())
        elif world.guest.counts(host):
            if moves:
                world.guest.remembered()
            self._owes(host, "lost-write")
            if world.guest.lags and moves:
                world.guest.goes_on_from(host.content())

    def _was_unseen(self, host: GrantHost, grant: Grant) -> bool:
        """Whether its disks were put back, and it could not meet who would have told it."""
        if self.rolled_back.get(host.index, True):
            return False
        return len(grant.in_sync) == 1 or not self._world.could_meet(host)

    def not_opened(self, host: GrantHost, why: str) -> None:
        """The replica refuses to be served from: right only where a person has insisted."""
        if not self._world.overridden:
            self._world.fail("lost-write", f"host {host.name} owns the guest, and cannot serve: {why}")

    def written(self, host: GrantHost) -> None:
        """A write has ended well there."""
        plane, arbiter = host.plane, host.arbiter
        if plane is not None and arbiter is not None and is_outdated(arbiter, plane.session):
            self._world.fail("in-sync-claim", f"host {host.name} acknowledges, and {plane.session.outdated}")

    def acknowledged(
        self, host: GrantHost, volume: int, start: int, stop: int, asked_ns: int, *, durable: bool
    ) -> None:
        """The guest was told that a write of these sectors of a volume is there."""
        world = self._world
        grant = host.arbiter.grant if host.arbiter is not None else None
        if grant is None:
            world.fail("lost-write", f"host {host.name} acknowledges without a grant")
        floors = world.guest.floors
        lags = world.profile.options[volume].level != "sync"
        for each in world.hosts:
            if each.id not in grant.in_sync or self.replaced_ns[each.index] >= asked_ns:
                continue
            if lags and each is not host:
                continue
            disk = each.media[volume].stores.disk
            content = disk.durable if durable else disk.content
            first = world.guest.first_sector(volume)
            owed = floors.owed[first + start : first + stop]
            wrong = floors.first_wrong(content[start:stop], first + start, owed)
            if wrong is not None:
                world.fail("lost-write", f"acknowledged on {host.name}, on {each.name}: {wrong}")

    def event(self, host: GrantHost, event: Event) -> None:
        """A session emitted it."""
        world = self._world
        world.trace.note(host.name, "event", 0, event)
        if isinstance(event, DifferenceEvent) and max(self.replaced_ns) < 0:
            world.fail("dirty-superset", f"host {host.name}: {event.describe()}")
        elif isinstance(event, RefusedEvent):
            self.refused = event.rule
            world.coverage.reach(f"refused:{event.rule}")
        elif isinstance(event, ResyncEvent):
            world.coverage.reach(f"rule:{event.rule}")
        elif isinstance(event, InSyncEvent):
            self.refused = None
            self.rolled_back.clear()

    def persisted(self, host: GrantHost, before: Superblock, after: Superblock) -> None:
        """A superblock has become durable."""
        if after.term < before.term:
            self._world.fail("term", f"host {host.name}: from {before.term} to {after.term}")
        if after.outdated and not before.outdated:
            self._is_told(host)

    def _is_told(self, host: GrantHost) -> None:
        """It has recorded that the other host's replicas are newer."""
        world, newest = self._world, self.newest
        if host.index in self.rolled_back:
            if not self.rolled_back[host.index]:
                world.coverage.reach("rolled-back-told")
            self.rolled_back[host.index] = True
            return
        in_sync = newest is not None and host.id in newest.in_sync and not may_be_decided(world)
        if in_sync and not world.overridden:
            world.fail("in-sync-claim", f"host {host.name} is found to be outdated, by itself")

    # ------------------------------------------------------------------ after every step

    def step(self) -> None:
        """Nobody runs beside another."""
        world = self._world
        if not world.two_may_run and all(host.serves for host in world.hosts):
            world.fail("two-running", "the guest runs on both hosts")
