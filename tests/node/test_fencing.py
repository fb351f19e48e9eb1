"""What ``[fence]`` and its secrets say, and what they must not; when it is used: ``guest.test_fencing``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pairsync.core.units import NS_PER_S
from pairsync.errors import ConfigError
from pairsync.node.fencing import fence_config
from pairsync.node.hostfile import FenceFile

SECRET = "s3cret-W0rd"


def fence_file(directory: Path, secrets: str | None, mode: int = 0o600, **options: str) -> FenceFile:
    path = directory / "fence.secrets"
    if secrets is not None:
        path.write_text(secrets)
        path.chmod(mode)
    return FenceFile(
        command=("fence_ipmilan",),
        options={"ip": "192.0.2.8", **options},
        secrets=path,
        turn_on=False,
        deadline_ns=60 * NS_PER_S,
        attempt_ns=20 * NS_PER_S,
    )


def test_secrets_are_options_that_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    config = fence_config(fence_file(tmp_path, f"# for the BMC\n\npassword={SECRET}\nuser = a=b \n"))
    assert config.options == {"ip": "192.0.2.8", "password": SECRET, "user": "a=b"}
    assert (config.command, config.turn_on) == (("fence_ipmilan",), False)
    assert (config.deadline_ns, config.attempt_ns) == (60 * NS_PER_S, 20 * NS_PER_S)
    assert SECRET not in repr(config)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_secrets_that_others_may_read_or_change_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="must be yours, mode 0600"):
        fence_config(fence_file(tmp_path, f"password={SECRET}", mode))


@pytest.mark.parametrize("text", [f"{SECRET}", f"password={SECRET}\npassword=x", "ip=192.0.2.9", "p w=x"])
def test_a_file_of_secrets_that_is_none_is_refused_without_a_secret_in_the_reason(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        fence_config(fence_file(tmp_path, text))
    assert SECRET not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fence\.secrets: No such file"):
        fence_config(fence_file(tmp_path, None))
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        fence_config(fence_file(tmp_path, "#" * 70000))
    (tmp_path / "fence.secrets").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="it is no text"):
        fence_config(fence_file(tmp_path, None))
    os.unlink(tmp_path / "fence.secrets")
    (tmp_path / "fence.secrets").symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="no file"):
        fence_config(fence_file(tmp_path, None))


def test_a_secret_in_the_host_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'password' belongs in the file"):
        fence_config(fence_file(tmp_path, "", password=SECRET))
