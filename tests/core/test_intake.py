"""What a standby holds for its disk is bounded, and no honest peer comes near the bounds."""

from __future__ import annotations

import pytest

from pairsync.core.intake import UNAPPLIED_OPS_MAX, Intake
from pairsync.core.limits import UNAPPLIED_BYTES_MAX
from pairsync.core.window import OPS_MAX
from pairsync.errors import ProtocolError


def test_it_takes_up_to_its_bounds_and_not_a_byte_or_a_range_more() -> None:
    intake = Intake()
    intake.take(UNAPPLIED_BYTES_MAX, UNAPPLIED_OPS_MAX)
    with pytest.raises(ProtocolError, match="more than 1024 MiB of data that was not applied"):
        intake.take(1, 0)
    with pytest.raises(ProtocolError, match="more than 262144 ranges that were not applied"):
        intake.take(0, 1)
    intake.give_back(1, 1)
    intake.take(1, 1)


def test_what_is_refused_is_not_counted() -> None:
    intake = Intake()
    for data_bytes, op_count in ((UNAPPLIED_BYTES_MAX + 1, 1), (1, UNAPPLIED_OPS_MAX + 1)):
        with pytest.raises(ProtocolError):
            intake.take(data_bytes, op_count)
    assert (intake.data_bytes, intake.op_count) == (0, 0)


def test_there_is_room_for_four_times_what_an_active_host_stops_at() -> None:
    assert UNAPPLIED_OPS_MAX == 4 * OPS_MAX
