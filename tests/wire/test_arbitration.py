"""Votes and memories: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.acceptor import AcceptorState, HostMemory
from pairsync.core.arbitration import (
    Accept,
    Accepted,
    Beat,
    BeatAnswer,
    PeerMessage,
    Prepare,
    Promise,
    Refusal,
)
from pairsync.core.grants import (
    BALLOT_NONE,
    FORK_BYTES,
    HOST_ID_BYTES,
    IN_SYNC_MAX,
    INCARNATION_BYTES,
    OPERATOR_BYTES_MAX,
    VOTERS_MAX,
    Ballot,
    Grant,
    VoterId,
    forced,
)
from pairsync.core.witness import Snapshot
from pairsync.errors import InternalError, ProtocolError
from pairsync.wire.arbitration import (
    MEMORY_BYTES_MAX,
    WITNESS_NAME_BYTES_MAX,
    decode_acceptor,
    decode_host_memory,
    decode_message,
    decode_view,
    encode_acceptor,
    encode_host_memory,
    encode_message,
)
from pairsync.wire.limits import NUMBER_MAX, VOTE_BYTES_MAX
from pairsync.wire.shapes import pack, unpack_array

incarnations = st.binary(min_size=INCARNATION_BYTES, max_size=INCARNATION_BYTES)
hosts = st.binary(min_size=HOST_ID_BYTES, max_size=HOST_ID_BYTES)
names = st.text(max_size=16)
voters = st.builds(VoterId, hosts | names, incarnations)
counts = st.integers(1, NUMBER_MAX)
numbers = st.integers(0, NUMBER_MAX)
ballots = st.just(BALLOT_NONE) | st.builds(Ballot, numbers, hosts, incarnations)
grants = st.builds(
    Grant,
    term=counts,
    epoch=counts,
    owner=hosts,
    holder=incarnations,
    in_sync=st.frozensets(hosts, min_size=1, max_size=IN_SYNC_MAX),
    voters=st.frozensets(voters, min_size=1, max_size=VOTERS_MAX),
    fork=st.binary(min_size=FORK_BYTES, max_size=FORK_BYTES),
    override=st.text(max_size=20),
)
bases = st.none() | grants
messages: st.SearchStrategy[PeerMessage] = st.one_of(
    st.builds(Beat, voters, bases, numbers, numbers, st.booleans()),
    st.builds(
        *(BeatAnswer, voters, bases, numbers, st.booleans(), st.booleans(), numbers),
        st.none() | st.booleans(),
    ),
    st.builds(Prepare, voters, bases, ballots),
    st.builds(Promise, voters, bases, ballots, ballots, bases),
    st.builds(Accept, voters, bases, ballots, grants),
    st.builds(Accepted, voters, bases, ballots),
    st.builds(Refusal, voters, bases, ballots, ballots),
)
memories = st.builds(AcceptorState, incarnations, bases, ballots, ballots, bases)


@given(messages)
def test_a_vote_is_read_as_it_was_written(message: PeerMessage) -> None:
    encoded = encode_message(message)
    assert decode_message(encoded) == message
    assert len(encoded) <= VOTE_BYTES_MAX


@given(messages)
def test_an_older_peer_is_told_what_it_understands(message: PeerMessage) -> None:
    """And of what it cannot say it is taken to have said nothing."""
    encoded = encode_message(message, protocol=1)
    assert unpack_array(encoded, bytes_max=VOTE_BYTES_MAX, count_max=16)[0] == 1
    if isinstance(message, Beat):
        message = message._replace(hears=True)
    if isinstance(message, BeatAnswer):
        message = message._replace(asks=None)
    assert decode_message(encoded) == message
    assert encode_message(message, protocol=7) == encode_message(message)


@given(memories)
def test_a_memory_is_read_as_it_was_written(state: AcceptorState) -> None:
    assert decode_acceptor(encode_acceptor(state)) == state


@given(memories, st.none() | numbers)
def test_what_a_host_writes_down_is_read_as_it_was_written(
    state: AcceptorState, promise_ns: int | None
) -> None:
    memory = HostMemory(state, promise_ns)
    assert decode_host_memory(encode_host_memory(memory)) == memory


def test_a_host_reads_what_the_version_before_has_written_and_nothing_newer() -> None:
    state = AcceptorState(b"i" * INCARNATION_BYTES)
    assert decode_host_memory(encode_acceptor(state)) == HostMemory(state, None)
    for fields, words in (([3, 1], "version 3"), ([2], "0 fields, expected 5"), ([2, 7], "0 fields")):
        with pytest.raises(ProtocolError, match=words):
            decode_host_memory(pack(fields))


def longest() -> Grant:
    host, other = b"\xff" * HOST_ID_BYTES, b"\xfe" * HOST_ID_BYTES
    most = b"\xff" * INCARNATION_BYTES
    return Grant(
        NUMBER_MAX,
        NUMBER_MAX,
        host,
        most,
        frozenset({host, other}),
        frozenset({VoterId(host, most), VoterId(other, most), VoterId("w" * WITNESS_NAME_BYTES_MAX, most)}),
        b"\xff" * FORK_BYTES,
        "o" * OPERATOR_BYTES_MAX,
    )


def test_the_longest_vote_and_the_longest_memory_have_room() -> None:
    grant = longest()
    host = VoterId(grant.owner, grant.holder)
    ballot = Ballot(NUMBER_MAX, grant.owner, grant.holder)
    assert len(encode_message(Promise(host, grant, ballot, ballot, grant))) <= VOTE_BYTES_MAX
    state = AcceptorState(grant.holder, grant, ballot, ballot, grant)
    assert len(encode_acceptor(state)) <= MEMORY_BYTES_MAX
    assert len(encode_host_memory(HostMemory(state, NUMBER_MAX))) <= MEMORY_BYTES_MAX


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for decode in (decode_message, decode_acceptor, decode_host_memory):
        try:
            decode(data)
        except ProtocolError:
            continue


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([3, 1], "version 3"),
        ([2, 2, [b"x" * 32, b"i" * 8], None, 0, False, True, 0], "6 fields, expected 7"),
        ([True, 1], "version True"),
        ([1, 9], "unknown type of a vote 9"),
        ([1], "unknown type of a vote None"),
        ([1, 1, [b"x" * 32, b"i" * 8], None], "3 fields, expected 5"),
        ([1, 1, [b"x" * 31, b"i" * 8], None, 0, 0], "expected 32"),
        ([1, 1, [7, b"i" * 8], None, 0, 0], "expected a byte string"),
    ],
)
def test_what_no_vote_is(fields: list[object], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode_message(pack(fields))


@pytest.mark.parametrize("hosts_in_sync", [[], [b"x" * 32, b"x" * 32]])
def test_a_set_has_members_and_each_once(hosts_in_sync: list[bytes]) -> None:
    grant = [1, 1, b"x" * 32, b"i" * 8, hosts_in_sync, [[b"x" * 32, b"i" * 8]], b"f" * 8, ""]
    with pytest.raises(ProtocolError, match="empty, or has a member twice"):
        decode_message(pack([1, 1, [b"x" * 32, b"i" * 8], grant, 0, 0]))


def test_a_memory_that_could_not_be_read_back_is_not_written() -> None:
    """An operator of 64 letters of three bytes each: the host never started again."""
    state = AcceptorState(b"i" * 8, forced(VoterId(b"a" * 32, b"i" * 8), [], b"f" * 8, "\u6f22" * 64))
    for write in (encode_acceptor, lambda each: encode_host_memory(HostMemory(each, None))):
        with pytest.raises(InternalError, match="read back"):
            write(state)


def test_what_is_too_long_is_not_sent() -> None:
    grant = longest()._replace(override="o" * 4000)
    with pytest.raises(InternalError, match="at most"):
        encode_message(Accept(VoterId(grant.owner, grant.holder), None, BALLOT_NONE, grant))


def test_a_witness_that_holds_the_memory_of_another_voter_has_none() -> None:
    value = encode_acceptor(AcceptorState(b"i" * 8))
    assert decode_view(Snapshot(b"i" * 8, 3, value)).state == AcceptorState(b"i" * 8)
    assert decode_view(Snapshot(b"j" * 8, 3, value)).state is None
    assert decode_view(Snapshot(b"i" * 8, 0, None)).state is None
