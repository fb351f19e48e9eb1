"""A host's part in the register: its memory, made once, and never believed when it was put back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pairsync.core.acceptor import AcceptorState
from pairsync.core.units import NS_PER_S
from pairsync.errors import BackendError, ConfigError
from pairsync.io.config import LinkConfig
from pairsync.io.keys import make_identity
from pairsync.node import arbitrate
from pairsync.node.arbitrate import create_memory, first_memory
from pairsync.node.guardclient import open_guard
from pairsync.node.hostfile import RegisterFile, WitnessFile
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.wire.arbitration import decode_host_memory, encode_acceptor

FINGERPRINT = b"h" * 32


def opened(path: Path, empty: bytes | None = None) -> AcceptorState:
    file = arbitrate._open_memory(RegisterFile(memory=path, failover_ns=5 * NS_PER_S), empty)
    file.close()
    assert not file.moved
    return decode_host_memory(file.state).acceptor


def test_the_first_host_owns_and_decides_alone() -> None:
    state = decode_host_memory(first_memory(FINGERPRINT)).acceptor
    assert state.base is not None
    assert state.base.owner_id == state.voter(FINGERPRINT)
    assert state.base.voters == {state.voter(FINGERPRINT)}
    assert first_memory(FINGERPRINT) != first_memory(FINGERPRINT)  # no two pairs have the same history


def test_a_lost_memory_is_begun_anew_and_makes_nobody_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "register"
    state = opened(path)
    assert state.base is None
    assert opened(path) == state


def test_a_damaged_memory_is_a_lost_one(tmp_path: Path) -> None:
    path = tmp_path / "register"
    AcceptorFile.create(path, first_memory(FINGERPRINT))
    before = opened(path)
    path.write_bytes(b"")
    after = opened(path)
    assert (before.base is None, after.base) == (False, None)
    assert after.incarnation != before.incarnation
    assert opened(path) == after


def test_a_memory_that_was_put_back_is_another_voter_that_knows_what_was_decided(tmp_path: Path) -> None:
    path, backup = tmp_path / "register", tmp_path / "backup"
    AcceptorFile.create(path, first_memory(FINGERPRINT))
    before = opened(path)
    shutil.copy2(path, backup)
    path.unlink()
    shutil.copy2(backup, path)
    after = opened(path)
    assert after.base == before.base
    assert after.incarnation != before.incarnation
    assert after.base is not None
    assert after.base.owner_id != after.voter(FINGERPRINT)  # it is not the owner that it was
    assert opened(path) == after


def test_an_owner_with_empty_disks_is_the_owner_no_more_unless_the_guest_is_new(tmp_path: Path) -> None:
    path = tmp_path / "register"
    AcceptorFile.create(path, first_memory(FINGERPRINT))
    first = opened(path, FINGERPRINT)
    assert first.base is not None
    assert first.base.owner_id == first.voter(FINGERPRINT)
    path.unlink()
    AcceptorFile.create(path, encode_acceptor(first._replace(base=first.base._replace(epoch=2))))
    assert opened(path) == opened(path, b"o" * 32)
    after = opened(path, FINGERPRINT)
    assert after.base is not None
    assert after.base.owner_id != after.voter(FINGERPRINT)
    assert opened(path, FINGERPRINT) == after


def test_what_a_memory_has_promised_is_forgotten_with_it(tmp_path: Path) -> None:
    state, promise_ns = decode_host_memory(create_memory())
    assert (state.base, state.accepted, promise_ns) == (None, None, 0)


@pytest.mark.parametrize(
    ("device", "words"), [("watchdog", r"watchdog: No such file"), ("plain", r"plain: no device")]
)
def test_a_watchdog_that_is_none_is_named(tmp_path: Path, device: str, words: str) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(ConfigError, match=rf"\[register\]: watchdog: .*{words}"):
        arbitrate._check_device(tmp_path / device)
    arbitrate._check_device(Path("/dev/null"))


async def test_a_watchdog_that_the_guard_does_not_get_is_named(tmp_path: Path) -> None:
    async with open_guard(kill_host=False, watchdog=tmp_path / "watchdog") as guard:
        with pytest.raises(BackendError, match=r"cannot be armed: .*watchdog: No such file"):
            arbitrate._check_armed(guard.about)
    async with open_guard(kill_host=False, watchdog=Path("/dev/null")) as guard:
        arbitrate._check_armed(guard.about)


def test_a_witness_without_its_certificate_is_named(tmp_path: Path) -> None:
    identity = make_identity("a")
    config = LinkConfig(identity=identity, peer_certificate_pem=identity.certificate_pem, pair_id=bytes(16))
    missing = WitnessFile(name="hill", address=("127.0.0.1", 1), certificate=tmp_path / "hill.pem")
    with pytest.raises(ConfigError, match=r"hill\.pem: No such file"):
        arbitrate._witness(missing, config)


def test_an_operator_has_a_name_that_can_be_written_down() -> None:
    assert arbitrate.operator_of({"operator": " Dr \u6f22 "}) == "Dr \u6f22"
    for name in ("", "  ", "two\nlines", "\udcff", "\u6f22" * 43, 7 * "a name that is too long "):
        with pytest.raises(ConfigError, match="at most 128 bytes"):
            arbitrate.operator_of({"operator": name})
