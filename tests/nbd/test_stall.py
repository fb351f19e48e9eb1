"""When a client has stopped in the middle: looks without progress are counted, each kind for itself."""

from __future__ import annotations

import pytest

from pairsync.nbd.stall import LOOKS_CROWDED_MAX, LOOKS_MAX, Stall

REQUEST, REPLIES = "stopped in the middle of a request", "stopped taking replies"


def look(
    stall: Stall,
    *,
    unfinished: bool = False,
    handled: int = 7,
    unsent: bool = False,
    sends: int = 3,
    crowded: bool = False,
) -> str | None:
    return stall.look(unfinished=unfinished, handled=handled, unsent=unsent, sends=sends, crowded=crowded)


@pytest.mark.parametrize("kind", [REQUEST, REPLIES])
@pytest.mark.parametrize("crowded", [True, False])
def test_after_so_many_looks(kind: str, crowded: bool) -> None:
    stall = Stall()
    look(stall)
    looks = 0
    while (why := look(stall, unfinished=kind == REQUEST, unsent=kind == REPLIES, crowded=crowded)) is None:
        looks += 1
    assert why == kind
    assert looks == (LOOKS_CROWDED_MAX if crowded else LOOKS_MAX)


def test_silence_is_for_ever() -> None:
    stall = Stall()
    assert not any(look(stall, crowded=True) for _ in range(10 * LOOKS_MAX))


def test_any_progress_begins_anew() -> None:
    stall = Stall()
    for round_ in range(5):
        for _ in range(LOOKS_MAX):
            assert look(stall, unfinished=True, handled=round_, unsent=True, sends=round_) is None
    assert look(stall, handled=4, unsent=True, sends=5) is None  # the request is whole, a reply went
    for _ in range(LOOKS_MAX):
        assert look(stall, unfinished=True, handled=4, sends=5) is None
    assert look(stall, unfinished=True, handled=4, sends=5) == REQUEST


def test_one_kind_does_not_excuse_the_other() -> None:
    stall = Stall()
    whys = [look(stall, unfinished=True, unsent=True, sends=number) for number in range(LOOKS_MAX + 2)]
    assert whys[-1] == REQUEST
    assert not any(whys[:-2])


def test_when_the_memory_is_needed_what_has_passed_counts() -> None:
    stall = Stall()
    for _ in range(LOOKS_CROWDED_MAX + 2):
        assert look(stall, unfinished=True) is None
    assert look(stall, unfinished=True, crowded=True) == REQUEST
