"""The judges of what a guest was told, against a search through all orders."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from pairsync.testing.grantsim import Floors, Operation, Registers, first_nonlinear

NEVER = 1 << 62


def _by_search(operations: list[Operation]) -> bool:
    """Whether any order of them keeps real time and reads what was written last; unfinished ones may drop."""
    pending = [each for each in operations if each.write and each.end == NEVER]
    done = [each for each in operations if each not in pending]
    for subset in range(1 << len(pending)):
        chosen = done + [each for bit, each in enumerate(pending) if subset >> bit & 1]
        if any(_legal(order) for order in permutations(chosen)):
            return True
    return False


def _legal(order: tuple[Operation, ...]) -> bool:
    held = 0
    for at, each in enumerate(order):
        if any(later.end < each.begin for later in order[at + 1 :]):
            return False
        if each.write:
            held = each.value
        elif each.value != held:
            return False
    return True


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Up to five operations, every moment its own, every write another value."""
    count = draw(st.integers(1, 5))
    moments = draw(st.permutations(range(2 * count)))
    operations, value = [], 0
    for number in range(count):
        begin, end = sorted(moments[2 * number : 2 * number + 2])
        if draw(st.booleans()):
            value += 1
            operations.append(Operation(value, begin, draw(st.sampled_from([end, end, NEVER])), write=True))
        else:
            operations.append(Operation(draw(st.integers(0, 3)), begin, end, write=False))
    return operations


@given(histories())
def test_zones_find_what_a_search_finds(operations: list[Operation]) -> None:
    assert (first_nonlinear(operations, 0) is None) == _by_search(operations)


def test_a_write_that_was_undone_must_not_be_read_again() -> None:
    registers = Registers([0])
    registers.write_begins(1, 0, 1, 1)
    registers.write_ends(1, 0, 1, 2, acknowledged=False)
    registers.write_begins(2, 0, 1, 3)
    registers.write_ends(2, 0, 1, 4, acknowledged=True)
    registers.read(0, [2], 5, 6)
    assert registers.first_wrong() is None
    registers.read(0, [1], 7, 8)
    assert "sector 0" in str(registers.first_wrong())


def test_a_read_beside_a_write_that_is_never_acknowledged_proves_nothing() -> None:
    registers = Registers([0])
    registers.write_begins(1, 0, 1, 1)
    registers.read(0, [1], 2, 3)
    registers.write_ends(1, 0, 1, 4, acknowledged=False)
    registers.read(0, [0], 5, 6)
    assert registers.first_wrong() is None


def test_floors() -> None:
    floors = Floors([0, 0])
    floors.begins(1, 0, 2)
    assert floors.first_wrong([1, 0], 0, floors.owed) is None, "it may be there, or not"
    floors.ends(1, 5, 6, acknowledged=True)
    assert floors.first_wrong([1, 1], 0, floors.owed) is None
    assert "sector 1" in str(floors.first_wrong([1, 0], 0, floors.owed))
    floors.begins(2, 1, 2)
    assert "sector 0" in str(floors.first_wrong([2, 2], 0, floors.owed)), "it was never written there"
    floors.ends(2, 7, 8, acknowledged=True)
    assert "sector 1" in str(floors.first_wrong([1, 1], 0, floors.owed))
