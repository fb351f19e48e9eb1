"""``pairsync lab``: what it asks of the supervisor, and how answers look; the real one is in tests/e2e."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.cli.conftest import Command, Ended

from pairsync.cli import lab as lab_module
from pairsync.errors import ConfigError
from pairsync.node.control import serve_control
from pairsync.node.labfile import LabFile, control_socket_of, remove_sockets
from pairsync.node.places import DirectoryLock, make_sockets

LAB = LabFile({"vda": 1 << 20}, "sync", single=False, pair_id="0f" * 16, ports={"a": 1, "b": 2})
DEADLINE_S = 60.0

_VOLUME = {
    "name": "vda",
    "state": "in-sync",
    "size_bytes": 1 << 20,
    "generation": "1.1/8b",
    "dirty_blocks": 3,
    "resync_fraction": None,
    "resync_bytes_per_s": None,
    "resync_remaining_s": None,
    "failed": None,
}
_GUEST = {"role": "active", "connected": False, "refusal": None, "volumes": [_VOLUME]}
_WELL = {"vda": "ok"}
STATUS = {
    "directory": "/somewhere",
    "in_sync": False,
    "hosts": {
        "a": {
            "running": True,
            "pid": 4242,
            "link": "127.0.0.1:1",
            "volumes": {},
            "guest": _GUEST,
            "disks": _WELL,
        },
        "b": {"running": False, "pid": None, "link": None, "volumes": {}, "guest": None, "disks": _WELL},
    },
}


class Supervisor:
    """In the place of the real one: notes what it is asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {}
        self.refusal = ""
        self.hangs = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        names = ("status", "kill", "start", "pause", "resume", "cut", "heal", "wait", "disk")
        with self._scope:
            async with trio.open_nursery() as nursery:
                handlers = dict.fromkeys(names, self._handle)
                await nursery.start(serve_control, control_socket_of(self.directory), handlers)
                self._ready.set()

    async def _handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(dict(request))
        if self.hangs:
            await trio.sleep_forever()
        if self.refusal:
            raise ConfigError(self.refusal)
        return self.answer

    def end(self) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(DEADLINE_S)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A lab that was made and is not up."""
    directory = tmp_path / "lab"
    directory.mkdir()
    make_sockets(directory)
    LAB.save(directory)
    yield directory
    remove_sockets(directory)


@pytest.fixture
def supervisor(directory: Path) -> Iterator[Supervisor]:
    """The lab, up."""
    supervisor = Supervisor(directory)
    yield supervisor
    supervisor.end()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["kill", "DIR", "b"], {"do": "kill", "host": "b"}),
        (["start", "DIR", "a"], {"do": "start", "host": "a"}),
        (["cut", "DIR"], {"do": "cut", "cable": "a-b"}),
        (["cut", "DIR", "a-witness"], {"do": "cut", "cable": "a-witness"}),
        (["heal", "DIR"], {"do": "heal", "cable": "a-b"}),
        (["heal", "DIR", "all"], {"do": "heal", "cable": "all"}),
        (["pause", "DIR", "witness"], {"do": "pause", "host": "witness"}),
        (["resume", "DIR", "a"], {"do": "resume", "host": "a"}),
        (["wait", "DIR", "--in-sync", "--timeout", "5"], {"do": "wait"}),
    ],
)
def test_commands_ask_and_are_silent(
    command: Command, supervisor: Supervisor, words: list[str], wanted: dict[str, str]
) -> None:
    done = command("lab", *[str(supervisor.directory) if word == "DIR" else word for word in words])
    assert done == Ended(0, "", "")
    assert supervisor.asked == [wanted]


def test_a_disk_is_made_to_fail(command: Command, supervisor: Supervisor) -> None:
    directory = str(supervisor.directory)
    asked = {"host": "b", "volume": "vda", "disk": "hang"}
    supervisor.answer = {"ok": True, **asked}
    done = command("lab", "disk", directory, "b", "vda", "hang")
    assert done == Ended(0, "host b, disk of vda: hang\n", "")
    done = command("lab", "disk", directory, "b", "vda", "hang", "--json")
    assert json.loads(done.out) == asked
    assert supervisor.asked == [{"do": "disk", **asked}] * 2
    supervisor.refusal = "no volume 'vdb'; there are vda"
    done = command("lab", "disk", directory, "b", "vdb", "hang")
    assert done == Ended(1, "", "pairsync: no volume 'vdb'; there are vda\n")


def test_status_shows_disks_that_were_made_to_fail(command: Command, supervisor: Supervisor) -> None:
    hosts = {name: {**host, "disks": {"vda": "full"}} for name, host in STATUS["hosts"].items()}  # type: ignore[attr-defined]
    supervisor.answer = {**STATUS, "hosts": hosts}
    done = command("lab", "status", str(supervisor.directory))
    shown = "  vda          DISK made to full by `lab disk`"
    assert [line for line in done.out.splitlines() if "DISK" in line] == [shown, shown]
    assert done.out.splitlines()[-2:] == ["host b: not running", shown]


def test_a_refusal_is_an_error(command: Command, supervisor: Supervisor) -> None:
    supervisor.refusal = "host b is not running"
    done = command("lab", "kill", str(supervisor.directory), "b")
    assert done == Ended(1, "", "pairsync: host b is not running\n")


def test_waiting_has_an_end(command: Command, supervisor: Supervisor) -> None:
    supervisor.hangs = True
    done = command("lab", "wait", str(supervisor.directory), "--in-sync", "--timeout", "0.2")
    assert done.status == 1
    assert "did not answer within 0.2 s" in done.err or "not in sync" in done.err


def test_status_for_people(command: Command, supervisor: Supervisor) -> None:
    supervisor.answer = STATUS
    done = command("lab", "status", str(supervisor.directory))
    assert done.out.splitlines() == [
        "NOT in sync",
        "host a: active, pid 4242, peer away",
        "  vda              1 MiB  in-sync      3 dirty blocks, generation 1.1/8b",
        "host b: not running",
    ]
    hosts = {name: {**host, "running": True, "guest": None} for name, host in STATUS["hosts"].items()}  # type: ignore[attr-defined]
    supervisor.answer = {**STATUS, "in_sync": True, "hosts": hosts}
    done = command("lab", "status", str(supervisor.directory))
    assert done.out.splitlines()[:2] == ["in sync", "host a: running, but does not answer"]


def test_status_for_machines(command: Command, supervisor: Supervisor) -> None:
    supervisor.answer = STATUS
    done = command("lab", "status", str(supervisor.directory), "--json")
    assert json.loads(done.out) == STATUS


def test_a_lab_that_is_not_up(command: Command, directory: Path) -> None:
    for words in (["status"], ["cut"], ["heal"], ["wait", "--in-sync"]):
        done = command("lab", words[0], str(directory), *words[1:])
        assert done == Ended(1, "", f"pairsync: the lab in {directory} is not up\n")


def test_check_needs_the_lab_down(command: Command, directory: Path) -> None:
    with DirectoryLock(directory):
        done = command("lab", "check", str(directory))
        assert done == Ended(1, "", f"pairsync: the lab in {directory} is up\n")
        done = command("lab", "up", str(directory))
        assert done == Ended(1, "", f"pairsync: the lab in {directory} is up\n")


def test_check_compares(command: Command, directory: Path) -> None:
    for host in ("a", "b"):
        (directory / host).mkdir()
        (directory / host / "vda.img").write_bytes(b"same" * 1024)
    assert command("lab", "check", str(directory)) == Ended(0, "vda: equal (4 KiB)\n", "")
    (directory / "b" / "vda.img").write_bytes(b"same" * 1000 + b"else" * 24)
    done = command("lab", "check", str(directory))
    assert done == Ended(1, "vda: DIFFERENT (4 KiB, first at byte 4000)\n", "")
    done = command("lab", "check", str(directory), "--json")
    assert json.loads(done.out) == {
        "equal": False,
        "volumes": {"vda": {"equal": False, "size_bytes": 4096, "first_difference": 4000}},
    }
    assert done.status == 1


def test_a_single_host_has_nothing_to_compare(command: Command, directory: Path) -> None:
    LabFile(LAB.volumes, "sync", single=True, pair_id=LAB.pair_id, ports=LAB.ports).save(directory)
    done = command("lab", "check", str(directory))
    assert done == Ended(1, "", "pairsync: this lab has a single host: there is nothing to compare\n")


def test_what_contradicts_the_lab_is_refused(command: Command, directory: Path) -> None:
    done = command("lab", "up", str(directory), "--volume", "vda=2M")
    assert done == Ended(1, "", f"pairsync: volume 'vda' in {directory} has 1048576 bytes, not 2097152\n")
    (directory / "lab.json").write_text("{")
    done = command("lab", "up", str(directory))
    assert done.status == 1
    assert done.err.startswith(f"pairsync: {directory}/lab.json is damaged")


def test_who_can_have_no_namespaces_is_told_and_nothing_is_made(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    done = command("lab", "up", str(tmp_path), "--volume", "vda=1M", "--network", "namespaces")
    text = "pairsync: network namespaces need root (--network loopback needs nothing)\n"
    assert done == Ended(1, "", text)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_lines_for_a_terminal() -> None:
    ready = {
        "event": "ready",
        "hosts": {
            "a": {
                "pid": 1,
                "link": "127.0.0.1:1",
                "volumes": {"vda": {"uri": "nbd+unix:///vda", "path": "x"}},
            },
            "b": {"pid": 2, "link": "127.0.0.1:2", "volumes": {"vda": {"uri": None, "path": "/y.img"}}},
        },
    }
    assert lab_module._as_text(ready).splitlines() == [
        "ready",
        "  host a: pid 1, link 127.0.0.1:1",
        "    vda: nbd+unix:///vda",
        "  host b: pid 2, link 127.0.0.1:2",
        "    vda: /y.img",
    ]
    assert lab_module._as_text({"event": "in-sync", "host": "a", "text": "vda: in sync"}) == "a: vda: in sync"
    assert lab_module._as_text({"event": "link-cut"}) == "link-cut"
