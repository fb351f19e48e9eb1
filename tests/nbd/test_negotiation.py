"""The handshake by bytes: every option, every refusal, any fragmentation."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.errors import BackendError
from pairsync.nbd import constants as c
from pairsync.nbd.limits import OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX
from pairsync.nbd.negotiation import MESSAGE_CHARS_MAX, Chosen, Ended, Negotiation, StartTls, TlsMode
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.nbd_memory import MemoryExport

FIXED = c.FLAG_C_FIXED_NEWSTYLE | c.FLAG_C_NO_ZEROES
PIECES_MAX = 2500  # bounds the time of one example
DISK = MemoryExport("vda", 1 << 20, description="a disk")
LOG = MemoryExport("log", 4096, read_only=True)
EXPORTS = {"vda": DISK, "log": LOG}

option = NbdClient.option_bytes
info = NbdClient.info_data
meta = NbdClient.meta_data


class Packet(NamedTuple):
    option: int
    kind: int
    data: bytes


def packets(data: bytes) -> Iterator[Packet]:
    position = 0
    while position < len(data):
        magic, number, kind, length = struct.unpack_from(">QIII", data, position)
        assert magic == c.OPTION_REPLY_MAGIC
        assert position + 20 + length <= len(data)
        yield Packet(number, kind, data[position + 20 : position + 20 + length])
        position += 20 + length


def flags_bytes(flags: int = FIXED) -> bytes:
    return struct.pack(">I", flags)


def run(machine: Negotiation, *parts: bytes) -> bytes:
    """Feed the parts, stepping after each; all replies."""
    out = b""
    for part in parts:
        machine.feed(part)
        while (reply := machine.step()) is not None:
            out += reply
    return out


def machine_after_flags(
    *, flags: int = FIXED, mode: TlsMode = TlsMode.OFF, default: str | None = None
) -> Negotiation:
    machine = Negotiation(EXPORTS, tls_mode=mode, default_export=default)
    assert run(machine, flags_bytes(flags)) == b""
    return machine


def kinds(data: bytes) -> list[int]:
    return [packet.kind for packet in packets(data)]


def refusal(machine: Negotiation, data: bytes) -> int:
    """The only reply to that option, which must be an error with a text."""
    (packet,) = packets(run(machine, data))
    assert packet.kind & c.REP_ERROR_BIT
    assert packet.data.decode()
    return packet.kind


def chosen(machine: Negotiation) -> Chosen:
    assert isinstance(machine.outcome, Chosen)
    return machine.outcome


def ended(machine: Negotiation) -> Ended:
    assert isinstance(machine.outcome, Ended)
    return machine.outcome


def test_greeting() -> None:
    assert Negotiation(EXPORTS).greeting() == b"NBDMAGICIHAVEOPT\0\3"


@pytest.mark.parametrize("flags", [4, 0x80000000, 0xFFFFFFFF])
def test_unknown_client_flags_end_it(flags: int) -> None:
    machine = Negotiation(EXPORTS)
    assert run(machine, flags_bytes(flags)) == b""
    assert machine.outcome == Ended(f"unknown client flags {flags:#x}", clean=False)


def test_go() -> None:
    machine = machine_after_flags()
    wanted = [c.INFO_BLOCK_SIZE, c.INFO_NAME, c.INFO_DESCRIPTION, 77]
    replies = list(packets(run(machine, option(c.OPT_GO, info("vda", wanted)))))
    assert [packet.kind for packet in replies] == [c.REP_INFO] * 4 + [c.REP_ACK]
    by_type = {packet.data[:2]: packet.data[2:] for packet in replies[:-1]}
    assert struct.unpack(">Q", by_type[b"\0\0"][:8]) == (1 << 20,)
    assert by_type[b"\0\1"] == b"vda"
    assert by_type[b"\0\2"] == b"a disk"
    assert struct.unpack(">III", by_type[b"\0\3"]) == (1, 4096, 32 << 20)
    assert machine.outcome == Chosen(DISK, structured=False, contexts=(), early=b"")


def test_info_is_the_same_and_goes_on() -> None:
    machine = machine_after_flags()
    as_info = [packet[1:] for packet in packets(run(machine, option(c.OPT_INFO, info("log"))))]
    assert machine.outcome is None
    as_go = [packet[1:] for packet in packets(run(machine, option(c.OPT_GO, info("log"))))]
    assert as_go == as_info
    assert chosen(machine).export is LOG
    (flags,) = struct.unpack(">H", as_info[0][1][10:])
    assert flags & c.FLAG_READ_ONLY


class _Unknown(MemoryExport):
    """A disk that could not be opened so far."""

    def __getattribute__(self, name: str) -> Any:
        if name == "size_bytes":
            raise BackendError("volume vda: its disk could not be opened so far", errno.EIO)
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (c.OPT_GO, NbdClient.info_data("vda")),
        (c.OPT_INFO, NbdClient.info_data("")),
        (c.OPT_EXPORT_NAME, b"vda"),
        (c.OPT_SET_META_CONTEXT, NbdClient.meta_data("vda", ["base:allocation"])),
    ],
)
def test_who_asks_for_what_is_not_known_yet_is_hung_up_on_and_not_told_that_it_is_not_there(
    option: int, data: bytes
) -> None:
    machine = Negotiation({"vda": _Unknown("vda", 1 << 20)}, default_export="vda")
    run(machine, flags_bytes(), NbdClient.option_bytes(c.OPT_STRUCTURED_REPLY))
    assert run(machine, NbdClient.option_bytes(option, data)) == b""
    assert "could not be opened so far" in ended(machine).reason


def test_default_export() -> None:
    assert refusal(machine_after_flags(), option(c.OPT_GO, info(""))) == c.REP_ERR_UNKNOWN
    machine = machine_after_flags(default="log")
    replies = list(packets(run(machine, option(c.OPT_GO, info("", [c.INFO_NAME])))))
    assert replies[1].data == b"\0\1log"
    assert chosen(machine).export is LOG


def test_what_follows_go_is_handed_on() -> None:
    machine = machine_after_flags()
    run(machine, option(c.OPT_GO, info("vda")) + b"first request")
    assert chosen(machine).early == b"first request"


@pytest.mark.parametrize(("flags", "padding"), [(FIXED, 0), (c.FLAG_C_FIXED_NEWSTYLE, 124), (0, 124)])
def test_export_name(flags: int, padding: int) -> None:
    machine = machine_after_flags(flags=flags)
    reply = run(machine, option(c.OPT_EXPORT_NAME, b"vda"))
    assert len(reply) == 10 + padding
    size, transmission = struct.unpack(">QH", reply[:10])
    assert size == 1 << 20
    assert transmission & c.FLAG_SEND_WRITE_ZEROES
    assert not transmission & c.FLAG_SEND_DF  # structured replies were not negotiated
    assert reply[10:] == bytes(padding)
    chosen(machine)


@pytest.mark.parametrize(
    "name", [b"nothing", b"", b"v\0a", b"\xff", b"a" * 5000, b"a" * (OPTION_BYTES_MAX + 1)]
)
def test_export_name_cannot_be_refused_only_cut_off(name: bytes) -> None:
    machine = machine_after_flags()
    assert run(machine, option(c.OPT_EXPORT_NAME, name)) == b""
    assert not ended(machine).clean


def test_without_fixed_newstyle_there_is_only_export_name() -> None:
    machine = machine_after_flags(flags=0)
    assert run(machine, option(c.OPT_LIST)) == b""
    assert machine.outcome == Ended("option LIST without fixed newstyle", clean=False)


@pytest.mark.parametrize("data", [b"", b"ignored"])
def test_abort(data: bytes) -> None:
    machine = machine_after_flags()
    assert kinds(run(machine, option(c.OPT_ABORT, data))) == [c.REP_ACK]
    assert ended(machine).clean
    machine.feed(option(c.OPT_LIST))
    assert machine.step() is None


def test_list() -> None:
    replies = list(packets(run(machine_after_flags(), option(c.OPT_LIST))))
    assert replies == [
        (c.OPT_LIST, c.REP_SERVER, b"\0\0\0\3vdaa disk"),
        (c.OPT_LIST, c.REP_SERVER, b"\0\0\0\3log"),
        (c.OPT_LIST, c.REP_ACK, b""),
    ]


@pytest.mark.parametrize("number", [0, c.OPT_PEEK_EXPORT, c.OPT_EXTENDED_HEADERS, 12, 0xFFFFFFFF])
def test_unknown_options_are_unsupported(number: int) -> None:
    machine = machine_after_flags()
    assert refusal(machine, option(number, b"data")) == c.REP_ERR_UNSUP
    assert kinds(run(machine, option(c.OPT_GO, info("vda"))))[-1] == c.REP_ACK


@pytest.mark.parametrize(
    ("number", "data", "error"),
    [
        (c.OPT_LIST, b"x", c.REP_ERR_INVALID),
        (c.OPT_STRUCTURED_REPLY, b"x", c.REP_ERR_INVALID),
        (c.OPT_STARTTLS, b"x", c.REP_ERR_INVALID),
        (c.OPT_STARTTLS, b"", c.REP_ERR_POLICY),
        (c.OPT_GO, b"", c.REP_ERR_INVALID),
        (c.OPT_INFO, info("vda")[:-1], c.REP_ERR_INVALID),
        (c.OPT_GO, info("nothing"), c.REP_ERR_UNKNOWN),
        (c.OPT_INFO, info("\u2028" * 1300), c.REP_ERR_UNKNOWN),
        (c.OPT_LIST_META_CONTEXT, meta("vda"), c.REP_ERR_INVALID),  # structured replies come first
        (c.OPT_SET_META_CONTEXT, meta("vda", ["base:allocation"]), c.REP_ERR_INVALID),
    ],
)
def test_refusals(number: int, data: bytes, error: int) -> None:
    machine = machine_after_flags()
    assert refusal(machine, option(number, data)) == error
    assert machine.outcome is None
    assert kinds(run(machine, option(c.OPT_GO, info("vda"))))[-1] == c.REP_ACK


def test_the_text_of_a_refusal_is_short_whatever_the_name() -> None:
    (packet,) = packets(run(machine_after_flags(), option(c.OPT_INFO, info("\u2028" * 1300))))
    assert len(packet.data) <= 4 * MESSAGE_CHARS_MAX < c.STRING_BYTES_MAX


def test_bad_magic_ends_it() -> None:
    machine = machine_after_flags()
    assert run(machine, b"X" + option(c.OPT_LIST)) == b""
    assert "magic" in ended(machine).reason


# -- sizes and counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
def test_oversized_option_is_skipped_and_told(piece_bytes: int) -> None:
    machine = machine_after_flags()
    data = option(c.OPT_INFO, bytes(OPTION_BYTES_MAX + 1)) + option(c.OPT_LIST)
    pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]
    replies = kinds(run(machine, *pieces))
    assert replies == [c.REP_ERR_TOO_BIG, c.REP_SERVER, c.REP_SERVER, c.REP_ACK]


@pytest.mark.parametrize(
    ("number", "mode", "expected"),
    [
        (c.OPT_INFO, TlsMode.OFF, c.REP_ERR_TOO_BIG),
        (c.OPT_STARTTLS, TlsMode.REQUIRE, c.REP_ERR_TOO_BIG),
        (c.OPT_INFO, TlsMode.REQUIRE, c.REP_ERR_TLS_REQD),
        (99, TlsMode.OFF, c.REP_ERR_UNSUP),
        (c.OPT_ABORT, TlsMode.OFF, c.REP_ACK),
    ],
)
def test_what_an_oversized_option_is_told(number: int, mode: TlsMode, expected: int) -> None:
    machine = machine_after_flags(mode=mode)
    assert kinds(run(machine, option(number, bytes(OPTION_BYTES_MAX + 1)))) == [expected]


def test_option_of_the_largest_size_is_parsed() -> None:
    assert refusal(machine_after_flags(), option(c.OPT_LIST, bytes(OPTION_BYTES_MAX))) == c.REP_ERR_INVALID


@pytest.mark.parametrize("length", [OPTION_SKIP_BYTES_MAX + 1, 0xFFFFFFFF])
def test_absurd_option_ends_it(length: int) -> None:
    machine = machine_after_flags()
    assert run(machine, option(c.OPT_INFO, length=length)) == b""
    ended(machine)


def test_options_are_counted_over_tls_and_oversized_ones_too() -> None:
    machine = Negotiation(EXPORTS, options_max=4, tls_mode=TlsMode.ALLOW)
    run(machine, flags_bytes(), option(c.OPT_LIST), option(c.OPT_INFO, bytes(OPTION_BYTES_MAX + 1)))
    run(machine, option(c.OPT_STARTTLS))
    assert isinstance(machine.outcome, StartTls)
    machine = machine.after_tls()
    assert run(machine, option(c.OPT_LIST))
    assert run(machine, option(c.OPT_LIST)) == b""
    assert machine.outcome == Ended("too many options", clean=False)


def test_one_step_handles_one_option() -> None:
    machine = machine_after_flags()
    machine.feed(option(c.OPT_LIST) * 3)
    for _ in range(3):
        reply = machine.step()
        assert reply is not None
        assert kinds(reply) == [c.REP_SERVER, c.REP_SERVER, c.REP_ACK]
    assert machine.step() is None


# -- meta contexts -------------------------------------------------------------------------------------------


def structured_machine() -> Negotiation:
    machine = machine_after_flags()
    assert kinds(run(machine, option(c.OPT_STRUCTURED_REPLY))) == [c.REP_ACK]
    return machine


def names_of(data: bytes) -> list[tuple[int, str]]:
    replies = list(packets(data))
    assert replies[-1].kind == c.REP_ACK
    return [(struct.unpack(">I", packet.data[:4])[0], packet.data[4:].decode()) for packet in replies[:-1]]


def test_list_meta_contexts() -> None:
    machine = structured_machine()
    everything = [(0, "base:allocation"), (0, "pairsync:dirty")]
    assert names_of(run(machine, option(c.OPT_LIST_META_CONTEXT, meta("vda")))) == everything
    assert names_of(run(machine, option(c.OPT_LIST_META_CONTEXT, meta("vda", ["base:"])))) == everything[:1]
    some = [["pairsync:d"], ["pairsync:"], ["pairsync:dirty:"], ["pairsync:dirty"]]
    found = [names_of(run(machine, option(c.OPT_LIST_META_CONTEXT, meta("vda", each)))) for each in some]
    assert found == [[], everything[1:], [], everything[1:]]
    assert names_of(run(machine, option(c.OPT_LIST_META_CONTEXT, meta("vda", ["x-y:z"])))) == []
    assert refusal(machine, option(c.OPT_LIST_META_CONTEXT, meta("none"))) == c.REP_ERR_UNKNOWN
    assert refusal(machine, option(c.OPT_LIST_META_CONTEXT, meta("vda", ["base"]))) == c.REP_ERR_INVALID


def test_selected_contexts_are_for_that_export_only() -> None:
    selected = option(c.OPT_SET_META_CONTEXT, meta("vda", ["pairsync:dirty", "base:allocation"]))
    both = ((1, "base:allocation"), (2, "pairsync:dirty"))
    for name, contexts in [("vda", both), ("log", ())]:
        machine = structured_machine()
        assert tuple(names_of(run(machine, selected))) == both
        run(machine, option(c.OPT_GO, info(name)))
        chosen(machine)
        assert chosen(machine).structured
        assert chosen(machine).contexts == contexts


@pytest.mark.parametrize("second", [meta("vda"), meta("vda", ["base"]), meta("none", ["base:allocation"])])
def test_a_second_selection_replaces_the_first_even_if_it_fails(second: bytes) -> None:
    machine = structured_machine()
    run(machine, option(c.OPT_SET_META_CONTEXT, meta("vda", ["base:allocation"])))
    run(machine, option(c.OPT_SET_META_CONTEXT, second))
    run(machine, option(c.OPT_GO, info("vda")))
    assert chosen(machine).contexts == ()


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [TlsMode.ALLOW, TlsMode.REQUIRE])
def test_starttls_forgets_everything(mode: TlsMode) -> None:
    """CVE-2021-3716: nothing that was said in plain text counts, nothing behind STARTTLS is looked at."""
    machine = machine_after_flags(mode=mode)
    run(machine, option(c.OPT_STRUCTURED_REPLY))
    run(machine, option(c.OPT_SET_META_CONTEXT, meta("vda", ["base:allocation"])))
    injected = option(c.OPT_STRUCTURED_REPLY) + option(c.OPT_GO, info("vda"))
    assert kinds(run(machine, option(c.OPT_STARTTLS) + injected)) == [c.REP_ACK]
    assert machine.outcome == StartTls(len(injected))
    machine.feed(injected)
    assert machine.step() is None

    machine = machine.after_tls()
    assert machine.step() is None
    assert refusal(machine, option(c.OPT_STARTTLS)) == c.REP_ERR_INVALID
    run(machine, option(c.OPT_GO, info("vda")))
    assert machine.outcome == Chosen(DISK, structured=False, contexts=(), early=b"")


def test_required_tls_says_nothing_before() -> None:
    numbers = set(range(14)) - {c.OPT_EXPORT_NAME, c.OPT_ABORT, c.OPT_STARTTLS}
    for number in numbers:
        machine = machine_after_flags(mode=TlsMode.REQUIRE)
        assert refusal(machine, option(number, info("vda"))) == c.REP_ERR_TLS_REQD
    machine = machine_after_flags(mode=TlsMode.REQUIRE)
    assert run(machine, option(c.OPT_EXPORT_NAME, b"vda")) == b""
    ended(machine)
    machine = machine_after_flags(mode=TlsMode.REQUIRE)
    assert kinds(run(machine, option(c.OPT_ABORT))) == [c.REP_ACK]


def test_allowed_tls_is_the_clients_choice() -> None:
    machine = machine_after_flags(mode=TlsMode.ALLOW)
    run(machine, option(c.OPT_GO, info("vda")))
    chosen(machine)


def test_shutting_down() -> None:
    machine = machine_after_flags()
    machine.shutting_down = True
    for number in set(range(14)) - {c.OPT_EXPORT_NAME, c.OPT_ABORT}:
        assert refusal(machine, option(number)) == c.REP_ERR_SHUTDOWN
    assert kinds(run(machine, option(c.OPT_ABORT))) == [c.REP_ACK]
    machine = machine_after_flags()
    machine.shutting_down = True
    assert run(machine, option(c.OPT_EXPORT_NAME, b"vda")) == b""
    ended(machine)


# -- any bytes, in any pieces --------------------------------------------------------------------------------

some_name = st.sampled_from(["vda", "log", "none", ""])
some_option = st.one_of(
    st.builds(option, st.integers(0, 12), st.binary(max_size=24)),
    st.builds(
        lambda number, name, wanted: option(number, info(name, wanted)),
        st.sampled_from([c.OPT_INFO, c.OPT_GO]),
        some_name,
        st.lists(st.integers(0, 5), max_size=3),
    ),
    st.builds(
        lambda number, name, queries: option(number, meta(name, queries)),
        st.sampled_from([c.OPT_LIST_META_CONTEXT, c.OPT_SET_META_CONTEXT]),
        some_name,
        st.lists(st.sampled_from(["base:", "base:allocation", "pairsync:dirty", "bad"]), max_size=3),
    ),
    st.sampled_from([option(c.OPT_STRUCTURED_REPLY), option(c.OPT_STARTTLS), option(c.OPT_LIST)]),
    st.builds(lambda extra: option(c.OPT_LIST, bytes(OPTION_BYTES_MAX + extra)), st.integers(1, 9)),
    st.binary(max_size=40),
)
some_bytes = st.builds(
    lambda flags, options: flags_bytes(flags) + b"".join(options),
    st.sampled_from([FIXED, 0, 1, 4]),
    st.lists(some_option, max_size=8),
)


def conversation(data: bytes, sizes: list[int], mode: TlsMode) -> tuple[bytes, object]:
    """Replies and outcome when the data comes in pieces of these sizes, in turn."""
    machine = Negotiation(EXPORTS, tls_mode=mode, options_max=6)
    out, position, turn, shortest = b"", 0, 0, len(data) // PIECES_MAX
    while position < len(data) and machine.outcome is None:
        size = max(shortest, sizes[turn % len(sizes)])
        out += run(machine, data[position : position + size])
        position, turn = position + size, turn + 1
    outcome = machine.outcome
    if isinstance(outcome, Chosen):
        return out, (outcome.export, outcome.structured, outcome.contexts, outcome.early + data[position:])
    return out, type(outcome) if isinstance(outcome, StartTls) else outcome


@given(
    data=some_bytes,
    sizes=st.lists(st.integers(1, 70000), min_size=1, max_size=5),
    mode=st.sampled_from(TlsMode),
)
def test_any_bytes_in_any_pieces(data: bytes, sizes: list[int], mode: TlsMode) -> None:
    """The same conversation whatever the pieces, and nothing but replies and an outcome."""
    whole = conversation(data, [max(1, len(data))], mode)
    assert conversation(data, sizes, mode) == whole


@given(data=some_bytes)
def test_byte_by_byte(data: bytes) -> None:
    data = data[:2000]
    assert conversation(data, [1], TlsMode.ALLOW) == conversation(data, [max(1, len(data))], TlsMode.ALLOW)
