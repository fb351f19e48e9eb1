"""A simulated directory: its changes survive, what was not flushed does not, and faults strike."""

from __future__ import annotations

import errno

import pytest

from pairsync.errors import BackendError, BusyError, ClosedError, ConfigError, InternalError
from pairsync.testing.disks import SECTOR_BYTES, Fault, PowerCut, SimAction, SimMedium, SimOperation
from pairsync.testing.simfiles import SimDirectory

PAGE = 4096


def test_files_are_made_grow_and_are_renamed_over_others() -> None:
    medium = SimMedium()
    directory = SimDirectory(medium, "dir/")
    old = directory.create("b")
    old.resize(PAGE)
    new = directory.create("a")
    new.resize(2 * PAGE)
    new.write(PAGE, (b"new",), durable=True)
    directory.publish(new, "b")
    assert (new.path, directory.names("b"), directory.names("")) == ("dir/b", ["b"], ["b"])
    assert new.read(PAGE, 3) == b"new"
    with pytest.raises(BackendError, match="replaced by another file"):
        old.read(0, 1)
    old.close()  # its name is another file's now, which stays open
    with pytest.raises(BusyError):
        directory.open("b")
    new.close()
    again = directory.open("b")
    assert again.size_bytes == 2 * PAGE
    again.close()
    directory.remove("b")
    directory.remove("b")
    assert medium.names() == []


def test_a_name_is_taken_once_and_closed_files_refuse() -> None:
    directory = SimDirectory(SimMedium())
    file = directory.create("a")
    with pytest.raises(ConfigError, match="exists already"):
        directory.create("a")
    with pytest.raises(InternalError, match="whole sectors"):
        file.resize(1)
    file.close()
    with pytest.raises(ClosedError):
        file.resize(SECTOR_BYTES)
    with pytest.raises(BackendError, match="No such file"):
        directory.open("b")


def test_each_change_is_a_step_that_is_done_or_not() -> None:
    def run(step: int | None) -> list[str]:
        medium = SimMedium()
        medium.cut_at_step = step
        directory = SimDirectory(medium)
        try:
            file = directory.create("a")
            file.resize(SECTOR_BYTES)
            directory.publish(file, "b")
            directory.remove("b")
        except PowerCut:
            medium.power_cut(lambda n: n - 1)
        return [f"{name}:{len(medium.content(name))}" for name in medium.names()]

    assert [run(step) for step in (0, 1, 2, 3, None)] == [[], ["a:0"], [f"a:{SECTOR_BYTES}"], ["b:512"], []]


def test_what_was_not_flushed_is_lost_under_the_new_name_too() -> None:
    medium = SimMedium()
    directory = SimDirectory(medium)
    file = directory.create("a")
    file.resize(2 * SECTOR_BYTES)
    file.write(0, (b"x" * 2 * SECTOR_BYTES,))
    file.resize(SECTOR_BYTES)  # the second sector is gone, with what it was
    file.resize(2 * SECTOR_BYTES)
    directory.publish(file, "b")
    assert medium.undecided() == [2]
    medium.power_cut(lambda _: 0)
    assert medium.content("b") == bytes(2 * SECTOR_BYTES)
    with pytest.raises(ClosedError, match="has crashed"):
        file.resize(0)
    file.close()
    directory.open("b").close()


def test_faults_strike_changes() -> None:
    medium = SimMedium()
    directory = SimDirectory(medium)
    file = directory.create("a")
    seen: list[SimOperation] = []

    def strike(operation: SimOperation) -> Fault:
        seen.append(operation)
        return Fault(errno.ENOSPC)

    medium.fault = strike
    for change in (
        lambda: file.resize(PAGE),
        lambda: directory.publish(file, "b"),
        lambda: directory.remove("a"),
        lambda: directory.create("c"),
    ):
        with pytest.raises(BackendError, match="No space") as caught:
            change()
        assert caught.value.errno == errno.ENOSPC
    assert medium.names() == ["a"]
    assert {operation.action for operation in seen} == {SimAction.CHANGE}
