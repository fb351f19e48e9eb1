"""The form of ``pairsync lab``: what scripts of others depend on, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import trio

from pairsync.core.units import MIB
from pairsync.nbd import constants as c
from pairsync.node.places import DirectoryLock
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.programs import ProgramError, is_alive, pairsync_command, run_program, wait_gone

ONE = {"vda": 8 * MIB}


async def lab_command(*words: str | os.PathLike[str], status: int) -> str:
    """Run ``pairsync lab``; its standard error, which is empty or one line that names the program."""
    done = await run_program(*pairsync_command("lab", *words), status=status)
    said = done.stderr.decode()
    if status:
        assert done.stdout == b""
        assert said.startswith("pairsync: ")
        assert said.count("\n") == 1
        assert "Traceback" not in said
    return said


async def test_ready_line_and_commands_are_as_the_issue_fixes_them(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": 8 * MIB, "data": 4 * MIB}) as lab:
        assert set(lab.ready) == {"event", "hosts", "witness"}
        assert lab.ready["event"] == "ready"
        assert set(lab.ready["hosts"]) == {"a", "b"}
        for name, host in lab.ready["hosts"].items():
            assert set(host) == {"pid", "link", "volumes"}
            assert is_alive(host["pid"])
            address, _, port = host["link"].rpartition(":")
            assert address == "127.0.0.1"
            with socket.create_connection((address, int(port)), timeout=5):
                pass
            assert set(host["volumes"]) == {"vda", "data"}
            for volume, each in host["volumes"].items():
                assert set(each) == {"uri", "path"}
                path = Path(each["path"])
                assert path.is_absolute()
                assert path.stat().st_size == {"vda": 8 * MIB, "data": 4 * MIB}[volume]
                if name == "a":
                    assert each["uri"].startswith(f"nbd+unix:///{volume}?socket=/")
        # every command of the issue, as scripts call it
        status = json.loads((await lab.command("status", "--json")).stdout)
        assert status["in_sync"] is True
        assert status["hosts"]["a"]["pid"] == lab.ready["hosts"]["a"]["pid"]
        text = (await lab.command("status")).stdout.decode()
        assert text.startswith("in sync\n")
        await lab.command("cut")
        await lab.wait_event("link-cut")
        await lab.wait_event("peer-lost", host="a")
        await lab.command("wait", "--in-sync", "--timeout", "0.5", status=1)
        mark = lab.mark()
        await lab.command("heal")
        await lab.command("wait", "--in-sync", "--timeout", "30")
        await lab.command("kill", "b")
        await lab.wait_event("host-ended", since=mark, host="b", code=-signal.SIGKILL)
        assert not is_alive(lab.ready["hosts"]["b"]["pid"])
        await lab.command("start", "b")
        await lab.command("wait", "--in-sync", "--timeout", "30")
        assert all("event" in event for event in lab.events)
    await lab_command("check", lab_directory, status=0)


async def test_a_second_up_resumes_what_is_there(lab_directory: Path) -> None:
    async with running_lab(lab_directory, ONE) as lab, await lab.connect() as client:
        await client.write(12345, b"as it was" * 100)
    async with running_lab(lab_directory) as lab, await lab.connect() as client:
        assert set(lab.ready["hosts"]["a"]["volumes"]) == {"vda"}
        assert await client.read(12345, 900) == b"as it was" * 100
        assert client.size_bytes == 8 * MIB
        # it was ended in order: nothing had to be copied
        assert all(event["blocks"] == 0 for event in lab.seen("resync", host="a"))
    async with running_lab(lab_directory, {"more": 1 * MIB}) as lab:
        assert set(lab.ready["hosts"]["b"]["volumes"]) == {"vda", "more"}
        await lab.request("move", guest="lab")
    async with running_lab(lab_directory, {"yet": 1 * MIB}) as lab:  # a volume begins where the guest runs
        await lab.wait_active("b")
        async with await lab.connect("yet") as client:
            await client.write(0, b"y" * 4096)
    assert not differences(lab_directory, "yet")
    assert not differences(lab_directory, "vda")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_signals_end_it_beside_a_busy_client(lab_directory: Path, how: signal.Signals) -> None:
    async with running_lab(lab_directory, ONE) as lab, await lab.connect() as client:
        for number in range(200):  # pipelined: some of them are under way when the signal comes
            payload = bytes([number]) * 4096
            await client.request(c.CMD_WRITE, number * 4096, 4096, payload=payload)
        await lab.end(how)
        assert lab.stderr == b""
    assert not differences(lab_directory, "vda")


async def test_a_signal_during_the_start_ends_it_too(lab_directory: Path) -> None:
    argv = pairsync_command("lab", "up", lab_directory, "--volume=vda=8M", "--json")
    process = await trio.lowlevel.open_process(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with trio.fail_after(60):
        while not (lab_directory / "b" / "log").exists():  # the first host is being started
            await trio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    with DirectoryLock(lab_directory):
        assert not list((lab_directory / "sockets").iterdir())


async def test_hosts_end_when_their_supervisor_is_killed(lab_directory: Path) -> None:
    async with running_lab(lab_directory, ONE) as lab, await lab.connect() as client:
        await client.write(0, b"x" * 4096)
        await lab.kill_supervisor()
    async with running_lab(lab_directory) as lab, await lab.connect() as client:
        assert await client.read(0, 4096) == b"x" * 4096
    assert not differences(lab_directory, "vda")


async def test_a_reader_that_stops_reading_stalls_nobody(lab_directory: Path) -> None:
    """Standard output is a full pipe: hosts serve on, commands are answered, the end is an orderly one."""
    reading, writing = os.pipe()
    argv = pairsync_command("lab", "up", lab_directory, "--volume=vda=8M", "--json")
    process = await trio.lowlevel.open_process(argv, stdout=writing, stderr=subprocess.PIPE)
    lab = RunningLab(lab_directory, process)
    try:
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(reading)  # the ready line has come, and nobody takes it
        os.set_blocking(writing, False)  # the lab has the same end: it must find it as it was
        try:
            while True:
                os.write(writing, b"\n")
        except BlockingIOError:
            os.set_blocking(writing, True)
        await lab.wait_in_sync()
        async with await lab.connect() as client:
            for round_ in range(3):
                await lab.kill("b")
                await client.write(round_ * 4096, bytes([round_ + 1]) * 4096)
                await lab.start("b")
                await lab.wait_in_sync()
        for _ in range(600):  # an event each, in both hosts' way
            await lab.request("heal")
        status = await lab.status()
        assert status["in_sync"]
        pids = {host["pid"] for host in status["hosts"].values()}
        process.send_signal(signal.SIGINT)
        with trio.fail_after(60):
            assert await process.wait() == 0
        assert process.stderr is not None
        assert await process.stderr.receive_some() == b""
        await wait_gone(pids)
        assert not lab.sockets()
    finally:
        process.kill()
        os.close(reading)
        os.close(writing)
    assert not differences(lab_directory, "vda")


async def test_errors_are_one_line_and_exit_status_1(lab_directory: Path) -> None:
    missing = lab_directory / "missing"
    for command in (("kill", "a"), ("wait", "--in-sync"), ("check",)):
        assert "holds no lab" in await lab_command(command[0], missing, *command[1:], status=1)
    for bad in ("vda=0", "vda=12Q"):
        await lab_command("up", missing, f"--volume={bad}", status=1)
        assert not missing.exists()
    await lab_command("up", missing, "--volume=vda=1M", "--volume=vda=1M", status=1)
    assert "at least one --volume" in await lab_command("up", missing, status=1)
    file = lab_directory.parent / "file"
    file.write_bytes(b"")
    await lab_command("up", file, "--volume=vda=1M", status=1)
    await lab_command("up", file / "below", "--volume=vda=1M", status=1)
    await lab_command("wait", missing, status=1)
    async with running_lab(lab_directory, ONE) as lab:
        assert "is up" in await lab_command("up", lab_directory, status=1)
        assert "is up" in await lab_command("check", lab_directory, status=1)
        await lab.kill("b")
        assert "not running" in await lab_command("kill", lab_directory, "b", status=1)
        await lab_command("wait", lab_directory, "--in-sync", "--timeout=0.3", status=1)
        await lab_command("wait", lab_directory, "--in-sync", "--timeout=-1", status=1)
        text = (await lab.command("status")).stdout.decode()
        assert text.startswith("NOT in sync\n")
        assert "host b: not running" in text
        await lab.start("b")
        await lab.start("b")  # it runs already: nothing happens
    assert "is not up" in await lab_command("status", lab_directory, status=1)
    assert "8388608 bytes, not 9" in await lab_command("up", lab_directory, "--volume=vda=9M", status=1)


async def test_an_up_that_fails_leaves_nothing_that_stands_in_the_way(lab_directory: Path) -> None:
    """The second volume is larger than any file may be: the first one must not have been left behind."""
    await lab_command("up", lab_directory, "--volume=vda=8M", "--volume=data=4000P", status=1)
    async with running_lab(lab_directory, {"vda": 16 * MIB, "data": 4 * MIB}) as lab:
        assert lab.path("a", "vda").stat().st_size == 16 * MIB
        assert lab.path("b", "data").stat().st_size == 4 * MIB


async def test_check_finds_what_differs(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": 8 * MIB, "odd": 5 * MIB + 513}) as lab:
        async with await lab.connect("odd") as client:
            await client.write(5 * MIB, b"t" * 513)
        paths = {name: lab.path("b", name) for name in ("vda", "odd")}

    async def check(status: int) -> dict[str, object]:
        argv = pairsync_command("lab", "check", lab_directory, "--json")
        answer = json.loads((await run_program(*argv, status=status)).stdout)
        assert answer["equal"] is (status == 0)
        return {name: each["first_difference"] for name, each in answer["volumes"].items()}

    assert await check(0) == {"vda": None, "odd": None}
    with paths["vda"].open("r+b") as file:
        file.seek(7 * MIB + 77)
        file.write(b"!")
    assert await check(1) == {"vda": 7 * MIB + 77, "odd": None}
    with paths["odd"].open("r+b") as file:  # the very last byte
        file.seek(5 * MIB + 512)
        file.write(b"!")
    assert await check(1) == {"vda": 7 * MIB + 77, "odd": 5 * MIB + 512}
    os.truncate(paths["odd"], 5 * MIB)
    assert await check(1) == {"vda": 7 * MIB + 77, "odd": 5 * MIB}
    done = await run_program(*pairsync_command("lab", "check", lab_directory), status=1)
    assert done.stdout.decode().count("DIFFERENT") == 2
    paths["odd"].unlink()
    await lab_command("check", lab_directory, status=1)


async def test_clients_that_give_up_waiting_leave_nothing_behind(lab_directory: Path) -> None:
    """More waits are given up than the control socket serves clients at once; it still answers."""
    async with running_lab(lab_directory, ONE) as lab:
        await lab.cut()
        await lab.wait_event("peer-lost", host="a")
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(_give_up, lab)
        await lab.wait_status(lambda status: not status["in_sync"], "an answer", seconds=10)
        await lab.heal()
        await lab.wait_in_sync(seconds=20)


async def _give_up(lab: RunningLab) -> None:
    with pytest.raises(ProgramError, match="no answer to wait"):
        await lab.wait_in_sync(seconds=0.2)


async def test_two_starts_at_once_make_one_process(lab_directory: Path) -> None:
    async with running_lab(lab_directory, ONE) as lab:
        await lab.kill("b")
        await lab.wait_event("host-ended", host="b", code=-signal.SIGKILL)
        mark = lab.mark()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(lab.start, "b")
        await lab.wait_in_sync()
        assert not lab.seen("host-ended", since=mark)


async def test_a_stopped_host_holds_up_no_command(lab_directory: Path) -> None:
    """SIGSTOP: the process is there and says nothing.  The other goes on alone after its silence limit."""
    async with running_lab(lab_directory, ONE) as lab, await lab.connect() as client:
        pid = await lab.pid("b")
        os.kill(pid, signal.SIGSTOP)
        try:
            await client.write(0, b"s" * 4096)
            await lab.wait_event("alone", host="a")
            with trio.fail_after(20):
                status = await lab.status()
            assert status["hosts"]["b"]["running"]
            assert status["hosts"]["b"]["guest"] is None
            assert status["hosts"]["a"]["guest"]["connected"] is False
        finally:
            os.kill(pid, signal.SIGCONT)
        await lab.wait_in_sync()
        os.kill(pid, signal.SIGSTOP)
        await lab.kill("b")
        await lab.start("b")
        await lab.wait_in_sync()
    assert not differences(lab_directory, "vda")


async def test_the_link_stays_cut_when_hosts_are_started_again(lab_directory: Path) -> None:
    """A cable that was pulled is still pulled after both machines were switched off and on."""
    async with running_lab(lab_directory, ONE) as lab:
        await lab.cut()
        await lab.kill("a")
        await lab.kill("b")
        mark = lab.mark()
        await lab.start("a")  # first: where it is slow to come, the other one rightly takes over
        await lab.start("b")
        status = await lab.status()
        assert all(host["guest"]["link"]["cut"] for host in status["hosts"].values())
        async with await lab.connect() as client:
            await client.write(0, b"alone" * 1000)
        await lab.wait_event("alone", host="a", since=mark)
        assert not lab.seen("connected", since=mark)
        await lab.heal()
        await lab.wait_in_sync()
    assert not differences(lab_directory, "vda")
