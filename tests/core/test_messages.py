"""The vocabulary: frozen, ordered where order means something, described tersely."""

from __future__ import annotations

import dataclasses

import pytest

from pairsync.core import messages
from pairsync.core.messages import Condition, Generation, OpKind, Role, SyncMode, WriteOp


def test_every_message_is_frozen() -> None:
    kinds = [kind for kind in vars(messages).values() if dataclasses.is_dataclass(kind)]
    assert len(kinds) >= 13
    assert all(issubclass(kind, tuple) for kind in (messages.Write, messages.Applied, messages.Relay))
    for kind in kinds:
        assert isinstance(kind, type)
        assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]
        assert "__slots__" in vars(kind), kind


def test_a_plan_that_copies_more_is_greater() -> None:
    """A standby accepts no less than what it found itself: `VolumeTarget.begin` compares."""
    assert SyncMode.NOTHING < SyncMode.INCREMENTAL < SyncMode.FULL


def test_numbers_on_the_wire_stay_what_they_are() -> None:
    assert [(role.name, role.value) for role in Role] == [("STANDBY", 0), ("ACTIVE", 1)]
    assert [c.value for c in (Condition.BLANK, Condition.CONSISTENT, Condition.SYNCING)] == [0, 1, 2]
    assert [k.value for k in (OpKind.DATA, OpKind.ZERO, OpKind.TRIM, OpKind.ZERO_ALLOCATE)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("generation", "text"),
    [
        (Generation(1, 4, 0x9F), "1.4/9f"),
        (Generation(12, 1, 0xABCDEF0123456702), "12.1/02"),
        (Generation(0, 0, 0), "0.0/00"),
    ],
)
def test_a_generation_is_described_tersely(generation: Generation, text: str) -> None:
    assert generation.describe() == text


def test_an_op_carries_no_data_and_forces_nothing_unless_told() -> None:
    op = WriteOp(OpKind.ZERO, 0, 4096)
    assert op.data is None
    assert not op.fua
