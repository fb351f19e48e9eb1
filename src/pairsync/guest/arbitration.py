"""A guest's half of the grant register: the trio shell around the pure `core.arbiter`.

::

    link votes ─┐                                    ┌─▶ memory (durable), votes, witness
    witness  ───┼─▶ Arbiter ──effects, in order──▶ act ─▶ lease (guard), permit (session)
    session  ───┘                                    └─▶ wish: own, stop or yield ──▶ the guest's role

Every input returns effects, which are performed at once and in their order; what rests on a write of this
host's memory the arbiter holds back until `persisted`.  Two things take their time beside that: questions to
a witness, in tasks of their own, and changes of the guest's role, which take as long as a disk does and are
made by one task that follows the latest wish.  The arbiter hears when nothing of the guest runs any more.

A memory that cannot be written and a role that cannot be taken end the guest, and with it the host process:
nothing is served by who cannot tell whether he may.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import trio

from pairsync.core.acceptor import HostMemory
from pairsync.core.arbiter import Arbiter
from pairsync.core.arbitration import (
    Discord,
    Effect,
    InForce,
    LeaseUntil,
    Own,
    PersistAcceptor,
    SendPeer,
    Stop,
    TwoTruths,
    WitnessGet,
    WitnessSwap,
    Yield,
)
from pairsync.core.claims import INSISTED, claim_of, is_outdated, peer_is_newer
from pairsync.core.events import DiscordEvent, GrantEvent, TwoTruthsEvent
from pairsync.core.grants import Grant, HostId
from pairsync.core.messages import Role
from pairsync.core.outlook import Outlook
from pairsync.core.timingjudge import Measure
from pairsync.core.units import NS_PER_S
from pairsync.core.wishes import Step, Wish, end_within_ns, halt_within_ns, has_handed_over, step_of
from pairsync.core.witness import WitnessKey
from pairsync.errors import (
    ArbitrationError,
    BackendError,
    ClosedError,
    ConfigError,
    InternalError,
    PeerError,
    ProtocolError,
)
from pairsync.io.witnessstore import WitnessStore, ask_witness
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.storage.lane import Lane, start_lane
from pairsync.wire.arbitration import decode_message, encode_host_memory, encode_message

from .guest import Guest
from .punctuality import Punctuality
from .roles import meet, obstacle
from .seam import Warden
from .standing import Standing, called, obstacle_of, outlook_of, standing_of

__all__ = ["Arbitration"]

_log = logging.getLogger("pairsync.arbitration")

LOOK_S: Final = 0.05
"""Between two looks whether the disks could serve the guest, and at deadlines that came nearer meanwhile."""

MOVE_LOOK_S: Final = 0.05
"""Between two looks at what has become of a move."""

WITNESS_S: Final = 15.0
"""A question to a witness is given up then; the arbiter asks again long before."""


class Arbitration:
    """See the module; `run` is its life.  All methods belong to the trio thread."""

    def __init__(
        self,
        guest: Guest,
        arbiter: Arbiter,
        memory: AcceptorFile,
        witnesses: Mapping[str, WitnessStore],
        key: WitnessKey,
        warden: Warden,
        *,
        host: HostId,
        now_ns: Callable[[], int],
    ) -> None:
        """``witnesses``: the stores behind the arbiter's names; ``now_ns``: its clock, CLOCK_BOOTTIME."""
        self.arbiter = arbiter
        self._guest = guest
        self._memory = memory
        self._witnesses = witnesses
        self._key = key
        self._warden = warden
        self._host = host
        self._now_ns = now_ns
        self._nursery: trio.Nursery | None = None  # while it runs; likewise the next
        self._lane: Lane | None = None
        self._wish: Wish | None = None  # the latest that was not taken up
        self._wished = trio.Event()
        self._ready = (False, False)  # and whether the peer is newer, as told last
        self._served = False  # as the guest was turned last by `_look`
        self._alone = False  # the permit that the session has
        self._until_ns: int | None = None  # of the lease, as told last
        self.punctuality = Punctuality(arbiter.timing, guest.emit, now_ns())
        self._changing = trio.Lock()  # held while the role changes
        self._ending = False  # no wish but to stop is followed any more
        self._truths: TwoTruthsEvent | None = None  # as told last

    # ------------------------------------------------------------------ life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the register until cancelled; `BackendError` where this host cannot go on."""
        link = self._guest.link
        if link is None:
            raise ConfigError(f"guest {self._guest.name}: without a link there is nobody to agree with")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._lane = await start_lane(nursery, "register", may_block=self._memory.may_block)
                self._guest.arbiter = self
                self._guest.leased = self._warden.lease_valid
                link.set_vote_handler(self._voted)
                self._act(self.arbiter.start(self._now_ns()))
                nursery.start_soon(self._follow)
                nursery.start_soon(self._watch)
                task_status.started()
        finally:
            self._nursery = self._lane = None

    async def end(self) -> None:
        """Halt the guest in order, for good; a change of the role that is under way is waited for."""
        self._ending = True
        async with self._changing:
            pass
        goes_on = self._guest.session.synchronous and self.arbiter.decider.peer_could_own
        within_s = end_within_ns(self.arbiter.timing, goes_on=goes_on) / NS_PER_S
        await self._guest.halt(in_order=True, within_s=within_s)

    async def _watch(self) -> None:
        """Deadlines, and whether the disks could serve the guest."""
        while True:
            self._look()
            self._act(self.arbiter.tick(self._now_ns()))
            next_ns = self.arbiter.next_deadline_ns()
            began_ns = self._now_ns()
            wait_s = LOOK_S if next_ns is None else min(max((next_ns - began_ns) / NS_PER_S, 0.0), LOOK_S)
            await trio.sleep(wait_s)
            self._measured(Measure.STALL, began_ns + int(wait_s * NS_PER_S))
            self._judge()

    def _measured(self, what: Measure, since_ns: int) -> None:
        now_ns = self._now_ns()
        self.punctuality.measured(what, now_ns - since_ns, now_ns)

    def _judge(self) -> None:
        """Whether this host keeps its times; see `guest.punctuality`."""
        now_ns, link = self._now_ns(), self._guest.link
        if self.punctuality.is_due(now_ns):
            peak_ns = None if link is None else link.take_rtt_peak_ns()
            self.punctuality.judge(now_ns, guard_ns=self._warden.take_lateness_ns(), round_trip_ns=peak_ns)

    def _look(self) -> None:
        ready = not obstacle_of(self.arbiter, self._guest)
        peer_newer = not ready and peer_is_newer(self._guest.session)
        if (ready, peer_newer) != self._ready:
            self._ready = ready, peer_newer
            self._act(self.arbiter.is_ready(ready, self._now_ns(), peer_newer=peer_newer))
        if self._guest.serves is not self._served:
            self._served = not self._served
            self._guest.turn()  # by a lease that has run out, or has come back
        if self._served:
            self._vouch()

    def _vouch(self) -> None:
        """Tell that the peer's replica is proven in sync, if it is and nobody knows."""
        if self._guest.in_sync and self.arbiter.wants_proof(self._guest.session.term):
            self._act(self.arbiter.peer_in(self._now_ns())[1])

    # ------------------------------------------------------------------ what the guest says (guest.seam)

    def ask_alone(self) -> None:
        """As `seam.Arbiter`."""
        if self.arbiter.peer_excluded:
            self._permit(alone=True)
        else:
            self._act(self.arbiter.peer_out(self._now_ns()))

    @property
    def patience_ns(self) -> int:
        """As `seam.Arbiter`."""
        return 2 * self.arbiter.timing.heartbeat_ns

    @property
    def alone(self) -> bool:
        """As `seam.Arbiter`."""
        return self.arbiter.peer_excluded

    @property
    def overtaken(self) -> bool:
        """Whether the guest is not to be served here after all, by the latest wish."""
        return isinstance(self._wish, Stop | Yield)

    def disk_failed(self) -> str:
        """As `seam.Arbiter`."""
        self._vouch()
        refusal, effects = self.arbiter.move(self._now_ns(), leaving=True)
        self._act(effects)
        return refusal

    # ------------------------------------------------------------------ what others say

    def _voted(self, content: bytes) -> None:
        try:
            message = decode_message(content)
        except ProtocolError as error:
            _log.warning("%s: a vote that is none: %s", self._guest.name, error)
            return
        self._act(self.arbiter.hears(message, self._now_ns()))

    def link_up(self) -> None:
        """The link has a session (called by the guest)."""
        self._act(self.arbiter.link_up(self._now_ns()))

    def peer_is_down(self) -> None:
        """It is proven that nothing of the guest runs on the peer (power fencing)."""
        self._act(self.arbiter.peer_is_down(self._now_ns()))

    # ------------------------------------------------------------------ what a person says

    async def move(self) -> None:
        """Have the peer own the guest; returns when it does.  `ArbitrationError` with the reason if not.

        All is flushed first, while the guest is served: it stands still for what is written meanwhile only.
        What is refused is tried again for `patience_ns`: how the peer is comes with its next answer.  A peer
        whose disk turns out to be ill gives the guest back, maybe before anybody has looked here.
        """
        for volume in self._guest.volumes.values() if self._guest.serves else ():
            await volume.flush()
        until_ns = self._now_ns() + self.patience_ns
        while True:
            before = self.arbiter.decider.base
            refusal, effects = self.arbiter.move(self._now_ns())
            self._act(effects)
            if not refusal:
                break
            if self._now_ns() > until_ns:
                raise ArbitrationError(f"guest {self._guest.name} does not move: {refusal}")
            await trio.sleep(LOOK_S)
        while True:
            grant = self.arbiter.grant
            if grant is not None and grant.owner != self._host:
                return
            decider = self.arbiter.decider
            if not decider.moving and decider.base == grant:  # else a newer one is about to be in force
                why = "the other host went silent, or too slow"
                if grant and before and grant.fork != before.fork:
                    why = "a person has said otherwise meanwhile"
                elif grant and before and grant.term > before.term:
                    why = "the other host has given it back"
                raise ArbitrationError(f"guest {self._guest.name} has not moved: {why}")
            await trio.sleep(MOVE_LOOK_S)

    def override(self, operator: str, fork: bytes, *, above: int = 0, insist: bool = False) -> None:
        """Make this host the owner by the word of ``operator``, whatever was agreed.

        Its term is higher than any known here, and than ``above``.  `ArbitrationError` if it cannot serve, or
        knows that the peer has what is newer, unless the operator, who knows it too, does ``insist``.
        """
        older = self._guest.session.outdated
        if older and not insist:
            raise ArbitrationError(
                f"guest {self._guest.name} would lack here what the other host has: {older}; nothing was "
                "changed; --insist does it all the same"
            )
        if why := obstacle(self._guest, INSISTED):
            raise ArbitrationError(f"guest {self._guest.name} cannot run here: {why}; nothing was changed")
        above = max(self._guest.session.term, above)
        self._act(self.arbiter.override(operator, fork, self._now_ns(), above))

    @property
    def in_sync(self) -> bool:
        """Whether both are in sync, by proof and by grant (DESIGN rule 8), and the peer could serve."""
        could = self.arbiter.decider.peer_ready or not self.arbiter.decider.owns
        return could and self.arbiter.both_in_sync and self._guest.in_sync

    def standing(self) -> Standing | None:
        """What is agreed; None before anything is."""
        return standing_of(self.arbiter, self._host, self._guest)

    def outlook(self) -> Outlook | None:
        """What would survive now (`outlook_of`); None for a guest that does not run here."""
        return outlook_of(self.arbiter, self._guest)

    # ------------------------------------------------------------------ effects

    def _act(self, effects: Sequence[Effect]) -> None:
        """Perform these, and take back the permit if it does not hold any more; nothing after its life."""
        if self._nursery is None:
            return
        for effect in effects:
            self._perform(effect)
        if self._alone and not self.arbiter.peer_excluded:
            self._permit(alone=False)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendPeer(message=message):
                link = self._guest.link
                if link is not None and link.protocol is not None:
                    link.vote(encode_message(message, link.protocol))
            case PersistAcceptor(state=state, promise_ns=promise_ns):
                memory = encode_host_memory(HostMemory(state, promise_ns))
                self._running()[1].submit(partial(self._memory.store, memory), self._persisted)
            case WitnessGet() | WitnessSwap():
                self._running()[0].start_soon(self._ask_witness, effect)
            case LeaseUntil(until_ns=until_ns):
                self._until_ns = until_ns
                self._warden.lease_until(until_ns)
            case InForce(grant=grant):
                self._in_force(grant)
            case Discord(theirs_ns=theirs_ns):
                theirs_s = None if theirs_ns is None else theirs_ns / NS_PER_S
                self._guest.emit(DiscordEvent(self.arbiter.timing.failover_ns / NS_PER_S, theirs_s))
            case TwoTruths(ours=ours, theirs=theirs):
                event = TwoTruthsEvent(ours.describe(), theirs.describe())
                if event != self._truths:  # once, not with every heartbeat
                    self._truths = event
                    self._guest.emit(event)
            case Own() | Stop() | Yield():
                self._wish = effect
                self._wished.set()

    def _running(self) -> tuple[trio.Nursery, Lane]:
        if self._nursery is None or self._lane is None:
            raise InternalError(f"guest {self._guest.name}: its arbitration does not run")
        return self._nursery, self._lane

    def _persisted(self, result: BaseException | None) -> None:
        if isinstance(result, ClosedError):
            return  # its life is over, and nobody was told what it did not write down
        if isinstance(result, BaseException):
            raise result  # who cannot remember what he promises must not promise
        self._act(self.arbiter.persisted(self._now_ns()))

    def _in_force(self, grant: Grant) -> None:
        in_sync = tuple(sorted(called(self._host, each) for each in grant.in_sync))
        owner = called(self._host, grant.owner)
        self._guest.emit(GrantEvent(grant.term, grant.epoch, owner, in_sync, grant.sole is not None))
        self._permit(alone=self.arbiter.peer_excluded)

    def _permit(self, *, alone: bool) -> None:
        self._alone = alone
        self._guest.permitted(alone=alone, insisted=claim_of(self.arbiter).insisted)

    # ------------------------------------------------------------------ the witness

    async def _ask_witness(self, question: WitnessGet | WitnessSwap) -> None:
        name, number = question.witness, question.number
        asked_ns = self._now_ns()
        try:
            with trio.fail_after(WITNESS_S):
                view = await ask_witness(self._witnesses[name], self._key, question)
        except (PeerError, trio.TooSlowError) as error:
            _log.info("%s: witness %s: %s", self._guest.name, name, str(error) or "no answer")
            self._act(self.arbiter.unreachable(number, name, self._now_ns()))
        else:
            self._measured(Measure.WITNESS, asked_ns)
            self._act(self.arbiter.answered(number, name, view, self._now_ns()))

    # ------------------------------------------------------------------ the guest's role

    async def _follow(self) -> None:
        """Do what was wished last; what was overtaken meanwhile is not done any more."""
        while True:
            await self._wished.wait()
            self._wished = trio.Event()
            wish, self._wish = self._wish, None
            async with self._changing:
                if wish is not None and (isinstance(wish, Stop) or not self._ending):
                    await self._take(wish)

    async def _take(self, wish: Wish) -> None:
        guest, grant = self._guest, wish.grant
        active, halted = guest.role is Role.ACTIVE, guest.paused
        step = step_of(wish, active=active, halted=halted, term=guest.session.term)
        if step is Step.STOP:
            _log.warning("%s: stops: %s", guest.name, wish.reason if isinstance(wish, Stop) else "")
            await self._stop(in_order=self.arbiter.decider.moving)
            self._act(self.arbiter.stopped(self._now_ns()))
        elif grant is not None and step in {Step.SERVE, Step.SERVE_ANEW}:
            if step is Step.SERVE_ANEW:
                await guest.halt(in_order=True, within_s=self._patience_s())
            await self._own(grant)
        elif grant is not None and step is Step.STAND_BY:
            handed = has_handed_over(grant, self._host, active=active, term=guest.session.term)
            await self._stop(in_order=False)
            await guest.become(Role.STANDBY, grant.term, in_order=False, in_sync=handed)

    async def _own(self, grant: Grant) -> None:
        guest = self._guest
        await meet(guest, self.arbiter)
        began_ns = self._now_ns()
        self._warden.lease_until(self._until_ns)
        await self._warden.settled()
        if is_outdated(self.arbiter, guest.session):
            self._look()  # which has the guest stopped: it is told even if that does not last
            return
        try:
            active = await guest.become(Role.ACTIVE, grant.term, in_order=False)
        except BackendError as error:
            if await guest.handover.give_back(str(error)):
                return
            raise
        if active:
            self._measured(Measure.OPEN, began_ns)
            self._permit(alone=self._alone)

    async def _stop(self, *, in_order: bool) -> None:
        guest = self._guest
        if guest.role is Role.ACTIVE and not guest.paused:
            began_ns = self._now_ns()
            good = await guest.halt(in_order=in_order, within_s=self._patience_s())
            if not in_order:
                self._measured(Measure.STOP, began_ns)
            elif not good:  # the move is taken back, and the guest goes on here
                _log.warning("%s: the other host has not taken all: the guest stays", guest.name)
                self._act(self.arbiter.peer_out(self._now_ns()))
            elif guest.leaves_for is not None:  # its disk is why: it is out of sync with the same grant
                self._act(self.arbiter.own_out(self._now_ns())[1])
        self._warden.rest()

    def _patience_s(self) -> float:
        return halt_within_ns(self._until_ns, self._now_ns(), self.arbiter.timing) / NS_PER_S
