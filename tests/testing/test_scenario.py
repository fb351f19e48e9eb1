"""The language of transcripts: what is said of each effect and message, and what is not understood."""

from __future__ import annotations

import typing

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import (
    Apply,
    AskAlone,
    Complete,
    DiskFailed,
    DropPoints,
    DropSession,
    Effect,
    Emit,
    Examine,
    Extend,
    Flush,
    Journal,
    MakePoint,
    MapAllocation,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.events import PeerEvent
from pairsync.core.messages import (
    Adopt,
    Adopted,
    Applied,
    Barrier,
    BarrierDone,
    Begin,
    Begun,
    Failed,
    Fetch,
    Generation,
    Grow,
    Grown,
    Introduce,
    KeepOnly,
    Leave,
    Marked,
    Message,
    OpKind,
    PointMark,
    Proof,
    Prove,
    Relay,
    Relayed,
    RelayFlush,
    RelayRead,
    Remember,
    Remembered,
    Role,
    Serving,
    SyncMode,
    Unfetched,
    VolumePlan,
    Write,
    WriteOp,
)
from pairsync.core.stream import Renew
from pairsync.core.units import MIB, Extent
from pairsync.errors import ConfigError
from pairsync.testing.describe import describe_effect, describe_message
from pairsync.testing.manual import blank_superblock
from pairsync.testing.scenario import run_scenario

GENERATION = Generation(1, 2, 0x03)
OPS = [WriteOp(OpKind.DATA, 4096, 8192, bytes(8192), fua=True), WriteOp(OpKind.TRIM, 100, 5)]

MESSAGES: list[tuple[Message, str]] = [
    (Introduce(b"", "g", Role.STANDBY, 4, ()), "Introduce standby term 4: "),
    (Begin(1, 0, VolumePlan(SyncMode.FULL, "blank", GENERATION)), "Begin full (blank) to 1.2/03"),
    (Begun(2), "Begun volume 2"),
    (Marked(0, ((1, 2), (5, 9))), "Marked 1..2 5..9"),
    (Write(1, 0, 7, False, OPS), "Write 7: data 1..3 fua, trim @100+5"),
    (Write(1, 3, 7, True, OPS[:1]), "Write volume 3 7 resync: data 1..3 fua"),
    (Applied(0, 7), "Applied 7"),
    (Barrier(1, 0, 3), "Barrier 3"),
    (BarrierDone(0, 3), "BarrierDone 3"),
    (Prove(1, 0, 4, 1, 0, 7, read=False), "Prove level 1: 0..7"),
    (Proof(0, 4, bytes(56)), "Proof"),
    (Fetch(1, 0, 4, ((1, 2), (5, 9))), "Fetch 4: 1..2 5..9"),
    (Unfetched(0, 4, 5), "Unfetched 4: EIO"),
    (Remember(1, 0, PointMark("monday", 7, 0)), "Remember monday"),
    (Remembered(0, 7, 28), "Remembered ENOSPC"),
    (KeepOnly(1, 0, (7, 8)), "KeepOnly none but 2"),
    (Grow(1, 0, 8192), "Grow to 8192 bytes"),
    (Grown(0, 8192), "Grown to 8192 bytes: ok"),
    (Grown(0, 8192, 28), "Grown to 8192 bytes: ENOSPC"),
    (Adopt(1, 0, (GENERATION, Generation(1, 1, 2))), "Adopt 1.2/03<1.1/02"),
    (Adopted(0, GENERATION), "Adopted 1.2/03"),
    (Failed(0, 5, "a write failed: EIO"), "Failed: a write failed: EIO"),
    (Leave("diverged"), "Leave: diverged"),
    (Renew("a new role"), "Renew: a new role"),
    (Serving(3, serves=True), "Serving term 3: yes"),
    (Serving(3, serves=False), "Serving term 3: no"),
    (Relay(3, 1, 7, OPS), "Relay volume 1 7: data 1..3 fua, trim @100+5"),
    (RelayRead(3, 0, 8, 4096, 100), "RelayRead 8: @4096+100"),
    (RelayFlush(3, 0, 9), "RelayFlush 9"),
    (Relayed(9), "Relayed 9: ok"),
    (Relayed(9, (0, 5)), "Relayed 9: ok EIO"),
]


@pytest.mark.parametrize(("message", "text"), MESSAGES, ids=lambda value: type(value).__name__)
def test_a_message_is_one_line(message: Message, text: str) -> None:
    assert describe_message(message) == text


def test_every_message_is_described() -> None:
    assert {type(message) for message, _ in MESSAGES} == set(typing.get_args(Message))


def page() -> bytes:
    marked = DirtyMap(100)
    marked.mark(3, 5)
    return marked.page_bytes(0)


EFFECTS: list[tuple[Effect, list[str]]] = [
    (Journal(0, None, 1, 3, [Extent(1, 2), Extent(5, 9)]), ["journal generation 3: 1..2 5..9"]),
    (Apply(1, None, OPS[:1]), ["apply volume 1 data 1..3 fua"]),
    (Read(0, 4, [Extent(1, 9), Extent(12, 13)], MIB), ["read 1..9 12..13"]),
    (Examine(0, None, 2, 0, 1, read=False), ["digests level 2: 0..1"]),
    (Extend(0, None, 8192), ["room for 8192 bytes"]),
    (Flush(0, None), ["flush"]),
    (SavePages(0, None, {}), ["save nothing"]),
    (SavePages(0, None, {2: page()}, (1,)), ["save page 2 2[3..5], release segment 1"]),
    (Persist(0, None, blank_superblock("vda", 4096)), ["persist term 0, blank, -, map since -, clean"]),
    (MapAllocation(0, None), ["find what is allocated"]),
    (AskAlone(), ["ask whether to go on alone"]),
    (MakePoint(0, None, PointMark("monday", 7, 0)), ["points: monday"]),
    (DropPoints(1, None, (7,)), ["points volume 1: none but 1"]),
    (Send([Applied(0, 1), Applied(0, 2)]), ["-> Applied 1", "-> Applied 2"]),
    (Complete("w1", None), ["done w1: ok"]),
    (Complete("w1", [0, 5]), ["done w1: ok EIO"]),
    (AskAlone(), ["ask whether to go on alone"]),
    (DiskFailed(0, "a write failed: EIO"), ["the disk failed: a write failed: EIO"]),
    (DropSession("enough", refused=True), ["drop the session: enough"]),
    (Emit(PeerEvent(connected=False, reason="cut")), ["! peer lost: cut"]),
]


@pytest.mark.parametrize(("effect", "lines"), EFFECTS, ids=lambda value: type(value).__name__)
def test_an_effect_is_a_line_or_one_a_message(effect: Effect, lines: list[str]) -> None:
    assert describe_effect(effect) == lines


def test_every_effect_is_described() -> None:
    assert {type(effect) for effect, _ in EFFECTS} == set(typing.get_args(Effect))


# -- commands ------------------------------------------------------------------------------------------------


def test_output_is_replaced_and_all_else_kept() -> None:
    text = "# A story\n# of two lines.\n\npair blocks=4\n----\nold\n\nsettle quiet\n\ncheck\n"
    expected = (
        "# A story\n# of two lines.\n\n"
        "pair blocks=4\n----\n"
        "a: persist term 1, consistent, 1.1/01, map since 1.1/01\n"
        "a: save release segment 0, release segment 1\n"
        "b: persist term 0, blank, -, map since -, clean\n\n"
        "settle quiet\n----\n\n"
        "check\n----\nvda: equal\n"
    )
    assert run_scenario(text) == expected
    assert run_scenario(expected) == expected


def test_several_volumes_errors_and_hosts_that_are_down() -> None:
    story = """
pair blocks=4 volumes=2

settle

write w1 volume=1 keep 1

do a meta volume=1

do a disk volume=1 EIO

crash b

status

start b

powercut a

check
"""
    found = run_scenario(story)
    assert "a: journal volume 1 generation 1: 1..2" in found
    assert "a: apply volume 1 keep 1..2" in found
    assert "a: done w1: EIO" in found
    assert "b: down" in found
    assert "vdb: equal" in found


def test_a_difference_that_the_dirty_map_does_not_show_is_told() -> None:
    story = """
pair blocks=4 intent_window_bytes=4M flush_after_ns=500ms

settle

write w1 data 1..3

run a

tick 500ms

run a

start_over
"""
    with pytest.raises(ConfigError, match="no command is called 'start_over'"):
        run_scenario(story)
    swapped = story.replace("start_over", "crash a\n\ncrash b\n\nstart b active 2\n\nsettle\n\ncheck")
    assert "vda: block 1 is not in the active host's dirty map" in run_scenario(swapped)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("settle", "begins with 'pair'"),
        ("pair colour=red", "no option of a volume is called 'colour'"),
        ("pair lag_ns=5", "'5' is no duration"),
        ("pair lag_bytes=1K", "lag_bytes 1024"),
        ("pair\n\nwrite w1 paint 3", "'paint 3' is no write"),
        ("pair\n\nwrite w1 data 3 soon", "'data 3 soon' is no write"),
        ("pair\n\ndo a brain", "no lane is called 'brain'"),
        ("pair\n\ndo a meta EPAPER", "no error is called 'EPAPER'"),
        ("pair blocks=many", "invalid literal"),
        ("pair\n\ntick", "words are missing"),
        ("pair\n\ncrash a\n\nwrite w1 data 1", "no active host is up"),
        ("pair\nb", "one command, '----', and its output"),
        ("pair\n\ndeliver c", "no host is called 'c'"),
    ],
)
def test_what_is_not_understood_is_named(command: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        run_scenario(command)
