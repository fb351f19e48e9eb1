"""The guard as a process, spoken to record by record; this process is its host, which it spares."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.timing import derive
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.node import guard as guard_module
from pairsync.node.guard import ANSWER, DEADLINE_AHEAD_NS, NEVER_NS, REQUEST, Say, Tell, boottime_ns
from pairsync.testing.guarding import VICTIM, read_times
from pairsync.testing.programs import is_alive

BOUND_NS = derive().stall_ns + derive().stop_ns  # what the default timing allows for a kill
WAIT_S = 20.0  # for what must happen; the machine may be busy
SOON_NS = 500 * NS_PER_MS  # a deadline that a test still does something before: it may be held up itself
POLL_S = 0.002
SPAWNS_A_CHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(POLL_S)


class Talk:
    """A guard and what it answers."""

    def __init__(self, *more: str, host: int | None = None) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(WAIT_S)
        host = os.getpid() if host is None else host
        words = ["--socket", str(theirs.fileno()), "--host", str(host), "--spare-host", *more]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pairsync.node.guard", *words],
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                stderr=subprocess.PIPE,
            )
        self.number = 0

    def ready(self) -> dict[str, str]:
        about: dict[str, str] = json.loads(self.socket.recv(4096))
        return about

    def tell(self, what: Tell, value: int = 0) -> int:
        self.number += 1
        self.socket.send(REQUEST.pack(what, self.number, value, boottime_ns()))
        return self.number

    def answer(self) -> tuple[Say, int]:
        what, number, value, late_ns = ANSWER.unpack(self.socket.recv(100))
        assert number == self.number
        assert 0 <= late_ns < WAIT_S * NS_PER_S
        return Say(what), value

    def ask(self, what: Tell, value: int = 0) -> int:
        self.tell(what, value)
        said, value = self.answer()
        assert said is (Say.ADDED if what in {Tell.ADD, Tell.DROP} else Say.HELD)
        return value

    def end(self) -> tuple[int, str]:
        """Its exit status and last words."""
        _, words = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, words.decode()

    def close(self) -> None:
        self.socket.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def talk() -> Iterator[Talk]:
    talk = Talk()
    talk.ready()
    yield talk
    talk.close()


class Victim:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        command = [sys.executable, "-I", "-S", "-c", VICTIM, str(path)]
        self.process = subprocess.Popen(command, start_new_session=True)
        self.pid = self.process.pid
        wait_until(lambda: path.stat().st_size > 0, "the victim does not begin")

    def last_ns(self) -> int:
        """When it last ran; it is gone."""
        self.process.wait(timeout=WAIT_S)
        assert self.process.returncode == -signal.SIGKILL
        return read_times(self.path)[-1]

    def lives(self) -> bool:
        """Whether it runs on: it is seen to write once more."""
        seen = self.path.stat().st_size
        end = time.monotonic() + WAIT_S
        while self.path.stat().st_size == seen and self.process.poll() is None and time.monotonic() < end:
            time.sleep(POLL_S)
        return self.path.stat().st_size > seen


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    victim = Victim(tmp_path / "victim")
    yield victim
    victim.process.kill()
    victim.process.wait()


def test_it_kills_when_the_deadline_passes(talk: Talk, victim: Victim) -> None:
    assert talk.ask(Tell.ADD, victim.pid) == 0
    deadline_ns = boottime_ns() + 200 * NS_PER_MS
    assert talk.ask(Tell.ARM, deadline_ns) == deadline_ns
    while (alive := victim.process.poll() is None) or boottime_ns() < deadline_ns:
        assert alive, "not before"
        time.sleep(POLL_S)
    assert victim.last_ns() < deadline_ns + BOUND_NS
    status, words = talk.end()
    assert status == 3
    assert f"killed [{victim.pid}]: the lease has run out" in words


def test_of_deadlines_only_later_ones_count(talk: Talk, victim: Victim) -> None:
    talk.ask(Tell.ADD, victim.pid)
    early_ns, late_ns = (boottime_ns() + seconds * NS_PER_S for seconds in (5, 30))
    assert talk.ask(Tell.ARM, early_ns) == early_ns
    assert talk.ask(Tell.ARM, late_ns) == late_ns
    assert talk.ask(Tell.ARM, early_ns) == late_ns
    assert talk.ask(Tell.ARM, 1) == late_ns
    assert victim.lives()


def test_without_a_deadline_it_lets_live(talk: Talk, victim: Victim) -> None:
    talk.ask(Tell.ADD, victim.pid)
    assert talk.ask(Tell.LOOK) == 0, "nothing is allowed before something was said"
    deadline_ns = boottime_ns() + SOON_NS
    talk.tell(Tell.ARM, deadline_ns)
    talk.answer()
    assert talk.ask(Tell.DISARM) == NEVER_NS
    wait_until(lambda: boottime_ns() > deadline_ns + 100 * NS_PER_MS, "time stands still")
    assert talk.ask(Tell.LOOK) == NEVER_NS
    assert victim.lives()
    talk.tell(Tell.ARM, boottime_ns() - 1)  # the first one after that counts, whatever it is
    victim.last_ns()


def test_at_rest_nothing_is_killed_and_nothing_allowed(talk: Talk, victim: Victim) -> None:
    talk.ask(Tell.ADD, victim.pid)
    deadline_ns = talk.ask(Tell.ARM, boottime_ns() + SOON_NS)
    assert talk.ask(Tell.REST) == 0
    wait_until(lambda: boottime_ns() > deadline_ns + 50 * NS_PER_MS, "time stands still")
    assert talk.ask(Tell.LOOK) == 0
    assert victim.lives()
    later_ns = boottime_ns() + NS_PER_S
    assert talk.ask(Tell.ARM, later_ns) == later_ns
    assert talk.ask(Tell.LOOK) == later_ns


@pytest.mark.parametrize(
    "record",
    [
        b"\x01",
        REQUEST.pack(Tell.LOOK, 1, 0, 0) + b"\0",
        REQUEST.pack(99, 1, 0, 0),
        REQUEST.pack(Tell.ARM, 1, NEVER_NS, 0),
        "too far ahead",  # of the time of the test, which can be long after its collection
        None,
    ],
    ids=["short", "long", "unknown", "never", "too far ahead", "lets go"],
)
def test_a_host_that_makes_no_sense_or_lets_go_has_its_guest_killed(
    talk: Talk, victim: Victim, record: bytes | str | None
) -> None:
    talk.ask(Tell.ADD, victim.pid)
    talk.ask(Tell.DISARM)
    if isinstance(record, str):
        record = REQUEST.pack(Tell.ARM, 1, boottime_ns() + 2 * DEADLINE_AHEAD_NS, 0)
    if record is None:
        talk.socket.close()
    else:
        talk.socket.send(record)
    victim.last_ns()
    assert talk.end()[0] == 3


def test_the_end_kills_what_is_left(talk: Talk, victim: Victim, tmp_path: Path) -> None:
    other = Victim(tmp_path / "other")
    try:
        talk.ask(Tell.ADD, victim.pid)
        talk.ask(Tell.ADD, other.pid)
        talk.ask(Tell.DROP, other.pid)
        talk.tell(Tell.END)
        victim.last_ns()
        assert talk.end()[0] == 3
        assert other.lives()
    finally:
        other.process.kill()
        other.process.wait()


def test_the_end_with_nothing_left_is_quiet(talk: Talk) -> None:
    talk.tell(Tell.END)
    assert talk.end() == (0, "")


def _family() -> tuple[subprocess.Popen[bytes], int]:
    """A leader, and its child in the same group."""
    command = [sys.executable, "-I", "-S", "-c", SPAWNS_A_CHILD]
    leader = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    with leader.stdout:
        return leader, int(leader.stdout.readline())


@pytest.mark.parametrize("leader_first", [False, True])
def test_the_whole_group_is_killed(talk: Talk, leader_first: bool) -> None:
    leader, child = _family()
    talk.ask(Tell.ADD, leader.pid)
    if leader_first:
        talk.ask(Tell.DISARM)
        leader.kill()
    else:
        talk.ask(Tell.ARM, boottime_ns())
    assert leader.wait(timeout=WAIT_S) == -signal.SIGKILL
    wait_until(lambda: not is_alive(child), "the child lives on")
    if leader_first:
        assert talk.ask(Tell.LOOK) == NEVER_NS, "it guards on"


def test_an_older_kernel_kills_groups_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, child = _family()
    descriptor = os.pidfd_open(leader.pid)

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "unknown flag")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    guard_module._kill_group(leader.pid, descriptor)
    assert leader.wait(timeout=WAIT_S) == -signal.SIGKILL
    wait_until(lambda: not is_alive(child), "the child lives on")
    guard_module._kill_group(leader.pid, descriptor)  # there is nobody any more
    os.close(descriptor)


def test_what_cannot_be_guarded_is_refused(talk: Talk) -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]) as child:
        assert talk.ask(Tell.ADD, child.pid) == errno.EINVAL, "it leads no group"
        child.kill()
    assert talk.ask(Tell.ADD, child.pid) == errno.ESRCH
    assert talk.ask(Tell.ADD, talk.process.pid) == errno.EINVAL, "the guard's own group"
    assert talk.ask(Tell.ADD, 1) == errno.EINVAL
    assert talk.ask(Tell.DROP, 12345) == 0


def test_a_guard_that_was_stopped_kills_nobody_whose_lease_was_renewed(talk: Talk, victim: Victim) -> None:
    talk.ask(Tell.ADD, victim.pid)
    deadline_ns = talk.ask(Tell.ARM, boottime_ns() + SOON_NS)
    talk.process.send_signal(signal.SIGSTOP)
    talk.tell(Tell.ARM, boottime_ns() + 30 * NS_PER_S)
    wait_until(lambda: boottime_ns() > deadline_ns + 50 * NS_PER_MS, "time stands still")
    assert victim.lives()
    talk.process.send_signal(signal.SIGCONT)
    assert talk.answer()[1] > deadline_ns
    assert victim.lives()


def test_a_renewal_that_comes_too_late_does_not_help(talk: Talk, victim: Victim) -> None:
    """Host and guard were stopped, the host is the first to go on."""
    talk.ask(Tell.ADD, victim.pid)
    deadline_ns = talk.ask(Tell.ARM, boottime_ns() + 100 * NS_PER_MS)
    talk.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: boottime_ns() > deadline_ns + 50 * NS_PER_MS, "time stands still")
    talk.tell(Tell.ARM, boottime_ns() + 30 * NS_PER_S)
    talk.process.send_signal(signal.SIGCONT)
    victim.last_ns()
    status, words = talk.end()
    assert status == 3
    assert "the lease has run out" in words


def test_a_guard_that_was_stopped_kills_as_soon_as_it_can(talk: Talk, victim: Victim) -> None:
    talk.ask(Tell.ADD, victim.pid)
    deadline_ns = talk.ask(Tell.ARM, boottime_ns() + SOON_NS)
    talk.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: boottime_ns() > deadline_ns + 50 * NS_PER_MS, "time stands still")
    assert victim.lives(), "what a stopped guard cannot do: this is what the watchdog device is for"
    resumed_ns = boottime_ns()
    talk.process.send_signal(signal.SIGCONT)
    assert victim.last_ns() < resumed_ns + BOUND_NS


def test_a_stopped_guest_is_killed_too(talk: Talk, victim: Victim) -> None:
    talk.ask(Tell.ADD, victim.pid)
    victim.process.send_signal(signal.SIGSTOP)
    deadline_ns = talk.ask(Tell.ARM, boottime_ns() + 50 * NS_PER_MS)
    assert victim.last_ns() < deadline_ns


def test_it_ends_with_its_host_and_not_by_a_signal(talk: Talk, victim: Victim) -> None:
    talk.ask(Tell.ADD, victim.pid)
    talk.ask(Tell.DISARM)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        talk.process.send_signal(number)
    assert talk.ask(Tell.LOOK) == NEVER_NS
    assert victim.lives()


def test_a_host_that_does_not_read_its_answers_delays_nothing(talk: Talk, victim: Victim) -> None:
    talk.ask(Tell.ADD, victim.pid)
    deadline_ns = talk.ask(Tell.ARM, boottime_ns() + 300 * NS_PER_MS)
    talk.socket.setblocking(False)
    while boottime_ns() < deadline_ns - 50 * NS_PER_MS:
        try:
            talk.tell(Tell.LOOK)
        except BlockingIOError:
            time.sleep(POLL_S)
    assert victim.last_ns() < deadline_ns + BOUND_NS


HOST = """
import os, subprocess, sys, time
command = [sys.executable, "-P", "-m", "pairsync.node.guard", "--spare-host"]
command += ["--socket", sys.argv[1], "--host", str(os.getpid())]
print(subprocess.Popen(command, pass_fds=[int(sys.argv[1])], start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def test_a_host_that_died_is_noticed_though_its_socket_is_open(victim: Victim) -> None:
    """As where a child has inherited it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(WAIT_S)
    descriptor = theirs.fileno()
    command = [sys.executable, "-P", "-c", HOST, str(descriptor)]
    with ours, theirs, subprocess.Popen(command, pass_fds=[descriptor], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        guard = int(host.stdout.readline())
        ours.recv(4096)
        ours.send(REQUEST.pack(Tell.ADD, 1, victim.pid, boottime_ns()))
        ours.recv(100)
        host.kill()
        host.wait()
        killed_ns = boottime_ns()
        assert victim.last_ns() < killed_ns + BOUND_NS
        wait_until(lambda: not is_alive(guard), "the guard stays")


def test_it_does_not_guard_for_a_stranger() -> None:
    talk = Talk(host=1)
    assert talk.end()[0] == 1
    assert talk.socket.recv(100) == b""
    talk.close()


def test_it_is_small_and_hard_to_delay() -> None:
    talk = Talk()
    about = talk.ready()
    assert set(about) == {"memory", "scheduling", "oom"}
    if os.geteuid() == 0:
        assert about["memory"] == "locked"
    status = Path(f"/proc/{talk.process.pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 40_000, "kilobytes"
    code = "import sys, pairsync.node.guard; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("pairsync")}
    assert ours == {"pairsync", "pairsync.node", "pairsync.node.guard", "pairsync.node.watchdog"}
    assert not {"trio", "asyncio", "ssl", "subprocess"} & set(done.stdout.split())
    talk.close()


def test_it_knows_one_clock_of_deadlines() -> None:
    """No jump of the clock that people set can move a deadline: nothing here reads that clock."""
    for name in ("guard.py", "guardclient.py"):
        text = (Path(guard_module.__file__).parent / name).read_text()
        assert "time.time" not in text
        assert "CLOCK_REALTIME" not in text
    assert abs(boottime_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) < NS_PER_S


words = st.one_of(
    st.tuples(st.just(Tell.ARM), st.integers(-50, 200)),
    st.tuples(st.sampled_from([Tell.DISARM, Tell.REST, Tell.LOOK]), st.just(0)),
)


@given(st.lists(st.tuples(words, st.integers(0, 40), st.integers(0, 40)), max_size=30))
def test_what_is_held_is_what_a_model_holds(steps: list[tuple[tuple[Tell, int], int, int]]) -> None:
    """Records in any order: (what, its deadline from now), time passed before it, how long it lay there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    guard = guard_module.Guard(theirs, os.getppid(), kill_host=False, watchdog=None)
    now_ns = 10_000
    deadline: int | None = None  # the model: of an armed guard
    leave = False  # whether the host may serve
    try:
        for number, ((what, ahead_ns), passed_ns, lay_ns) in enumerate(steps):
            now_ns += passed_ns
            sent_ns, value = now_ns - lay_ns, now_ns + ahead_ns
            with mock.patch.object(guard_module, "boottime_ns", return_value=now_ns):
                guard._take(what, number, value, sent_ns)
            if what is Tell.ARM and deadline is not None and sent_ns >= deadline:
                with pytest.raises(BlockingIOError):
                    ours.recv(100)  # too late; what is held does not change
            else:
                if what is Tell.ARM:
                    deadline = value if deadline is None else max(deadline, value)
                elif what is not Tell.LOOK:
                    deadline = None
                leave = what in {Tell.ARM, Tell.DISARM} or (leave and what is Tell.LOOK)
                held = 0 if not leave else NEVER_NS if deadline is None else deadline
                assert ANSWER.unpack(ours.recv(100)) == (Say.HELD, number, held, lay_ns)
            assert guard._deadline_ns == (NEVER_NS if deadline is None else deadline)
    finally:
        for each in (ours, theirs):
            each.close()
        for descriptor in (guard._host_fd, guard._timer.descriptor):
            os.close(descriptor)


# -- the watchdog device, a file that collects what it is fed with -------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Path:
    device = tmp_path / "watchdog"
    device.touch()
    return device


def _fed(device: Path) -> int:
    return device.read_bytes().count(b"\0")


def test_the_watchdog_is_fed_while_all_is_well(device: Path, victim: Victim) -> None:
    talk = Talk("--watchdog", str(device), "--watchdog-seconds", "2")
    assert talk.ready()["watchdog"] == f"{device}, its own time"  # a file takes no orders
    wait_until(lambda: _fed(device) > 1, "at rest by time")
    talk.ask(Tell.ADD, victim.pid)
    deadline_ns = talk.ask(Tell.ARM, boottime_ns() + 2 * SOON_NS)
    fed = _fed(device)
    talk.ask(Tell.ARM, deadline_ns - 1)
    assert _fed(device) == fed, "a lease that is not renewed feeds nothing"
    assert talk.ask(Tell.ARM, deadline_ns + 1) == deadline_ns + 1
    assert _fed(device) == fed + 1
    victim.last_ns()
    assert talk.end()[0] == 3
    assert device.read_bytes()[fed + 1 :] == b"V", "all are dead: the machine need not be reset"
    talk.close()


def test_a_stopped_guard_feeds_nothing(device: Path) -> None:
    talk = Talk("--watchdog", str(device), "--watchdog-seconds", "2")
    talk.ready()
    wait_until(lambda: _fed(device) > 0, "at rest by time")
    talk.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "T (stopped)" in Path(f"/proc/{talk.process.pid}/status").read_text(), "it runs on")
    fed = _fed(device)
    time.sleep(0.6)  # more than two of its rounds
    assert _fed(device) == fed
    talk.process.kill()
    talk.process.wait()
    assert b"V" not in device.read_bytes(), "the machine is reset"
    talk.close()


def test_a_machine_without_a_watchdog_is_told(tmp_path: Path) -> None:
    talk = Talk("--watchdog", str(tmp_path / "none"))
    assert talk.ready()["watchdog"] == f"none: {tmp_path / 'none'}: No such file or directory"
    talk.close()


def test_a_watchdog_that_fails_is_told(victim: Victim) -> None:
    talk = Talk("--watchdog", "/dev/full")
    talk.ready()
    what, _, value, _ = ANSWER.unpack(talk.socket.recv(100))
    assert (what, value) == (Say.UNWATCHED, errno.ENOSPC)
    assert talk.ask(Tell.ADD, victim.pid) == 0, "it guards on"
    talk.tell(Tell.END)
    victim.last_ns()
    talk.close()
