"""Numbers that TOML knows and no setting can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairsync.errors import ConfigError
from pairsync.node.hostfile import read_host_file


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_number_that_is_none_is_refused_by_name(tmp_path: Path, value: str) -> None:
    path = tmp_path / "host.toml"
    path.write_text(
        f'[host]\nname = "a"\n[guest]\nname = "g"\npair_id = "{"00" * 16}"\nrole = "active"\n'
        f'[[volumes]]\nname = "v"\npath = "v"\nlag_s = {value}\n'
    )
    with pytest.raises(ConfigError, match="lag_s"):
        read_host_file(path)
