"""The directory of a witness: made once, pairs by files, and every mistake named with its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairsync.errors import BackendError, ConfigError
from pairsync.io.keys import certificate_der, make_identity
from pairsync.node import witnessdir
from pairsync.node.witnessdir import (
    add_pair,
    control_path,
    init_witness,
    list_pairs,
    read_roll,
    read_witness_file,
    remove_pair,
)

PAIR_ID = "00112233445566778899aabbccddeeff"
HOSTS = (make_identity(), make_identity())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    init_witness(tmp_path / "w", [("127.0.0.1", 1234), ("::1", 1235)])
    return tmp_path / "w"


@pytest.fixture
def certificates(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "a.crt", tmp_path / "b.crt"]
    for file, host in zip(files, HOSTS, strict=True):
        file.write_bytes(b"a comment\n" + host.certificate_pem)
    return files


def test_a_witness_is_made_once(place: Path) -> None:
    assert read_witness_file(place).listen == (("127.0.0.1", 1234), ("::1", 1235))
    assert (place / "identity" / "host.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="holds a witness already"):
        init_witness(place, [("127.0.0.1", 1)])
    assert control_path(place).name == "witness.control"


def test_where_none_can_be_made_the_disk_is_to_blame(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError):
        init_witness(tmp_path / "file" / "w", [("127.0.0.1", 1)])


def test_a_pair_comes_and_goes(place: Path, certificates: list[Path]) -> None:
    assert read_roll(place).pairs == {}
    added = add_pair(place, PAIR_ID.upper(), certificates)
    assert (added.pair_id, added.hosts) == (PAIR_ID, tuple(host.fingerprint.hex() for host in HOSTS))
    assert list_pairs(place) == [added]
    ders = frozenset(certificate_der(host.certificate_pem) for host in HOSTS)
    assert read_roll(place).pairs == {bytes.fromhex(PAIR_ID): ders}
    assert read_roll(place).fingerprints() == {
        bytes.fromhex(PAIR_ID): frozenset(host.fingerprint for host in HOSTS)
    }
    remove_pair(place, PAIR_ID)
    assert list_pairs(place) == []


def test_mistakes_are_named(place: Path, certificates: list[Path], tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.crt"
    nonsense.write_text("no certificate")
    both = tmp_path / "both.crt"
    both.write_bytes(b"".join(host.certificate_pem for host in HOSTS))
    huge = tmp_path / "huge.crt"
    huge.write_bytes(bytes(17_000))
    for pair_id, files, finding in (
        ("0011", certificates, "no pair id"),
        (PAIR_ID, certificates[:1], "give --host twice"),
        (PAIR_ID, [certificates[0]] * 2, "are the same"),
        (PAIR_ID, [certificates[0], nonsense], "nonsense.crt: not a PEM certificate"),
        (PAIR_ID, [certificates[0], both], "both.crt: expected one certificate"),
        (PAIR_ID, [certificates[0], huge], "huge.crt: larger than"),
        (PAIR_ID, [certificates[0], tmp_path / "none"], "none: No such file"),
    ):
        with pytest.raises(ConfigError, match=finding):
            add_pair(place, pair_id, files)
    assert list_pairs(place) == []
    with pytest.raises(ConfigError, match="is not served"):
        remove_pair(place, PAIR_ID)


def test_a_pair_is_not_replaced_by_accident(place: Path, certificates: list[Path], tmp_path: Path) -> None:
    add_pair(place, PAIR_ID, certificates)
    other = tmp_path / "other.crt"
    other.write_bytes(make_identity().certificate_pem)
    with pytest.raises(ConfigError, match="--replace"):
        add_pair(place, PAIR_ID, [certificates[0], other])
    replaced = add_pair(place, PAIR_ID, [certificates[0], other], replace=True)
    assert list_pairs(place) == [replaced]


def test_there_is_an_end_to_pairs(
    place: Path, certificates: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witnessdir, "PAIRS_MAX", 1)
    add_pair(place, PAIR_ID, certificates)
    with pytest.raises(ConfigError, match="serves no more"):
        add_pair(place, "ff" * 16, certificates)
    (place / "pairs" / f"{'ff' * 16}.pem").write_bytes((place / "pairs" / f"{PAIR_ID}.pem").read_bytes())
    with pytest.raises(ConfigError, match="2 pairs"):
        read_roll(place)


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [
        ("pair.pem", b"", "name is no pair id"),
        (f"{PAIR_ID}.pem", b"", "0 certificates"),
        (f"{PAIR_ID}.pem", HOSTS[0].certificate_pem, "1 certificates"),
    ],
)
def test_a_damaged_roll_is_named(place: Path, name: str, content: bytes, finding: str) -> None:
    (place / "pairs" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=finding) as caught:
        read_roll(place)
    assert name in str(caught.value)


def test_half_written_files_are_none(place: Path) -> None:
    (place / "pairs" / f"{PAIR_ID}.pem.new").write_bytes(b"half a cert")
    assert read_roll(place).pairs == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[witness]\n",
        "[witness]\nlisten = []\n",
        "[witness]\nlisten = [1]\n",
        "[witness]\nlisten = '127.0.0.1:1'\n",
        "[witness]\nlisten = ['127.0.0.1:1']\nlisen = 1\n",
        "[witness]\nlisten = ['127.0.0.1:1']\n[other]\n",
        "[witness\n",
        "[witness]\nlisten = ['127.0.0.1:notaport']\n",
    ],
)
def test_a_wrong_file_is_refused(place: Path, text: str) -> None:
    (place / "witness.toml").write_text(text)
    with pytest.raises(ConfigError):
        read_witness_file(place)
