"""Digests let a standby in, and nothing else does: what no dirty map holds is found and copied first."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core import prover
from pairsync.core.copier import PROOF_ROUNDS_MAX
from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import DropSession, Effect, Examine, Send
from pairsync.core.events import DifferenceEvent, InSyncEvent, ResyncEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import (
    Adopt,
    Condition,
    Generation,
    Message,
    OpKind,
    Proof,
    Prove,
    Role,
    WriteOp,
)
from pairsync.core.prover import Prover
from pairsync.core.questions import (
    ANSWER_NODES_MAX,
    DIGEST_BYTES,
    FAN_OUT,
    QUESTIONS_MAX,
    Examined,
    Questions,
)
from pairsync.core.standing import Phase, Standing
from pairsync.core.tracker import Tracker
from pairsync.core.units import BLOCK_BYTES, NS_PER_S
from pairsync.errors import ProtocolError
from pairsync.testing.manual import ManualPair, blank_superblock

SIZE = 64 * BLOCK_BYTES


def a_write(block: int, byte: int = 1) -> list[WriteOp]:
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, bytes([byte]) * BLOCK_BYTES)]


def synced(options: VolumeOptions | None = None, *, size_bytes: int = SIZE) -> ManualPair:
    """In sync, closed dirty maps, the link cut again."""
    pair = ManualPair(size_bytes, options)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 0)
    pair.a.write("w", a_write(3))
    pair.settle()
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    pair.tick(6 * NS_PER_S)
    pair.settle()
    pair.cut()
    pair.settle()
    return pair


def phase_of(pair: ManualPair) -> Phase:
    return pair.a.session.sources[0].standing.phase


def spoil(pair: ManualPair, *blocks: int) -> None:
    """The standby holds something else there, and no map says so."""
    disk = pair.b.disks[0]
    for block in blocks:
        disk.apply(a_write(block, 99))
    disk.durable[:] = disk.content


def test_a_peer_that_lacks_nothing_is_asked_for_its_digests_and_then_counts() -> None:
    pair = synced()
    clear = len(pair.a.trace)
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    sent = [m for e in pair.a.trace[clear:] if isinstance(e, Send) for m in e.messages]
    assert [type(m) for m in sent if isinstance(m, (Prove, Adopt))] == [Prove, Adopt]


@pytest.mark.parametrize("blocks", [(0,), (63,), (5, 6, 40)])
def test_blocks_that_differ_under_equal_labels_are_copied_before_the_peer_counts(
    blocks: tuple[int, ...],
) -> None:
    pair = synced()
    spoil(pair, *blocks)
    pair.connect()
    pair.settle()
    assert DifferenceEvent("vda", len(blocks), blocks[0]) in pair.a.events
    kinds = [type(event) for event in pair.a.events]
    assert kinds.index(DifferenceEvent) < len(kinds) - 1 - kinds[::-1].index(InSyncEvent)
    assert any(isinstance(e, ResyncEvent) and e.rule == "digests-differ" for e in pair.a.events)
    assert not pair.differing()
    assert pair.a.session.in_sync


def test_a_bit_that_was_wrongly_cleared_is_found_beside_those_that_were_not() -> None:
    pair = synced()
    pair.a.write("w1", a_write(10) + a_write(20))
    pair.settle()
    pair.tick(6 * NS_PER_S)
    pair.settle()
    pair.crash(pair.a)
    page = DirtyMap(SIZE // BLOCK_BYTES)
    page.load_page(0, pair.a.metadata[0].pages[0])
    assert 20 in page
    page.clear(20, 21)
    pair.a.metadata[0].pages[0] = page.page_bytes(0)
    pair.a.start(Role.ACTIVE, 2)
    pair.settle()
    pair.connect()
    pair.settle()
    assert DifferenceEvent("vda", 1, 20) in pair.a.events
    assert not pair.differing()
    assert pair.a.session.in_sync


@pytest.mark.parametrize("behind", [False, True])
def test_what_a_proof_has_found_outlives_both_hosts_before_it_is_sent(behind: bool) -> None:
    """A standby without power may keep the digest of what it was sent last, and not the content: no proof
    would find that block again."""
    pair = synced()
    if behind:
        pair.a.write("w1", a_write(20))
        pair.settle()
    spoil(pair, 5, 6, 40)
    pair.connect()
    while pair.b.disks[0].found(40) != pair.a.disks[0].found(40):
        assert pair.step()
    assert pair.forgotten() == []
    sent = {block: pair.b.disks[0].leaf(block) for block in (5, 6, 40)}
    pair.crash(pair.a)
    pair.crash(pair.b, power=True)
    for block, digest in sent.items():
        pair.b.disks[0].record(block, digest)
    assert pair.differing() == [5, 6, 40]
    pair.a.start(Role.ACTIVE, 2)
    pair.b.start(Role.STANDBY, 0)
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    assert not pair.differing()


def test_what_was_mirrored_while_digests_were_compared_is_the_peers_only_once_a_flush_covers_it() -> None:
    """A difference sends nothing more until the standby has recorded that it is copied to: a flush that
    closes a generation then is one of this host alone, and the standby may lose what it was sent before."""
    pair = synced()
    spoil(pair, 5)
    pair.connect()
    while phase_of(pair) is not Phase.ADOPTING:
        assert pair.step()
    pair.a.write("w1", a_write(30))
    while phase_of(pair) is Phase.ADOPTING:
        assert pair.step()
    assert phase_of(pair) is Phase.PREPARING
    pair.tick(6 * NS_PER_S)  # time to close the generation; the standby's answer is not heard yet
    while pair.a.busy:
        pair.a.complete(*pair.a.busy[0])
    assert pair.a.session.sources[0].tracker.closing is None
    assert pair.b.disks[0].found(30) == pair.a.disks[0].found(30)
    pair.crash(pair.b, power=True)
    assert 30 in pair.differing()
    assert pair.forgotten() == []


def test_a_walk_goes_to_its_end_before_what_differs_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """However scattered it is: a session gives up after a few proofs that find a difference."""
    monkeypatch.setattr(prover, "QUESTIONS_MAX", 1)  # so that a small volume is too large for one round
    spots = [2 * node * FAN_OUT for node in range(PROOF_ROUNDS_MAX)]
    pair = synced(size_bytes=2 * len(spots) * FAN_OUT * BLOCK_BYTES)
    spoil(pair, *spots)
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    found = [event for event in pair.a.events if isinstance(event, DifferenceEvent)]
    assert found == [DifferenceEvent("vda", len(spots), 0)]


def test_writes_while_digests_are_compared_make_no_difference() -> None:
    pair = synced()
    pair.connect()
    while not any(isinstance(effect, Examine) for effect in pair.a.waiting("disk")):
        assert pair.step()
    for number in range(5):
        pair.a.write(f"w{number}", a_write(30 + number, number + 1))
        pair.a.complete("meta")
    pair.settle()
    assert pair.a.session.in_sync
    assert not [event for event in pair.a.events if isinstance(event, DifferenceEvent)]
    assert not pair.differing()


def test_a_pair_that_differs_again_and_again_is_left() -> None:
    pair = synced()
    pair.connect()
    proofs = 0
    while proofs < 50 and pair.a.drop is None:
        if pair.a.outbox and any(isinstance(message, Prove) for message in pair.a.outbox):
            spoil(pair, 7)  # a disk that does not keep what it is given
            proofs += 1
        if not pair.step():
            break
    assert pair.a.session.refusal is None
    reasons = [effect.reason for effect in pair.a.trace if isinstance(effect, DropSession)]
    assert "again and again" in reasons[-1]
    assert not pair.a.session.in_sync


def test_without_digests_labels_have_to_do() -> None:
    pair = synced(VolumeOptions(digests=False))
    spoil(pair, 9)
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    assert pair.differing() == [9]


@pytest.mark.parametrize("host", ["a", "b"])
def test_digests_that_cannot_be_had_prove_nothing(host: str) -> None:
    pair = synced()
    pair.connect()
    while not any(isinstance(effect, Examine) for effect in pair.host(host).waiting("disk")):
        assert pair.step()
    pair.host(host).complete("disk", error=errno.EIO)
    while pair.step():
        pass
    assert not pair.a.session.in_sync
    assert any(event.kind == "trouble" for event in pair.host(host).events)


def test_a_standby_answers_a_bounded_number_of_questions_and_only_about_itself() -> None:
    pair = synced()
    pair.connect()
    pair.settle()
    target = pair.b.session.targets[0]
    term = target.superblock.term
    for level, first, stop in ((3, 0, 1), (0, 0, 65), (0, 5, 5), (2, 1, 2)):
        with pytest.raises(ProtocolError):
            target.prove(Prove(term, 0, 9, level, first, stop, read=False))
    for number in range(2 * QUESTIONS_MAX):
        target.prove(Prove(term, 0, 10 + number, 0, 0, 64, read=False))
    with pytest.raises(ProtocolError, match="at once"):
        target.prove(Prove(term, 0, 99, 0, 0, 64, read=False))


# ---------------------------------------------------------------------- the walk


class Walk:
    """A prover of a volume of any size, whose questions are answered by hand."""

    def __init__(self, block_count: int) -> None:
        self.out: list[Effect] = []
        first = Generation(1, 1, 1)
        block = replace(
            blank_superblock("vda", block_count * BLOCK_BYTES),
            term=1,
            condition=Condition.CONSISTENT,
            lineage=(first,),
        )
        standing = Standing(0, block, lambda: 1, self.out)
        self.tracker = Tracker(block_count, DirtyMap(block_count), window_bytes=1 << 22)
        self.questions = Questions(0, standing, self.out)
        self.prover = Prover(self.tracker, self.questions)
        self.prover.start()

    def asked(self) -> list[Prove]:
        self.prover.advance(7)
        effects, self.out[:] = self.out[:], []
        messages: list[Message] = [m for e in effects if isinstance(e, Send) for m in e.messages]
        proves = [m for m in messages if isinstance(m, Prove)]
        examines = [e for e in effects if isinstance(e, Examine)]
        assert [(m.question, m.level, m.first, m.stop) for m in proves] == [e[1:5] for e in examines]
        return proves

    def answer(
        self, prove: Prove, wrong: set[int], *, mine: int | None = None, theirs: int | None = None
    ) -> None:
        """Both answer, for ``mine`` and ``theirs`` nodes; the peer's digests of the ``wrong`` ones differ."""
        span = FAN_OUT**prove.level
        nodes = range(prove.first, prove.stop)
        bad = {block // span for block in wrong}
        here = b"".join(bytes([7] * DIGEST_BYTES) for _ in nodes)
        there = b"".join(bytes([8 if node in bad else 7] * DIGEST_BYTES) for node in nodes)
        self.questions.examined(prove.question, Examined(here[: (mine or len(nodes)) * DIGEST_BYTES]))
        self.questions.answered(Proof(0, prove.question, there[: (theirs or len(nodes)) * DIGEST_BYTES]))


@pytest.mark.parametrize("wrong", [set(), {0}, {1_000_000}, {5, 6, 7, 300_000, 999_999}])
@pytest.mark.parametrize("most", [None, 1, 700])
def test_the_walk_finds_exactly_what_differs(wrong: set[int], most: int | None) -> None:
    walk = Walk(1_000_001)
    questions = 0
    while not walk.prover.finished:
        for prove in walk.asked():
            questions += 1
            count = prove.stop - prove.first
            part = count if most is None else min(most, count)
            walk.answer(prove, wrong, mine=part, theirs=max(part - 1, 1))
    assert {b for run in walk.prover.differing.runs() for b in range(*run)} == wrong
    if most is None:
        assert questions <= 3 * (1 + 2 * len(wrong)), "few round trips"


@given(st.data())
def test_the_walk_finds_it_in_whatever_parts_and_order_the_answers_come(data: st.DataObject) -> None:
    block_count = data.draw(st.integers(1, 3 * FAN_OUT * FAN_OUT))
    wrong = data.draw(st.sets(st.integers(0, block_count - 1), max_size=5))
    walk = Walk(block_count)
    asked: list[Prove] = []
    while not walk.prover.finished:
        asked += walk.asked()
        prove = asked.pop(data.draw(st.integers(0, len(asked) - 1)))
        count = prove.stop - prove.first
        parts = st.sampled_from((count, max(count - 1, 1), (count + 1) // 2))
        walk.answer(prove, wrong, mine=data.draw(parts), theirs=data.draw(parts))
    assert {b for run in walk.prover.differing.runs() for b in range(*run)} == wrong


def test_questions_are_bounded_in_number_and_in_size() -> None:
    walk = Walk(ANSWER_NODES_MAX * FAN_OUT * FAN_OUT * 9 + 1)
    proves = walk.asked()
    assert len(proves) == QUESTIONS_MAX
    assert all(prove.stop - prove.first <= ANSWER_NODES_MAX for prove in proves)
    assert walk.questions.waiting_since_ns == 7
    assert walk.asked() == []
