"""The relay: requests of one host's clients, done by the owner; numbers, bounds, and what is never known."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pairsync.core.messages import (
    Message,
    OpKind,
    Relay,
    Relayed,
    RelayFlush,
    RelayRead,
    Serving,
    WriteOp,
)
from pairsync.core.relay import (
    RELAY_BYTES_MAX,
    RELAY_REQUESTS_MAX,
    Answer,
    Job,
    RelayClient,
    RelayServer,
)
from pairsync.core.units import MIB
from pairsync.errors import InternalError, ProtocolError

SIZE = 64 * MIB
NAMES = ("guest", "vda")


def data(offset: int = 0, length: int = 512) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, length, bytes(length))


def serving_client(term: int = 3) -> RelayClient:
    client = RelayClient(NAMES)
    client.heard(Serving(term, serves=True), term)
    return client


def told() -> tuple[list[Relayed | Relay | None], Answer]:
    heard: list[Relayed | Relay | None] = []
    return heard, heard.append


def serving_server(term: int = 3) -> RelayServer:
    server = RelayServer(NAMES, {0: SIZE}.get)
    assert server.serve(term) == []
    assert server.connected() == [Serving(term, serves=True, names=NAMES)]
    return server


def test_each_kind_of_request_there_and_back() -> None:
    client, server = serving_client(), serving_server()
    heard, hear = told()
    write = client.write(0, [data(), data(4096)], hear)
    read = client.read(0, 100, 7, hear)
    flush = client.flush(0, hear)
    assert [write.number, read.number, flush.number] == [1, 2, 3]
    answers: list[Relayed | Relay] = [
        Relayed(3),
        Relay(3, 0, 2, [WriteOp(OpKind.DATA, 100, 7, b"content")]),
        Relayed(1, (0, 28)),
    ]
    jobs = {request.number: server.take(request) for request in (write, read, flush)}
    for answer in answers:
        job = jobs[answer.number]
        assert job is not None
        assert server.ended(job, answer) == [answer]
        client.answered(answer)
    assert heard == answers
    client.answered(answers[0])  # nobody waits for it any more
    assert heard == answers


def test_a_peer_of_an_older_term_does_not_serve() -> None:
    client = RelayClient(NAMES)
    client.heard(Serving(2, serves=True), 3)
    assert client.term is None
    assert not client.room(0)
    with pytest.raises(InternalError, match="does not serve"):
        client.flush(0, told()[1])


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (NAMES, True),
        (None, True),  # of a version that does not say
        (("other", "vda"), False),
        (("guest", "vdb"), False),
        (("guest", "vdb", "vda"), False),
        (("guest",), False),
    ],
)
def test_nobody_is_asked_who_numbers_other_volumes(names: tuple[str, ...] | None, asked: bool) -> None:
    client = RelayClient(NAMES)
    client.heard(Serving(3, serves=True, names=names), 3)
    assert client.room(1) is asked


@pytest.mark.parametrize("how", ["lost", "serves no more", "serves anew"])
def test_what_is_open_when_the_serving_ends_is_unknown(how: str) -> None:
    client = serving_client()
    heard, hear = told()
    client.write(0, [data()], hear)
    client.read(0, 0, 5, hear)
    if how == "lost":
        client.lost()
    else:
        client.heard(Serving(3, serves=how == "serves anew"), 3)
    assert heard == [None, None]
    assert client.room(1) is (how == "serves anew")
    client.answered(Relayed(1))  # it was on its way
    assert heard == [None, None]


def test_the_client_keeps_within_its_bounds_and_the_server_holds_it_to_them() -> None:
    client, server = serving_client(), serving_server()
    _, hear = told()
    for at in range(RELAY_BYTES_MAX // MIB):
        assert client.room(MIB)
        job = server.take(client.write(0, [data(at * MIB, MIB)], hear))
    assert not client.room(1)
    assert client.room(0)
    with pytest.raises(InternalError, match="too much is relayed"):
        client.read(0, 0, 1, hear)
    with pytest.raises(ProtocolError, match="too much is relayed"):
        server.take(RelayRead(3, 0, 99, 0, 1))
    assert job is not None
    server.ended(job, Relayed(job.request.number))
    client.answered(Relayed(job.request.number))
    assert client.room(MIB)
    assert server.take(RelayRead(3, 0, 100, 0, MIB)) is not None


def test_the_number_of_requests_is_bounded_too() -> None:
    client, server = serving_client(), serving_server()
    _, hear = told()
    for _ in range(RELAY_REQUESTS_MAX):
        server.take(client.flush(0, hear))
    assert not client.room(0)
    with pytest.raises(ProtocolError, match="too much is relayed"):
        server.take(RelayFlush(3, 0, RELAY_REQUESTS_MAX + 1))


@pytest.mark.parametrize(
    "request_",
    [
        RelayFlush(3, 0, 4),
        RelayFlush(3, 1, 5),
        RelayRead(3, 0, 5, SIZE, 1),
        Relay(3, 0, 5, [data(), data(SIZE - 1, 2)]),
    ],
    ids=["out of turn", "no such volume", "behind the end", "a part behind the end"],
)
def test_a_request_that_cannot_be_breaks_the_protocol(request_: RelayFlush) -> None:
    server = serving_server()
    server.take(RelayFlush(3, 0, 4))
    with pytest.raises(ProtocolError):
        server.take(request_)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("read", Relayed(1)),
        ("read", Relay(3, 0, 1, [data(0, 4)])),
        ("read", Relay(3, 0, 1, [data(0, 2), data(2, 3)])),
        ("write", Relayed(1, (0, 0))),
        ("write", Relay(3, 0, 1, [data()])),
        ("flush", Relayed(1, (0, 0))),
        ("flush", Relayed(2)),
    ],
)
def test_an_answer_that_does_not_fit_its_request_breaks_the_protocol(
    request_: str, answer: Relayed | Relay
) -> None:
    client = serving_client()
    heard, hear = told()
    if request_ == "read":
        client.read(0, 0, 5, hear)
    elif request_ == "write":
        client.write(0, [data()], hear)
    else:
        client.flush(0, hear)
    with pytest.raises(ProtocolError):
        client.answered(answer)
    assert heard == []


def test_requests_of_another_term_are_not_done() -> None:
    server = serving_server(4)
    assert server.take(RelayFlush(3, 0, 1)) is None
    assert server.serve(None) == [Serving(4, serves=False)]
    assert server.take(RelayFlush(4, 0, 2)) is None


def test_nobody_is_served_before_the_writes_of_an_earlier_session_have_ended() -> None:
    server = serving_server()
    write, read = server.take(Relay(3, 0, 1, [data()])), server.take(RelayRead(3, 0, 2, 0, 5))
    assert write is not None
    assert read is not None
    server.lost()
    assert server.connected() == []
    assert server.take(Relay(3, 0, 3, [data()])) is None
    assert server.ended(write, Relayed(1)) == [Serving(3, serves=True, names=NAMES)]
    assert server.ended(read, Relayed(2, (5,))) == []  # nobody waits for it


class RelayMachine(RuleBasedStateMachine):
    """Callers that ask again until they know; sessions, serving and ends of jobs in any order.

    The owner's volume does its open writes in any order, as disks do.  What must hold: a caller's write is
    the content once it is acknowledged and until the next one is, whatever earlier copies are still about.
    """

    def __init__(self) -> None:
        super().__init__()
        self.client, self.server = RelayClient(NAMES), RelayServer(NAMES, {0: SIZE}.get)
        self.connected = False
        self.term = 0
        self.serves = False
        self.to_server: deque[Message] = deque()
        self.to_client: deque[Message] = deque()
        self.jobs: list[Job] = []
        self.content = 0  # of the one block
        self.value = 0  # what the caller writes, until it is acknowledged
        self.acknowledged = 0
        self.asked = False  # it has an open request

    def send(self, messages: list[Message]) -> None:
        if self.connected:
            self.to_client.extend(messages)

    @rule(serves=st.booleans())
    def own(self, serves: bool) -> None:
        self.term += serves and not self.serves
        self.serves = serves
        self.send(self.server.serve(self.term if serves else None))

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True
        self.send(self.server.connected())

    @precondition(lambda self: self.connected)
    @rule()
    def lose(self) -> None:
        self.connected = False
        self.to_server.clear()
        self.to_client.clear()
        self.client.lost()
        self.server.lost()

    @precondition(lambda self: self.to_server)
    @rule()
    def deliver_request(self) -> None:
        request = self.to_server.popleft()
        assert isinstance(request, Relay)
        job = self.server.take(request)
        if job is not None:
            self.jobs.append(job)

    @precondition(lambda self: self.to_client)
    @rule()
    def deliver_answer(self) -> None:
        message = self.to_client.popleft()
        if isinstance(message, Serving):
            self.client.heard(message, 0)
        else:
            assert isinstance(message, Relay | Relayed)
            self.client.answered(message)

    @precondition(lambda self: not self.value)
    @rule()
    def begin_write(self) -> None:
        self.value = self.acknowledged + 1

    @precondition(lambda self: self.value and not self.asked and self.client.room(8))
    @rule()
    def ask(self) -> None:
        value = self.value
        op = WriteOp(OpKind.DATA, 0, 8, value.to_bytes(8, "big"))

        def answer(found: Relayed | Relay | None) -> None:
            self.asked = False
            if found is not None:
                assert found == Relayed(found.number)
                self.acknowledged, self.value = value, 0

        self.asked = True
        self.to_server.append(self.client.write(0, [op], answer))

    @precondition(lambda self: self.jobs)
    @rule(choice=st.randoms(use_true_random=False))
    def end_job(self, choice: random.Random) -> None:
        job = self.jobs.pop(choice.randrange(len(self.jobs)))
        assert isinstance(job.request, Relay)
        (op,) = job.request.ops
        assert op.data is not None
        self.content = int.from_bytes(op.data, "big")
        self.send(self.server.ended(job, Relayed(job.request.number)))

    @invariant()
    def acknowledged_content_stays(self) -> None:
        assert self.content in {self.acknowledged, self.value or self.acknowledged}

    def teardown(self) -> None:
        """In the end everything is known."""
        self.own(serves=True)
        if not self.connected:
            self.connect()
        while self.value or self.to_client or self.to_server or self.jobs:
            if self.jobs:
                job = self.jobs.pop(0)
                assert isinstance(job.request, Relay)
                self.content = int.from_bytes(job.request.ops[0].data or b"", "big")
                self.send(self.server.ended(job, Relayed(job.request.number)))
            elif self.to_client:
                self.deliver_answer()
            elif self.to_server:
                self.deliver_request()
            else:
                assert not self.asked
                self.ask()
        assert self.content == self.acknowledged


TestRelayMachine = RelayMachine.TestCase
