"""The supervisor in this process, its hosts as real ones: what it refuses, and that nothing outlives it.

What a whole lab does is tested from outside in ``tests/e2e``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.core.units import MIB
from pairsync.errors import BackendError, ConfigError
from pairsync.node.control import ask
from pairsync.node.lab import Lab, run_lab
from pairsync.node.labfile import LabFile, control_socket_of, nbd_socket_of, open_lab_file
from pairsync.node.labprepare import prepare
from pairsync.node.labprocess import LabProcess
from pairsync.node.labrequests import lab_handlers
from pairsync.node.places import sockets_of
from pairsync.testing.programs import is_alive, wait_gone

DEADLINE_S = 60.0


def make_lab(directory: Path, *, single: bool) -> LabFile:
    lab = open_lab_file(directory, {"vda": MIB}, None, single=single)
    prepare(directory, lab)
    return lab


class Told:
    """What a lab says."""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.ready = trio.Event()

    def __call__(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)
        if line["event"] == "ready":
            self.ready.set()

    @property
    def pids(self) -> list[int]:
        return [host["pid"] for host in self.lines[0]["hosts"].values()]


@asynccontextmanager
async def lab_up(directory: Path, lab: LabFile) -> AsyncIterator[Told]:
    told = Told()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_lab, directory, lab, told)
            await told.ready.wait()
            yield told
            nursery.cancel_scope.cancel()


async def test_a_single_host_has_no_link(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, single=True)
    async with lab_up(tmp_path, lab) as told:
        assert set(told.lines[0]["hosts"]) == {"a"}
        status = await ask(control_socket_of(tmp_path), {"do": "status"})
        assert status["in_sync"] is False
        assert status["hosts"]["a"]["guest"]["link"] is None
        for request in ("cut", "heal", "wait"):
            with pytest.raises(ConfigError, match="single host"):
                await ask(control_socket_of(tmp_path), {"do": request})
        with pytest.raises(ConfigError, match="no host 'b'; there are a"):
            await ask(control_socket_of(tmp_path), {"do": "kill", "host": "b"})
        with pytest.raises(ConfigError, match="no host"):
            await ask(control_socket_of(tmp_path), {"do": "start"})
    await wait_gone(told.pids)  # the supervisor was cancelled


async def test_a_signal_ends_it_and_its_hosts(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, single=False)
    told = Told()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_lab, tmp_path, lab, told)
            await told.ready.wait()
            assert all(is_alive(pid) for pid in told.pids)
            os.kill(os.getpid(), signal.SIGTERM)
    assert not any(is_alive(pid) for pid in told.pids)
    ends = [line for line in told.lines if line["event"] == "host-ended"]
    assert sorted((line["host"], line["code"]) for line in ends) == [("a", 0), ("b", 0)]


async def test_a_host_that_does_not_come_up_is_named_with_its_reason(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, single=False)
    (tmp_path / "b" / "peer.pem").unlink()
    told = Told()
    with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(DEADLINE_S):
        await run_lab(tmp_path, lab, told)
    backend, other = caught.value.split(BackendError)
    assert other is None
    error: BaseException = backend if backend is not None else caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert str(error).startswith("host b did not come up (ended with exit status 1): pairsync: ")
    assert "peer.pem" in str(error)
    assert told.lines == []
    assert not list(sockets_of(tmp_path).glob("*"))


async def test_a_host_whose_disk_takes_no_log_leaves_the_other_one_alone(tmp_path: Path) -> None:
    """Its file system became read-only, say: it ends, and cannot be started again."""
    lab = make_lab(tmp_path, single=False)
    log = tmp_path / "b" / "log"
    async with lab_up(tmp_path, lab) as told:
        await ask(control_socket_of(tmp_path), {"do": "wait"})
        log.unlink()
        log.mkdir()
        os.kill(told.pids[1], signal.SIGKILL)
        while not (failed := [line for line in told.lines if line["event"] == "host-failed"]):
            await trio.sleep(0.05)
        assert failed[0]["host"] == "b"
        assert "host b cannot be started" in failed[0]["text"]
        status = await ask(control_socket_of(tmp_path), {"do": "status"})
        assert {name: host["running"] for name, host in status["hosts"].items()} == {"a": True, "b": False}
        log.rmdir()
        await ask(control_socket_of(tmp_path), {"do": "start", "host": "b"})
        await ask(control_socket_of(tmp_path), {"do": "wait"})


async def test_whoever_waits_finds_all_three_deciding(tmp_path: Path) -> None:
    """Else whoever kills the owner next sees no take-over.  A witness that is away is not waited for."""
    async with lab_up(tmp_path, make_lab(tmp_path, single=False)):
        control = control_socket_of(tmp_path)

        async def waited() -> bool:
            """Whether the owner decides alone, once the wait is over."""
            await ask(control, {"do": "wait"})
            return bool((await ask(control, {"do": "status"}))["guests"]["lab"]["sole"])

        for away, back, more in (
            ("kill", "start", {"host": "witness"}),
            ("pause", "resume", {"host": "witness"}),
            ("cut", "heal", {"cable": "a-witness"}),
        ):
            assert not await waited()
            await ask(control, {"do": away, **more})
            while not await waited():
                await trio.sleep(0.05)
            await ask(control, {"do": back, **more})
        assert not await waited()


async def test_the_witness_listens_before_a_host_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts that meet before it does agree that the owner decides alone, for the time being."""
    told: list[str] = []
    spawn, until_ready = LabProcess.spawn, LabProcess.until_ready

    async def spawn_noted(self: LabProcess, words: Sequence[str]) -> None:
        told.append(f"{self.name} begins")
        await spawn(self, words)

    async def until_ready_noted(self: LabProcess) -> None:
        await until_ready(self)
        told.append(f"{self.name} serves")

    monkeypatch.setattr(LabProcess, "spawn", spawn_noted)
    monkeypatch.setattr(LabProcess, "until_ready", until_ready_noted)
    async with lab_up(tmp_path, make_lab(tmp_path, single=False)):
        assert told[:2] == ["witness begins", "witness serves"]
        assert sorted(told[2:4]) == ["host a begins", "host b begins"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "(ended by SIGKILL): it said nothing"),
        ("raise ExceptionGroup('g', [KeyError('k')])", "(ended with exit status 1): KeyError: 'k'"),
        ("import sys; sys.stderr.write('busy\\n'); sys.stdin.read()", "(not within 0.5 s): busy"),
    ],
)
async def test_what_became_of_it_is_told(
    tmp_path: Path, program: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path, single=True)
    (tmp_path / "a" / "log").write_text("pairsync: of the last time\n")
    if "not within" in words:
        monkeypatch.setattr("pairsync.node.labprocess.READY_S", 0.5)
    monkeypatch.setattr("pairsync.node.lab.HOST_PROGRAM", ("-c", program))
    with pytest.RaisesGroup(pytest.RaisesExc(BackendError), flatten_subgroups=True) as caught:
        with trio.fail_after(DEADLINE_S):
            await run_lab(tmp_path, lab, Told())
    (error,) = _leaves_of(caught.value)
    assert str(error) == f"host a did not come up {words}"


