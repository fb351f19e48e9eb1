"""`tools/system.py`: what is missing is found, installed by root in bounded tries, listed for others."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tools import system

ABSENT = system.Need("no-such-program", "no-such-package")
UNREACHABLE = "E: Failed to fetch http://mirror.example/x.deb"


class FakeApt:
    """Stands for apt-get: answers by a rule, and remembers what it was asked."""

    def __init__(self, answer: Callable[[tuple[str, ...]], str]) -> None:
        self.calls: list[tuple[str, ...]] = []
        self._answer = answer

    def __call__(self, *arguments: str) -> str:
        self.calls.append(arguments)
        return self._answer(arguments)

    def packages(self) -> list[tuple[str, ...]]:
        """Of each install, what was to be installed."""
        return [call[2:] for call in self.calls if call[0] == "install"]


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """No apt lists, and sleeps that only add up."""
    taken: list[float] = []
    monkeypatch.setattr(system, "APT_LISTS", tmp_path)
    monkeypatch.setattr("time.sleep", taken.append)
    monkeypatch.delenv("CI", raising=False)
    return taken


def _as_root(monkeypatch: pytest.MonkeyPatch, answer: Callable[[tuple[str, ...]], str]) -> FakeApt:
    apt = FakeApt(answer)
    monkeypatch.setattr(system, "_apt_get", apt)
    monkeypatch.setattr(system, "_can_install", lambda: True)
    return apt


def test_the_table_is_well_formed() -> None:
    needs = system.needs()
    assert len({need.probe for need in needs}) == len(needs) > 20
    assert all(need.groups <= {"demo"} for need in needs)
    assert any(need.groups for need in needs)


def test_probes(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz-6.1-cloud").touch()
    assert system.find("sh") is not None
    assert system.find("no-such-program") is None
    assert system.find(f"{tmp_path}/vmlinuz-*-cloud") == str(tmp_path / "vmlinuz-6.1-cloud")
    assert system.find(f"{tmp_path}/nothing-*") is None
    assert system.find("python:no_such_module") is None


def test_programs_of_the_administrator_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "mkfs.sample"
    program.touch(mode=0o755)
    monkeypatch.setattr(system, "SYSTEM_DIRECTORIES", (str(tmp_path),))
    monkeypatch.setenv("PATH", "/nowhere")
    assert system.find("mkfs.sample") == str(program)


def test_only_what_is_missing_is_installed_once(monkeypatch: pytest.MonkeyPatch, naps: list[float]) -> None:
    monkeypatch.setattr(system, "needs", lambda: [system.Need("sh", "dash"), ABSENT, ABSENT])
    apt = _as_root(monkeypatch, lambda _: "")
    system.provide_tools(None, strict=False)
    assert apt.calls == [("update",), ("install", "--no-install-recommends", "no-such-package")]
    assert naps == []


def test_lists_that_are_there_are_used_first(monkeypatch: pytest.MonkeyPatch, naps: list[float]) -> None:
    (system.APT_LISTS / "mirror_Packages.lz4").touch()
    monkeypatch.setattr(system, "needs", lambda: [ABSENT])
    apt = _as_root(monkeypatch, lambda _: "")
    system.provide_tools(None, strict=False)
    assert [call[0] for call in apt.calls] == ["install"]
    assert naps == []


def test_a_mirror_out_of_reach_ends_in_bounded_tries(
    monkeypatch: pytest.MonkeyPatch, naps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system, "needs", lambda: [ABSENT])
    apt = _as_root(monkeypatch, lambda _: UNREACHABLE)
    assert system.provide_tools(None, strict=True) == 1
    assert len(apt.packages()) == system.ATTEMPTS
    assert naps == [system.BACKOFF_S, system.BACKOFF_S * 2]
    said = capsys.readouterr().err
    assert UNREACHABLE in said
    assert "no-such-program  (Debian package no-such-package)" in said


def test_one_package_out_of_stock_does_not_keep_the_others_out(
    monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    other = system.Need("no-such-program-either", "good-package")
    monkeypatch.setattr(system, "needs", lambda: [ABSENT, other])
    apt = _as_root(monkeypatch, lambda call: "E: Unable to locate" if "no-such-package" in call else "")
    system.provide_tools(None, strict=False)
    assert apt.packages()[-2:] == [("no-such-package",), ("good-package",)]
    assert len(naps) == system.ATTEMPTS - 1


@pytest.mark.usefixtures("naps")
def test_no_service_is_started_by_an_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    drop_in = there / "new" / "setting.conf"
    seen: list[str] = []

    def answer(call: tuple[str, ...]) -> str:
        if call[0] == "install":
            seen.append(drop_in.read_text())
        return ""

    monkeypatch.setattr(system, "DROP_INS", {"no-such-package": (drop_in, "off\n")})
    monkeypatch.setattr(system, "needs", lambda: [ABSENT])
    _as_root(monkeypatch, answer)
    system.provide_tools(None, strict=False)
    assert seen == ["off\n"]
    assert list(there.iterdir()) == []  # nothing is left of it

    drop_in.parent.mkdir()
    drop_in.write_text("somebody's own\n")
    system.provide_tools(None, strict=False)
    assert seen[1:] == ["somebody's own\n"]
    assert drop_in.exists()


def test_a_script_that_keeps_a_service_down_can_be_run(
    naps: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy-rc.d"
    seen: list[int] = []

    def answer(call: tuple[str, ...]) -> str:
        if call[0] == "install":
            seen.append(subprocess.run([policy], check=False).returncode)
        return ""

    _, text = system.DROP_INS["etcd-server"]
    monkeypatch.setattr(system, "DROP_INS", {"no-such-package": (policy, text)})
    monkeypatch.setattr(system, "needs", lambda: [ABSENT])
    _as_root(monkeypatch, answer)
    system.provide_tools(None, strict=False)
    assert seen
    assert set(seen) == {101}  # Debian policy 9.3.3.1: the action is forbidden
    assert not policy.exists()


@pytest.mark.parametrize(("strict", "status"), [(True, 1), (False, 0)])
def test_an_ordinary_user_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], strict: bool, status: int
) -> None:
    monkeypatch.setattr(system, "needs", lambda: [ABSENT])
    monkeypatch.setattr(system, "_can_install", lambda: False)
    assert system.provide_tools(None, strict=strict) == status
    assert "apt-get install --no-install-recommends no-such-package" in capsys.readouterr().err


def test_the_demo_asks_only_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = system.Need("sh", "dash", frozenset({"demo"}))
    monkeypatch.setattr(system, "needs", lambda: [ABSENT, demo])
    monkeypatch.setattr(system, "_can_install", lambda: False)
    assert system.provide_tools("demo", strict=True) == 0


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_ci_is_strict(monkeypatch: pytest.MonkeyPatch, ci: str, status: int) -> None:
    monkeypatch.setattr(system, "needs", lambda: [ABSENT])
    monkeypatch.setattr(system, "_can_install", lambda: False)
    monkeypatch.setenv("CI", ci)
    assert system.main(["tools"]) == status


def test_a_wrong_word_shows_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert system.main(["toools"]) == 2
    assert "system.py tools [demo]" in capsys.readouterr().err
