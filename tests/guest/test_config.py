"""What a guest is told is checked as a whole, and what volumes share is divided."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pairsync.core.copier import READY_OPS
from pairsync.core.intake import UNAPPLIED_OPS_MAX
from pairsync.core.limits import UNAPPLIED_BYTES_MAX, VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.resync import PIECE_BYTES, RUNS_PER_READ_MAX
from pairsync.core.units import MIB
from pairsync.core.window import FRAME_OPS_MAX, OPS_MAX
from pairsync.errors import ConfigError
from pairsync.guest.config import PART_BYTES_MAX, VOLUMES_MAX, GuestConfig, VolumeConfig
from pairsync.io.config import WINDOW_BYTES, WINDOW_BYTES_MAX, LinkConfig
from pairsync.io.keys import make_identity

PAIR = b"p" * 16


def _volumes(count: int, **options: Any) -> list[VolumeConfig]:
    return [VolumeConfig(f"v{number}", "x.img", VolumeOptions(**options)) for number in range(count)]


def _link(pair_id: bytes = PAIR) -> LinkConfig:
    identity = make_identity()
    return LinkConfig(identity=identity, peer_certificate_pem=identity.certificate_pem, pair_id=pair_id)


def _guest(count: int = 1, **more: Any) -> GuestConfig:
    settings = {"pair_id": PAIR, "role": Role.ACTIVE, "volumes": _volumes(count), **more}
    return GuestConfig("db1", **settings)


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"pair_id": b"short"}, "a pair id has 16 bytes, not 5"),
        ({"pair_id": "p" * 16}, "a pair id is of bytes, not str"),
        ({"role": "active"}, "guest 'db1': its role is a pairsync.Role, not 'active'"),
        ({"volumes": []}, "guest 'db1' has 0 volumes; 1 to 64 may be"),
        ({"volumes": _volumes(VOLUMES_MAX + 1)}, "guest 'db1' has 65 volumes"),
        ({"volumes": _volumes(1) + _volumes(1)}, "two volumes of the same name"),
        ({"term": 0}, "term 0: an active host needs 1 or more"),
        ({"term": -1, "role": Role.STANDBY}, "term -1"),
        ({"link": _link(b"q" * 16)}, "guest 'db1' and its link belong to different pairs"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], finding: str) -> None:
    with pytest.raises(ConfigError, match=finding):
        _guest(**settings).check()


def test_what_can_be_is_not() -> None:
    _guest(VOLUMES_MAX).check()
    _guest(link=_link()).check()
    _guest(role=Role.STANDBY, term=0).check()


def test_data_in_flight_is_divided_among_the_volumes() -> None:
    shared = _guest(4).shared_out()
    assert [volume.options.inflight_bytes for volume in shared.volumes] == [4 * MIB] * 4
    assert [volume.name for volume in shared.volumes] == ["v0", "v1", "v2", "v3"]
    crowd = _guest(VOLUMES_MAX).shared_out()
    assert {volume.options.inflight_bytes for volume in crowd.volumes} == {2 * MIB}  # never below one message


def test_the_window_of_the_link_holds_it_all() -> None:
    alone = _guest(1, link=_link()).shared_out()
    assert alone.link is not None
    # twice what is in flight (it is taken back only when it is acknowledged), and a reserve
    assert alone.link.window_bytes == max(WINDOW_BYTES, 2 * 16 * MIB + PART_BYTES_MAX + 32 * MIB)
    lagging = _guest(1, link=_link(), volumes=_volumes(1, level="async", lag_bytes=256 * MIB)).shared_out()
    assert lagging.link is not None
    assert lagging.link.window_bytes == alone.link.window_bytes + 256 * MIB


def test_a_larger_window_that_was_asked_for_stays() -> None:
    link = dataclasses.replace(_link(), window_bytes=WINDOW_BYTES_MAX)
    shared = _guest(1, link=link).shared_out()
    assert shared.link is not None
    assert shared.link.window_bytes == WINDOW_BYTES_MAX


def _largest(count: int, level: str) -> GuestConfig:
    """The most that so many volumes may have in flight before `shared_out` refuses it."""
    name = "lag_bytes" if level == "async" else "inflight_bytes"
    low, high = MIB, 64 * 1024 * MIB
    best: GuestConfig | None = None
    while low < high:
        middle = (low + high + 1) // 2
        try:
            config = _guest(volumes=_volumes(count, level=level, **{name: middle}), link=_link()).shared_out()
        except ConfigError:
            high = middle - 1
        else:
            low, best = middle, config
    assert best is not None
    return best


@pytest.mark.parametrize("level", ["sync", "async"])
@pytest.mark.parametrize("count", [1, 3, VOLUMES_MAX])
def test_with_the_largest_options_a_standby_takes_all_that_may_be_in_flight(count: int, level: str) -> None:
    """The sum that `core.intake` speaks of: what lets go on, and what goes beyond that by itself."""
    options = [volume.options for volume in _largest(count, level).volumes]
    data_bytes = ops = 0
    for each in options:
        data_bytes += each.lag_bytes if level == "async" else each.inflight_bytes
        data_bytes += PART_BYTES_MAX + each.copying_bytes
        reads = each.copying_bytes // PIECE_BYTES
        ops += FRAME_OPS_MAX + (READY_OPS + RUNS_PER_READ_MAX) + reads * RUNS_PER_READ_MAX
    assert UNAPPLIED_BYTES_MAX // 2 < data_bytes <= UNAPPLIED_BYTES_MAX
    assert OPS_MAX + ops <= UNAPPLIED_OPS_MAX


def test_more_lag_than_memory_is_refused() -> None:
    volumes = _volumes(2, level="async", lag_bytes=WINDOW_BYTES_MAX // 2)
    with pytest.raises(ConfigError, match="lower lag_bytes"):
        _guest(volumes=volumes, link=_link()).shared_out()
