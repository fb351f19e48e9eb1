"""Strategies for every message of `core.messages`, derived from its own types, so that none is forgotten."""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Any

import pytest
from hypothesis import strategies as st

from pairsync.core import messages
from pairsync.core.messages import Message, OpKind, PointMark, Relay, Write, WriteOp
from pairsync.core.questions import LEVEL_TOP
from pairsync.core.units import VOLUME_BYTES_MAX
from pairsync.wire.limits import (
    FRAME_PAYLOAD_BYTES_MAX,
    NUMBER_MAX,
    OP_BYTES_MAX,
    REASON_BYTES_MAX,
    VOLUMES_MAX,
)

NUMBERS = st.one_of(st.integers(0, 5), st.integers(0, NUMBER_MAX))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
SPECIAL = {
    "size_bytes": st.integers(1, VOLUME_BYTES_MAX),
    "volume": st.integers(0, VOLUMES_MAX - 1),
    "errno": st.integers(0, 0xFFFF),
    "errnos": st.lists(st.integers(0, 0xFFFF), max_size=3).map(tuple),
    "length": st.integers(1, FRAME_PAYLOAD_BYTES_MAX),
    "tag": st.integers(0, (1 << 64) - 1),
    "extents": st.lists(st.tuples(st.integers(0, 1000), st.integers(1001, NUMBER_MAX)), max_size=5).map(
        tuple
    ),
    "number": st.integers(1, NUMBER_MAX),
    "level": st.integers(0, LEVEL_TOP),
    "mark": st.builds(
        PointMark,
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        st.integers(0, (1 << 64) - 1),
        NUMBERS,
    ),
    "reason": st.text(st.characters(codec="utf-8"), max_size=REASON_BYTES_MAX // 4),
}


def _strategy(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if name in SPECIAL:
        return SPECIAL[name]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(_strategy("", arguments[0]), max_size=3).map(tuple)
    if type(None) in arguments:
        inner = next(argument for argument in arguments if argument is not type(None))
        return st.none() | _strategy(name, inner)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(list(hint))
    if hint is int:
        return NUMBERS
    if hint is bool:
        return st.booleans()
    if hint is str:
        return TEXTS
    if hint is bytes:
        return st.binary(min_size=16, max_size=16)
    return _whole(hint)


def _whole(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    else:
        names = list(kind._fields)
    return st.builds(kind, **{name: _strategy(name, hints[name]) for name in names})


@st.composite
def write_ops(draw: st.DrawFn) -> WriteOp:
    kind = draw(st.sampled_from(OpKind))
    fua = draw(st.booleans())
    if kind is OpKind.DATA:
        data = draw(st.binary(min_size=1, max_size=64))
        return WriteOp(kind, draw(st.integers(0, NUMBER_MAX - 64)), len(data), data, fua)
    length = draw(st.integers(1, OP_BYTES_MAX))
    return WriteOp(kind, draw(st.integers(0, NUMBER_MAX - length)), length, None, fua)


def writes() -> st.SearchStrategy[Write]:
    return st.builds(
        Write,
        term=NUMBERS,
        volume=SPECIAL["volume"],
        number=SPECIAL["number"],
        resync=st.booleans(),
        ops=st.lists(write_ops(), min_size=1, max_size=12),
        digest=st.just(0),
    )


def relays() -> st.SearchStrategy[Relay]:
    return st.builds(
        Relay,
        term=NUMBERS,
        volume=SPECIAL["volume"],
        number=SPECIAL["number"],
        ops=st.lists(write_ops(), min_size=1, max_size=12),
        digest=st.just(0),
    )


def message_kinds() -> tuple[type[Any], ...]:
    return typing.get_args(messages.Message)


def any_message() -> st.SearchStrategy[Message]:
    made: dict[Any, st.SearchStrategy[Any]] = {Write: writes(), Relay: relays()}
    return st.one_of([made[kind] if kind in made else _whole(kind) for kind in message_kinds()])


@pytest.fixture(scope="session")
def messages_strategy() -> st.SearchStrategy[Message]:
    return any_message()


@pytest.fixture(scope="session")
def kinds() -> tuple[type[Any], ...]:
    return message_kinds()
