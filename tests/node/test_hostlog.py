"""The one line that says why a host has ended."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import trio

from pairsync.errors import BackendError
from pairsync.node.hostlog import TAIL_BYTES, last_words


def words(tmp_path: Path, text: str, since_bytes: int = 0) -> str | None:
    log = tmp_path / "log"
    log.write_text(text)
    return last_words(log, since_bytes)


def printed(error: BaseException) -> str:
    """As the interpreter prints it at the end."""
    return "".join(traceback.format_exception(error))


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause  # noqa: TRY301 - nothing is hidden, the traceback is what is wanted
    except Exception as caught:  # noqa: BLE001 - likewise
        return caught


def in_nurseries(error: Exception) -> BaseException:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    async def main() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        return group
    pytest.fail("it did not fail")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("\n \n", None),
        ("2030-01-01 INFO pairsync.nbd serving\n", "2030-01-01 INFO pairsync.nbd serving"),
        ("first\npairsync: no such disk\n\n", "pairsync: no such disk"),
        (printed(raised(ValueError("bad"))), "ValueError: bad"),
        (printed(raised(ValueError())), "ValueError"),
        (printed(raised(KeyError("x"))) + "pairsync: what counts\n", "pairsync: what counts"),
        (printed(raised(KeyError("x"))) + "2030-01-01 INFO on it goes\n", "KeyError: 'x'"),
        (printed(raised(BackendError("outer"), KeyError("inner"))), "pairsync.errors.BackendError: outer"),
        (printed(raised(ValueError("of: more\nthan one line"))), "ValueError: of: more"),
        (printed(raised(KeyError("old"))) + printed(raised(ValueError("new"))), "ValueError: new"),
    ],
)
def test_the_line(tmp_path: Path, text: str, expected: str | None) -> None:
    assert words(tmp_path, text) == expected


def test_of_a_group_the_first_of_its_exceptions(tmp_path: Path) -> None:
    text = printed(in_nurseries(TypeError("our bug")))
    assert text.splitlines()[-1].strip(" |+-") == ""  # what there was to see before
    assert words(tmp_path, "2030-01-01 INFO serving\n" + text) == "TypeError: our bug"
    both = ExceptionGroup("g", [raised(KeyError("one")), ExceptionGroup("h", [raised(ValueError("two"))])])
    assert words(tmp_path, printed(raised(both))) == "KeyError: 'one'"
    empty = printed(raised(ExceptionGroup("g", [raised(ValueError())])))
    assert words(tmp_path, empty) == "ValueError"


def test_only_what_was_said_this_time_and_not_without_end(tmp_path: Path) -> None:
    old = "pairsync: of another time\n"
    assert words(tmp_path, old, len(old)) is None
    assert words(tmp_path, old + "new\n", len(old)) == "new"
    assert words(tmp_path, printed(raised(KeyError("x"))) + "line\n" * TAIL_BYTES) == "line"
