"""The header is stored when it changes, and one that claims less in both slots."""

from __future__ import annotations

from pairsync.storage.digestfile import Header, decode_header, encode_header, header_slots
from pairsync.storage.digestheader import HeaderKeeper
from pairsync.testing.disks import SimMedium

SIZE = 64 * 4096
FIRST = Header(b"v" * 16, SIZE, 64, 3, settled=True)


def kept() -> tuple[SimMedium, HeaderKeeper]:
    medium = SimMedium()
    medium.create("table", 8192)
    slots = header_slots(medium.open("table"))
    slots.format(encode_header(FIRST))
    slots.load()
    return medium, HeaderKeeper(slots, FIRST, whole=True)


def stored(medium: SimMedium) -> Header:
    medium.process_crash()
    payload, _ = header_slots(medium.open("table")).load()
    return decode_header(payload)


def test_what_is_stored_already_is_not_written() -> None:
    medium, keeper = kept()
    step = medium.step
    keeper.store(SIZE, 64)
    assert medium.step == step
    keeper.store(SIZE, 64, 4)
    assert medium.step > step
    assert keeper.milestone == 4
    assert stored(medium) == FIRST._replace(milestone=4)


def test_a_header_that_claims_less_survives_the_loss_of_either_slot() -> None:
    for lost in (0, 4096):
        medium, keeper = kept()
        keeper.store(SIZE, 7)
        medium.process_crash()
        medium.damage("table", lost + 40, 1)
        payload, _ = header_slots(medium.open("table")).load()
        assert decode_header(payload).known_below == 7


def test_whether_it_is_settled_is_stored_with_the_next() -> None:
    medium, keeper = kept()
    keeper.settled = False
    keeper.store(SIZE, 64)
    assert not stored(medium).settled
