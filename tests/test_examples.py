"""The examples run, as programs of their own, and say what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pairsync.core.limits import VolumeOptions
from pairsync.node import hostfile
from pairsync.node.hostfile import HostFile, read_host_file

EXAMPLES = Path(__file__).parent.parent / "examples"
SHELL_S = 200.0

PROMISES = {
    "embed_trio.py": "in sync",
    "embed_asyncio.py": "in sync",
    "own_witness.py": "passed: histories are linearizable",
    "watch_events.py": "[in-sync] fine: vda is on both hosts",
}


@pytest.mark.parametrize(("name", "promise"), PROMISES.items(), ids=PROMISES)
def test_an_example_ends_well(name: str, promise: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert promise in done.stdout
    assert "Traceback" not in done.stderr


def test_an_incremental_backup_is_equal_to_the_volume(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "incremental_backup.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is equal to the volume" in done.stdout
    assert "65536 KiB copied" in done.stdout.splitlines()[0]  # the full one, and no other
    assert done.stdout.count("65536 KiB copied") == 1


@pytest.mark.slow
@pytest.mark.tools("nbdinfo", "qemu-img")
def test_a_volume_is_used_by_a_script_and_loses_its_standby(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(EXAMPLES / "volume_over_nbd.sh")],
        env={**os.environ, "PATH": path, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SHELL_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()
    assert "NOT in sync" in told  # with the standby killed
    assert "host b: not running" in told
    assert told[-2:] == ["Images are identical.", "vda: equal (64 MiB)"]
    assert list(tmp_path.iterdir()) == []


def _host(name: str) -> HostFile:
    return read_host_file(EXAMPLES / "two_hosts" / name / "host.toml")


def test_the_files_of_two_hosts_fit_each_other() -> None:
    alpha, beta = _host("alpha"), _host("beta")
    assert (alpha.guest, alpha.pair_id) == (beta.guest, beta.pair_id)
    assert alpha.register is not None
    assert beta.register is not None
    assert alpha.register.failover_ns == beta.register.failover_ns
    assert [each.address for each in alpha.register.witnesses] == [
        each.address for each in beta.register.witnesses
    ]
    assert alpha.link is not None
    assert beta.link is not None
    for here, there in ((alpha.link, beta.link), (beta.link, alpha.link)):
        assert [path.local for path in here.paths] == [path.peer[0] for path in there.paths]
    assert [volume.name for volume in alpha.volumes] == [volume.name for volume in beta.volumes]


def test_every_option_of_a_volume_stands_in_an_example_with_what_holds_without_it(tmp_path: Path) -> None:
    text = (EXAMPLES / "two_hosts" / "alpha" / "host.toml").read_text(encoding="utf-8")
    above, _, options = text.rpartition("# What else may be said of a volume")
    said = re.findall(r"^# ((\w+) = \S+) +# \S", options, flags=re.MULTILINE)
    names = [name for _, name in said]
    assert sorted([*names, "level"]) == sorted(
        [*hostfile._OPTIONS, *(f"{each}_s" for each in hostfile._TIMES)]
    )
    file = tmp_path / "host.toml"
    bounded = [line for line, name in said if name != "overlay_bytes"]  # which depends on the volume
    file.write_text("\n".join([above, *bounded]), encoding="utf-8")
    assert read_host_file(file).volumes[0].options == VolumeOptions()


def test_every_example_is_run() -> None:
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh"}}
    assert programs == {*PROMISES, "incremental_backup.py", "volume_over_nbd.sh"}


def test_every_example_opens_by_saying_what_it_shows() -> None:
    for path in sorted(EXAMPLES.glob("*.py")):
        assert path.read_text(encoding="utf-8").startswith('"""'), path.name
