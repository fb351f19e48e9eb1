"""What people type: sizes and volumes; and sizes as they are shown."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from pairsync.cli.values import (
    checked_timeout,
    operator_name,
    parse_places,
    parse_size,
    parse_volumes,
    show_bytes,
)
from pairsync.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("256M", 256 << 20),
        ("256m", 256 << 20),
        ("256MB", 256 << 20),
        ("256MiB", 256 << 20),
        (" 1 G ", 1 << 30),
        ("1.5G", 3 << 29),
        ("0.5K", 512),
        ("1T", 1 << 40),
        ("2P", 2 << 50),
        ("9007199254740993", 9007199254740993),  # beyond what a float can say
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1X", "1.1", "0", "0M", "1e9", "1,5G", "0x10", "8P5", "٣", "5000P", "1 M M", "."]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="size"):
        parse_size(text)


def test_a_size_says_which_end_it_is_beyond() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        parse_size("0")
    with pytest.raises(ConfigError, match="more than any file"):
        parse_size("5000P")


def test_timeouts() -> None:
    assert checked_timeout(0.5) == 0.5
    assert checked_timeout(float("inf")) == float("inf")
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="--timeout must be positive"):
            checked_timeout(seconds)


def test_volumes() -> None:
    assert parse_volumes(["vda=1M", "data-2.x_y=4096"]) == {"vda": 1 << 20, "data-2.x_y": 4096}
    assert parse_volumes([]) == {}


@pytest.mark.parametrize(
    ("texts", "finding"),
    [
        (["vda"], "NAME=SIZE"),
        (["=1M"], "'' is not a name"),
        (["../x=1M"], "'../x' is not a name"),
        ([".hidden=1M"], "is not a name"),
        (["a b=1M"], "is not a name"),
        (["v" * 65 + "=1M"], "1 to 64 letters"),
        (["vda=1M", "vda=2M"], "'vda' is given twice"),
        (["vda="], "'' is not a size"),
        (["vda=/dev/sda"], "'/dev/sda' is not a size"),
    ],
)
def test_no_volumes(texts: list[str], finding: str) -> None:
    with pytest.raises(ConfigError, match=finding):
        parse_volumes(texts)


def test_places_may_be_paths_too() -> None:
    found = parse_places(["vda=20G", "vdb=/dev/vg0/vdb", "vdc=./here.img"])
    assert found == {"vda": 20 << 30, "vdb": Path("/dev/vg0/vdb"), "vdc": Path("here.img")}
    with pytest.raises(ConfigError, match="'here' is not a size"):
        parse_places(["vda=here"])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1000 * 1024, "1000 KiB"),
        ((1 << 20) - 1, "1024 KiB"),
        (268435456, "256 MiB"),
        (12.34 * (1 << 20), "12.3 MiB"),
        (1 << 30, "1 GiB"),
        (1 << 40, "1 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_sizes_are_shown_short(count: float, text: str) -> None:
    assert show_bytes(count) == text


@pytest.mark.parametrize("text", ["1K", "256M", "1G", "1T", "3.5G"])
def test_what_is_shown_can_be_typed(text: str) -> None:
    assert parse_size(show_bytes(parse_size(text))) == parse_size(text)


def test_who_decides_is_asked_for_where_the_system_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "erika")
    assert (operator_name(None), operator_name("Dr Weber")) == ("erika", "Dr Weber")

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", unknown)
    assert operator_name("Dr Weber") == "Dr Weber"
    with pytest.raises(ConfigError, match="--operator NAME"):
        operator_name(None)
