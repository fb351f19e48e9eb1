"""Data of options and their replies, by bytes written out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.nbd import constants as c
from pairsync.nbd import options
from pairsync.nbd.options import OptionError


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_export_request() -> None:
    data = b"\0\0\0\3vda" + b"\0\2" + b"\0\3" + b"\0\1"
    assert options.parse_export_request(data) == ("vda", frozenset({c.INFO_NAME, c.INFO_BLOCK_SIZE}))
    assert options.parse_export_request(b"\0\0\0\0\0\0") == ("", frozenset())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "length of the export name"),
        (b"\0\0\0\4vda", "inside the export name"),
        (b"\xff\xff\xff\xffvda\0\0", "inside the export name"),
        (b"\0\0\0\3vda", "number of information requests"),
        (b"\0\0\0\3vda\0\2\0\1", "information requests"),
        (b"\0\0\0\3vda\0\0x", "bytes follow"),
        (b"\0\0\0\3v\0a\0\0", "NUL"),
        (b"\0\0\0\2\xff\xfe\0\0", "UTF-8"),
        (b"\0\0\x10\1" + b"a" * 4097 + b"\0\0", "4097 bytes"),
    ],
)
def test_malformed_export_request(data: bytes, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options.parse_export_request(data)


def test_meta_request() -> None:
    data = b"\0\0\0\1d" + _u32(2) + _u32(5) + b"base:" + _u32(3) + b"x:y"
    assert options.parse_meta_request(data) == ("d", ("base:", "x:y"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0\1d", "number of queries"),
        (b"\0\0\0\1d" + _u32(0xFFFFFFFF), "do not fit"),
        (b"\0\0\0\1d" + _u32(1) + _u32(9) + b"base:", "inside the query"),
        (b"\0\0\0\1d" + _u32(1) + _u32(4) + b"base", "no namespace"),
        (b"\0\0\0\1d" + _u32(1) + _u32(5) + b"base:x", "bytes follow"),
        (b"\0\0\0\1d" + _u32(2) + _u32(5) + b"a:bcd", "length of a query"),
    ],
)
def test_malformed_meta_request(data: bytes, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options.parse_meta_request(data)


@given(data=st.binary(max_size=200))
def test_arbitrary_data_parses_or_is_refused(data: bytes) -> None:
    for parse in (options.parse_export_request, options.parse_meta_request):
        try:
            parse(data)
        except OptionError:
            continue


def test_replies() -> None:
    assert options.option_reply(c.OPT_GO, c.REP_ACK) == bytes.fromhex(
        "0003e889045565a9000000070000000100000000"
    )
    assert options.option_reply(1, c.REP_ERR_UNSUP, b"no")[8:] == bytes.fromhex(
        "00000001 80000001 00000002 6e6f"
    )
    assert options.server_entry("ä", "text") == b"\0\0\0\2" + "ä".encode() + b"text"
    assert options.info_export(0x1234, 0xABC) == bytes.fromhex("0000 0000000000001234 0abc")
    assert options.info_text(c.INFO_NAME, "vda") == b"\0\1vda"
    assert options.info_block_size() == bytes.fromhex("0003 00000001 00001000 02000000")


def test_transmission_flags() -> None:
    names = ("FLUSH", "FUA", "TRIM", "WRITE_ZEROES", "DF", "CACHE", "FAST_ZERO")

    def names_in(flags: int) -> set[str]:
        assert flags & c.FLAG_HAS_FLAGS
        assert flags & c.FLAG_CAN_MULTI_CONN
        return {name for name in names if flags & getattr(c, f"FLAG_SEND_{name}")}

    assert names_in(options.transmission_flags(read_only=False, structured=True)) == set(names)
    assert names_in(options.transmission_flags(read_only=False, structured=False)) == set(names) - {"DF"}
    read_only = options.transmission_flags(read_only=True, structured=True)
    assert read_only & c.FLAG_READ_ONLY
    assert names_in(read_only) == {"FLUSH", "FUA", "DF", "CACHE"}


@pytest.mark.parametrize(
    ("queries", "listed", "selected"),
    [
        (["base:allocation"], ["base:allocation"], ["base:allocation"]),
        (["pairsync:dirty", "base:allocation"], ["base:allocation", "pairsync:dirty"],
         ["base:allocation", "pairsync:dirty"]),
        (["base:"], ["base:allocation"], []),
        (["pairsync:", "base:nothing"], ["pairsync:dirty"], []),
        (["qemu:dirty-bitmap:x", "other:"], [], []),
        (["base:allocation", "base:allocation"], ["base:allocation"], ["base:allocation"]),
    ],
)  # fmt: skip
def test_matching_contexts(queries: list[str], listed: list[str], selected: list[str]) -> None:
    available = ("base:allocation", "pairsync:dirty")
    assert options.matching_contexts(available, queries, wildcards=True) == listed
    assert options.matching_contexts(available, queries, wildcards=False) == selected
