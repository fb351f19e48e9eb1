"""The session over lanes that are made of lists: which lane is sent on, what is sent again, what ends it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from tests.io.harness import make_write

from pairsync.core.messages import Applied, Message, Write
from pairsync.core.stream import ACKNOWLEDGE_FRAMES, RENEW_BYTES_MAX, WINDOW_BYTES_MIN, Renew
from pairsync.errors import InternalError
from pairsync.io.gate import Gate
from pairsync.io.session import Session, SessionInfo
from pairsync.wire.codec import encode
from pairsync.wire.frames import Frame, make_frame, pack_record, parse_frames, parse_record
from pairsync.wire.hello import PROTOCOL_RENEWS

INFO = SessionInfo(b"s" * 16, 1, b"f" * 32, "first")


class ListLane:
    """Stands for a lane: keeps what is transmitted."""

    def __init__(self) -> None:
        self.blocked = False
        self.sent: list[bytes] = []

    def transmit(self, first: int, acknowledged: int, frames: Sequence[Frame]) -> None:
        assert not self.blocked
        self.sent.append(pack_record(first, acknowledged, frames))

    def frames(self) -> list[tuple[int, int]]:
        """First number and count of each record with frames."""
        records = [parse_record(memoryview(sent)) for sent in self.sent]
        return [(record.first, record.frame_count) for record in records if record.frame_count]

    def acknowledgements(self) -> list[int]:
        return [parse_record(memoryview(sent)).acknowledged for sent in self.sent]


@dataclasses.dataclass
class Bench:
    gate: Gate = dataclasses.field(default_factory=Gate)
    got: list[Message] = dataclasses.field(default_factory=list)
    calls: list[int] = dataclasses.field(default_factory=list)
    violations: list[str] = dataclasses.field(default_factory=list)
    told: list[str] = dataclasses.field(default_factory=list)  # of renewals
    protocol: int = PROTOCOL_RENEWS

    def session(self) -> Session:
        def received(messages: list[Message]) -> None:
            self.got.extend(messages)
            self.calls.append(len(messages))

        def violated(reason: str) -> None:
            self.violations.append(reason)
            session.end(reason)

        session = Session(
            dataclasses.replace(INFO, protocol=self.protocol),
            self.gate,
            window_bytes=WINDOW_BYTES_MIN,
            received=received,
            violated=violated,
            over=self.told.append,
            begun=lambda: self.told.append("begun"),
        )
        return session


def attach(session: Session, rank: int = 0, name: str = "path") -> Any:
    lane: Any = ListLane()
    session.attach(lane, rank, name)
    return lane


def record(first: int, acknowledged: int, *messages: Message) -> memoryview:
    return memoryview(pack_record(first, acknowledged, [make_frame(encode(m)) for m in messages]))


def test_messages_leave_in_as_few_records_as_the_lane_allows() -> None:
    session = Bench().session()
    lane = attach(session)
    session.send([make_write(1)])
    assert lane.frames() == [(0, 1)]
    lane.blocked = True
    for number in range(2, 12):
        session.send([make_write(number)])
    assert lane.frames() == [(0, 1)]
    lane.blocked = False
    session.pump()
    assert lane.frames() == [(0, 1), (1, 10)]


def test_bulk_is_cut_into_records() -> None:
    session = Bench().session()
    lane = attach(session)
    session.send([make_write(number, size=1 << 18) for number in range(1, 9)])
    assert lane.frames() == [(0, 2), (2, 2), (4, 2), (6, 2)]


def test_the_lane_of_the_lowest_rank_is_sent_on() -> None:
    session = Bench().session()
    spare = attach(session, rank=1, name="spare")
    session.send([make_write(1)])
    best = attach(session, rank=0, name="best")
    assert best.frames() == [(0, 1)]  # what the spare had not got acknowledged is sent again
    session.send([make_write(2)])
    assert best.frames() == [(0, 1), (1, 1)]
    session.detach(best)
    assert spare.frames() == [(0, 1), (0, 2)]
    session.detach(spare)
    assert session.lane_count == 0
    session.send([make_write(3)])
    assert session.frames_resent == 3
    assert session.is_sending_on(spare) is False


def test_a_record_is_delivered_whole_and_once() -> None:
    bench = Bench()
    session = bench.session()
    session.receive(record(0, 0, Applied(0, 1), Applied(0, 2)))
    session.receive(record(1, 0, Applied(0, 2), Applied(0, 3)))
    session.receive(record(0, 0, Applied(0, 1)))
    assert bench.got == [Applied(0, 1), Applied(0, 2), Applied(0, 3)]
    assert bench.calls == [2, 1]
    assert session.frames_dropped == 2
    assert session.acknowledgement == 3


def test_duplicates_are_not_even_decoded() -> None:
    bench = Bench()
    session = bench.session()
    session.receive(record(0, 0, Applied(0, 1)))
    spoiled = make_frame([b"\xc1"])
    session.receive(memoryview(pack_record(0, 0, [spoiled, make_frame(encode(Applied(0, 2)))])))
    assert bench.got == [Applied(0, 1), Applied(0, 2)]


@pytest.mark.parametrize(
    ("plaintext", "why"),
    [
        (record(1, 0, Applied(0, 1)), "a gap in the stream"),
        (record(0, 1), "acknowledges frame 0; 0 were sent"),
        (memoryview(pack_record(0, 0, [make_frame([b"\xc1"])])), "not msgpack"),
        (memoryview(bytes(19)), "record of 19 bytes"),
        (memoryview(pack_record(0, 0, []) + b"x"), "without frames"),
    ],
)
def test_a_violation_ends_the_session(plaintext: memoryview, why: str) -> None:
    bench = Bench()
    session = bench.session()
    session.receive(plaintext)
    assert why in bench.violations[0]
    session.receive(record(0, 0, Applied(0, 1)))
    assert bench.got == []


def test_a_record_with_one_bad_frame_delivers_nothing() -> None:
    bench = Bench()
    session = bench.session()
    good = make_frame(encode(Applied(0, 1)))
    session.receive(memoryview(pack_record(0, 0, [good, make_frame([b"\xc1"])])))
    assert bench.got == []
    assert bench.violations


def test_acknowledgements_ride_on_records_or_go_alone_when_due() -> None:
    bench = Bench()
    session = bench.session()
    lane = attach(session)
    session.pump()  # attaching repeats the acknowledgement
    lane.sent.clear()
    session.receive(record(0, 0, Applied(0, 1)))
    assert lane.sent == []
    session.send([Applied(0, 1)])
    assert lane.acknowledgements() == [1]
    for number in range(ACKNOWLEDGE_FRAMES):
        session.receive(record(1 + number, 0, Applied(0, number)))
    assert lane.acknowledgements() == [1, 1 + ACKNOWLEDGE_FRAMES]


def test_a_due_acknowledgement_waits_for_a_blocked_lane() -> None:
    session = Bench().session()
    lane = attach(session)
    lane.sent.clear()
    lane.blocked = True
    session.receive(record(0, 0, *[Applied(0, 1)] * ACKNOWLEDGE_FRAMES))
    assert lane.sent == []
    lane.blocked = False
    session.pump()
    assert lane.acknowledgements() == [ACKNOWLEDGE_FRAMES]


def test_heartbeats_keep_idle_lanes_from_falling_silent() -> None:
    session = Bench().session()
    lane, spare = attach(session, 0), attach(session, 1, "spare")
    lane.sent.clear()
    session.keep_alive(spare, idle=True)
    session.keep_alive(lane, idle=False)
    assert (len(spare.sent), len(lane.sent)) == (1, 0)
    session.receive(record(0, 0, Applied(0, 1)))
    session.keep_alive(spare, idle=False)
    session.keep_alive(lane, idle=False)
    assert (len(spare.sent), lane.acknowledgements()) == (1, [1])
    lane.blocked = True
    session.keep_alive(lane, idle=True)
    assert len(lane.sent) == 1


def test_a_shut_gate_holds_everything_back() -> None:
    bench = Bench()
    session = bench.session()
    lane = attach(session)
    lane.sent.clear()
    bench.gate.close()
    session.send([Applied(0, 1)])
    session.keep_alive(lane, idle=True)
    assert lane.sent == []
    bench.gate.open()
    session.pump()
    assert lane.frames() == [(0, 1)]


async def test_room_comes_with_acknowledgements_and_with_the_end() -> None:
    session = Bench().session()
    attach(session)
    session.send([make_write(number, size=1 << 20) for number in range(1, 5)])
    assert session.room_bytes <= 0
    woken: list[str] = []

    async def wait(name: str) -> None:
        await session.wait_room()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "first")
        nursery.start_soon(wait, "second")
        await trio.testing.wait_all_tasks_blocked()
        session.receive(record(0, 4))
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == ["first", "second"]
        assert session.unacknowledged() == (4, 0)
        session.send([make_write(number, size=1 << 20) for number in range(5, 9)])
        nursery.start_soon(wait, "third")
        await trio.testing.wait_all_tasks_blocked()
        assert len(woken) == 2
        session.end("over")
    assert woken[-1] == "third"
    assert session.unacknowledged_bytes == 0


def test_after_the_end_nothing_moves() -> None:
    bench = Bench()
    session = bench.session()
    lane = attach(session)
    session.end("first reason")
    session.end("second reason")
    lane.sent.clear()
    session.send([Applied(0, 1)])
    session.pump()
    session.receive(record(0, 0, Applied(0, 1)))
    session.keep_alive(lane, idle=True)
    session.detach(lane)
    assert (session.reason, lane.sent, bench.got) == ("first reason", [], [])
    with pytest.raises(InternalError, match="session that is over"):
        attach(session)


def test_a_message_that_cannot_be_encoded_leaves_the_stream_as_it_was() -> None:
    session = Bench().session()
    lane = attach(session)
    with pytest.raises(InternalError):
        session.send([Applied(0, 1), Write(1, 0, 1, False, [])])
    session.send([Applied(0, 2)])
    ((header, _),) = parse_frames(parse_record(memoryview(lane.sent[-1])))
    assert bytes(header) == encode(Applied(0, 2))[0]


# -- renewals ------------------------------------------------------------------------------------------------


def test_a_renewal_is_told_of_later_and_parts_what_came_before() -> None:
    bench = Bench()
    session = bench.session()
    lane = attach(session)
    session.send([Applied(0, 1)])
    assert session.renew("a new role")
    assert session.renew("and another one")  # nothing was said in between: it is the same
    session.send([Applied(0, 2)])  # as between the end of a session and its announcement
    assert bench.told == []
    session.tell()
    session.tell()
    assert bench.told == ["a new role", "begun"]
    session.send([Applied(0, 3)])
    sent = [frame for each in lane.sent for frame in parse_frames(parse_record(memoryview(each)))]
    expected: list[Message] = [Applied(0, 1), Renew("a new role"), Applied(0, 3)]
    assert [bytes(header) for header, _ in sent] == [encode(message)[0] for message in expected]
    session.receive(record(0, 3, Applied(0, 7)))  # of before
    session.receive(record(1, 3, Applied(0, 8), Renew("a new role"), Applied(0, 9)))
    assert bench.got == [Applied(0, 9)]
    assert bench.told == ["a new role", "begun"], "the answer to a renewal is none"


def test_a_renewal_of_the_peer_is_answered_in_between() -> None:
    bench = Bench()
    session = bench.session()
    lane = attach(session)
    session.receive(
        record(0, 0, Applied(0, 1), Renew("a role"), Applied(0, 2), Renew("a role"), Applied(0, 3))
    )
    assert bench.calls == [1, 1, 1]
    assert bench.told == ["the peer said: a role", "begun"] * 2
    assert lane.frames() == [(0, 1), (1, 1)]


def test_the_handler_hears_of_its_renewal_before_anything_of_the_next_session() -> None:
    bench = Bench()
    session = bench.session()
    attach(session)
    assert session.renew("mine")
    session.receive(record(0, 0, Renew("yours, at the same time"), Applied(0, 1)))
    assert bench.told == ["mine", "begun"]
    assert bench.got == [Applied(0, 1)]


@pytest.mark.parametrize("why", ["an older peer", "much is under way"])
def test_what_cannot_be_renewed_says_so(why: str) -> None:
    bench = Bench(protocol=1) if why == "an older peer" else Bench()
    session = bench.session()
    lane = attach(session)
    if why == "much is under way":
        for number in range(RENEW_BYTES_MAX // (1 << 18) + 1):
            session.send([make_write(number + 1, size=1 << 18)])
        lane.sent.clear()
    assert not session.renew("a new role")
    assert lane.sent == []
    session.send([Applied(0, 1)])
    assert lane.sent


def test_an_older_peer_does_not_renew() -> None:
    bench = Bench(protocol=1)
    session = bench.session()
    attach(session)
    session.receive(record(0, 0, Renew("a new role")))
    assert "renewal in version 1" in bench.violations[0]


@pytest.mark.parametrize("seed", range(20))
def test_both_take_what_belongs_to_the_session_that_they_are_in(seed: int) -> None:
    """Whoever renews whenever: a message that is taken was sent in the same session, and in the last one none
    is missing."""
    chance = random.Random(seed)
    benches = [Bench(), Bench()]
    sessions = [bench.session() for bench in benches]
    lanes = [attach(session) for session in sessions]
    sent: list[list[list[int]]] = [[[]], [[]]]  # by whom, in which session
    seen = [0, 0]  # what was told and taken of, by whom
    taken: list[list[list[int]]] = [[[]], [[]]]
    number = 0

    def look(who: int) -> None:
        """Sort what the handler has had since by the session it was in."""
        for _ in range(benches[who].told.count("begun") - len(sent[who]) + 1):
            sent[who].append([])
            taken[who].append([])
        for message in benches[who].got[seen[who] :]:
            assert isinstance(message, Applied)
            taken[who][-1].append(message.number)
        seen[who] = len(benches[who].got)

    def deliver(who: int) -> None:
        records, lanes[who].sent = lanes[who].sent, []
        for each in records:  # one by one, for a record may end a session
            parsed = parse_record(memoryview(each))
            for at, frame in enumerate(parse_frames(parsed)):
                single = pack_record(parsed.first + at, parsed.acknowledged, [make_frame(list(frame))])
                sessions[1 - who].receive(memoryview(single))
                look(1 - who)

    for _ in range(300):
        who = chance.randrange(2)
        match chance.randrange(6):
            case 0:
                assert sessions[who].renew("by chance")
            case 1:
                sessions[who].tell()
                look(who)
            case 2:
                deliver(who)
            case _:
                sessions[who].tell()
                look(who)
                number += 1
                sent[who][-1].append(number)
                sessions[who].send([Applied(0, number)])
    for who in (0, 1, 0, 1, 0, 1):
        sessions[who].tell()
        look(who)
        deliver(who)
    assert len(sent[0]) == len(sent[1]) > 10
    for who in (0, 1):
        for mine, theirs in zip(sent[who], taken[1 - who], strict=True):
            assert theirs == mine[: len(theirs)]
        assert taken[1 - who][-1] == sent[who][-1]
