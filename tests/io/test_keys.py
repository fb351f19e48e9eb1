"""A host's identity: made once, kept private, damaged or foreign files refused by name."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest
from cryptography import x509

from pairsync.errors import BackendError, ConfigError
from pairsync.io.keys import (
    CERTIFICATE_BYTES_MAX,
    certificate_der,
    fingerprint_of,
    host_name_of,
    host_subject,
    load_identity,
    make_identity,
    open_identity,
    save_identity,
)


def test_saved_and_loaded(tmp_path: Path) -> None:
    identity = make_identity("host a")
    save_identity(identity, tmp_path / "keys")
    assert load_identity(tmp_path / "keys") == identity
    assert len(identity.fingerprint) == 32
    assert identity.fingerprint == fingerprint_of(identity.certificate_pem)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "keys" / "host.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["host.crt", "host.key"]


def test_made_on_first_use_and_kept(tmp_path: Path) -> None:
    assert open_identity(tmp_path) == open_identity(tmp_path)


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (host_subject("alpha"), "alpha"),
        (host_subject("pairsync host b"), "pairsync host b"),
        ("w1.example", "w1.example"),
    ],
)
def test_a_certificate_says_what_its_host_is_called(subject: str, name: str) -> None:
    assert host_name_of(make_identity(subject).certificate_pem) == name


@pytest.mark.parametrize("name", ["x" * 51, "two\nlines", "\udcff"])
def test_a_name_that_does_not_fit_into_a_certificate_is_refused(tmp_path: Path, name: str) -> None:
    open_identity(tmp_path / "fits", host_subject("x" * 50))
    with pytest.raises(ConfigError, match="is no name for a certificate: at most 64 printable characters"):
        open_identity(tmp_path / "keys", host_subject(name))
    assert not (tmp_path / "keys").exists()


def test_two_identities_differ() -> None:
    assert make_identity().fingerprint != make_identity().fingerprint


def test_the_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(make_identity())


def test_a_certificate_is_valid_whatever_the_clock_says() -> None:
    certificate = x509.load_pem_x509_certificate(make_identity().certificate_pem)
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no identity in"):
        load_identity(tmp_path)


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    save_identity(make_identity(), tmp_path)
    (tmp_path / "host.key").chmod(0o640)
    with pytest.raises(ConfigError, match="may be read by others"):
        load_identity(tmp_path)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    first, second = make_identity(), make_identity()
    save_identity(dataclasses.replace(first, certificate_pem=second.certificate_pem), tmp_path)
    with pytest.raises(ConfigError, match="do not belong together"):
        load_identity(tmp_path)


@pytest.mark.parametrize("name", ["host.key", "host.crt"])
@pytest.mark.parametrize("content", [b"", b"noise", b"x" * (CERTIFICATE_BYTES_MAX + 1)])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    save_identity(make_identity(), tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{tmp_path}/{name}: " if name == "host.crt" else str(tmp_path)):
        load_identity(tmp_path)


def test_one_certificate_is_pinned_not_several() -> None:
    both = make_identity().certificate_pem + make_identity().certificate_pem
    with pytest.raises(ConfigError, match="found 2"):
        certificate_der(both)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="identity in"):
        save_identity(make_identity(), tmp_path / "file" / "keys")