def _leaves_of(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves_of(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


async def test_a_host_that_is_started_in_vain_can_be_started_again(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, single=False)
    async with lab_up(tmp_path, lab) as told:
        control = control_socket_of(tmp_path)
        await ask(control, {"do": "kill", "host": "b"})
        certificate = tmp_path / "b" / "peer.pem"
        certificate.rename(tmp_path / "aside")
        with pytest.raises(ConfigError, match="host b did not come up"):
            await ask(control, {"do": "start", "host": "b"})
        assert (await ask(control, {"do": "status"}))["hosts"]["b"]["running"] is False
        (tmp_path / "aside").rename(certificate)
        pid = (await ask(control, {"do": "start", "host": "b"}))["host"]["pid"]
        assert (await ask(control, {"do": "start", "host": "b"}))["host"]["pid"] == pid
        await ask(control, {"do": "wait"})
    await wait_gone([*told.pids, pid])


async def test_a_cut_reaches_a_host_that_is_being_started(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, single=False)
    async with lab_up(tmp_path, lab):
        control = control_socket_of(tmp_path)
        await ask(control, {"do": "kill", "host": "b"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, control, {"do": "start", "host": "b"})
            while not (await ask(control, {"do": "status"}))["hosts"]["b"]["running"]:
                await trio.sleep(0)
            await ask(control, {"do": "cut"})
        status = await ask(control, {"do": "status"})
        assert all(host["guest"]["link"]["cut"] for host in status["hosts"].values())


async def test_a_disk_stays_as_it_was_made_when_its_host_is_started_again(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, single=False)
    async with lab_up(tmp_path, lab) as told:
        control = control_socket_of(tmp_path)

        async def disk(what: str, host: str = "b", volume: str = "vda") -> dict[str, Any]:
            return await ask(control, {"do": "disk", "host": host, "volume": volume, "disk": what})

        async def disks() -> list[str]:
            hosts = (await ask(control, {"do": "status"}))["hosts"]
            return [hosts[name]["disks"]["vda"] for name in ("a", "b")]

        assert await disk("hang") == {"ok": True, "host": "b", "volume": "vda", "disk": "hang"}
        assert await disks() == ["ok", "hang"]
        said = {"event": "disk", "host": "b", "volume": "vda", "disk": "hang"}
        assert any(said.items() <= line.items() for line in told.lines)
        await disk("fail")
        await ask(control, {"do": "kill", "host": "b"})
        await ask(control, {"do": "start", "host": "b"})
        status = await ask(control, {"do": "status"})
        assert "Input/output error (injected)" in status["hosts"]["b"]["guest"]["volumes"][0]["failed"]
        assert await disks() == ["ok", "fail"]
        await disk("replace")
        assert await disks() == ["ok", "ok"]
        await ask(control, {"do": "wait"})
        for words, complaint in (
            ({"what": "melt"}, "a disk cannot be made 'melt'; there are ok, fail, hang, full, replace"),
            ({"what": "ok", "host": "c"}, "no host 'c'; there are a, b"),
            ({"what": "ok", "volume": "vdb"}, "no volume 'vdb'; there are vda"),
        ):
            with pytest.raises(ConfigError, match=complaint):
                await disk(**words)


async def test_what_happens_before_all_is_up_is_told_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = r'{"event": "path"}\n{"event": "ready", "link": null}'
    program = f"import sys; print('{lines}', flush=True); sys.stdin.read()"
    monkeypatch.setattr("pairsync.node.lab.HOST_PROGRAM", ("-c", program))
    async with lab_up(tmp_path, make_lab(tmp_path, single=True)) as told:
        assert [line["event"] for line in told.lines] == ["ready", "path"]


def test_what_is_told_names_every_volume(tmp_path: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            volumes = {"vda": MIB, "the data": MIB}
            lab = Lab(tmp_path, LabFile(volumes, "sync", False, "00" * 16, {}), lambda _: None, nursery)
            line = lab.ready_line()
            assert line["event"] == "ready"
            host = line["hosts"]["a"]
            assert (host["pid"], host["link"]) == (None, None)
            assert host["volumes"]["the data"] == {
                "uri": f"nbd+unix:///the%20data?socket={nbd_socket_of(tmp_path, 'a')}",
                "path": f"{tmp_path}/a/the data.img",
            }
            assert line["hosts"]["b"]["volumes"]["vda"]["uri"] is None

    trio.run(main)


async def test_requests_that_cannot_be_are_refused_in_words(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, single=True)
    async with trio.open_nursery() as nursery:
        handlers = lab_handlers(Lab(tmp_path, lab, Told(), nursery))
        for request, words in (
            ({"do": "kill", "host": "c"}, "no host 'c'; there are a"),
            ({"do": "pause", "host": "a"}, "host a is not running"),
            ({"do": "resume", "host": "witness"}, "no host 'witness'"),
            ({"do": "cut", "cable": "a-b"}, "a single host and no link"),
            ({"do": "move", "guest": "other"}, "no guest 'other'"),
            ({"do": "move"}, "fixed roles"),
        ):
            with pytest.raises(ConfigError, match=words):
                await handlers[str(request["do"])](request)
