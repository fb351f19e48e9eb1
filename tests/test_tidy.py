"""House style that no linter knows, as ordinary tests, computed from the tree as it is.

Every exemption stands in one of the tables below with its reason, and an exemption that exempts nothing (any
more) is a failure too: the tables cannot rot.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

AnyFunction: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
TESTS = ROOT / "tests"
SHIPPED = ("src", "tools", "benchmarks", "examples")  # Python that people read first; tests may be longer

MAX_FUNCTION_LINES = 70  # one screen: signature, docstring and body
MAX_MODULE_LINES = 450
MAX_TEST_MODULE_LINES = 900  # tables of cases are long and flat

LONG_FUNCTIONS: dict[str, str] = {
    # "src/pairsync/room/module.py:function": "reason",
}
LONG_MODULES: dict[str, str] = {
    # "src/pairsync/room/module.py": "reason",
}
TESTED_ELSEWHERE: dict[str, tuple[str, str]] = {
    "src/pairsync/core/reports.py": ("tests/core/test_session.py", "a part of the session"),
    # "src/pairsync/room/module.py": ("tests/.../test_other.py", "reason"),
    "src/pairsync/nbd/traffic.py": ("tests/nbd/test_connection.py", "totals that its connections count"),
    "src/pairsync/node/demo.py": ("tests/e2e/test_demonstration.py", "it is run as a user would run it"),
    "src/pairsync/io/witnessstore.py": (
        "tests/testing/test_witness.py",
        "protocols only: the suite is the test of whatever keeps them",
    ),
    "src/pairsync/guest/standing.py": ("tests/guest/test_arbitration.py", "it tells what was agreed there"),
    "src/pairsync/guest/seam.py": ("tests/guest/test_roles.py", "a protocol; its fake is there"),
    "src/pairsync/node/labprepare.py": ("tests/node/test_labfile.py", "what it makes is what the file says"),
    "src/pairsync/node/etcdmain.py": ("tests/e2e/test_failover.py", "a process of a lab"),
    "src/pairsync/node/labrequests.py": ("tests/node/test_lab.py", "requests are asked of a lab that runs"),
    "src/pairsync/errors.py": (
        "tests/test_exports.py",
        "a tree of exceptions",
    ),
}
UNTESTED_GLUE: dict[str, str] = {
    # "src/pairsync/cli/module.py": "reason",
}
LITERAL_LIMITS_ALLOWED: dict[str, str] = {
    # "src/pairsync/room/module.py:line text": "reason",
}

# calls whose numbers are limits or waits: which arguments they take them in (position, keyword)
LIMITED_CALLS: dict[str, tuple[int, str]] = {
    "open_memory_channel": (0, "max_buffer_size"),
    "CapacityLimiter": (0, "total_tokens"),
    "Semaphore": (0, "initial_value"),
    "deque": (1, "maxlen"),
    "receive_some": (0, "max_bytes"),
    "recv": (0, "bufsize"),
    "sleep": (0, "seconds"),
    "move_on_after": (0, "seconds"),
    "fail_after": (0, "seconds"),
    "open_tcp_listeners": (2, "backlog"),
    "listen": (0, "backlog"),
}
HARMLESS_NUMBERS = {0, 1}  # a rendezvous, a mutex, "yield once", "forget all but the newest"


def _python_files(*directories: str) -> list[Path]:
    return sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        reason = f"{_name(path)}:{error.lineno}: this Python cannot read it: {error.msg}"
    pytest.fail(reason, pytrace=False)


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, AnyFunction]]:
    """Every function with its dotted name, nested ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{child.name}", child
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


def _tracked_files() -> list[Path]:
    # the directory may belong to somebody else than the one who runs the tests
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip(f"needs a git checkout: {listed.stderr.strip()}")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def _fail_if(findings: list[str], rule: str) -> None:
    if findings:
        pytest.fail(f"{rule}\n" + "\n".join(f"  {finding}" for finding in findings), pytrace=False)


def _judge_exemptions(found: dict[str, str], exempt: dict[str, str], rule: str) -> None:
    """`found`: key -> what is wrong.  Fails for what is not exempt, and for exemptions without a finding."""
    findings = [f"{key}: {what}" for key, what in found.items() if key not in exempt]
    findings += [f"{key}: its exemption is not needed any more" for key in exempt if key not in found]
    _fail_if(findings, rule)


# -- modules and functions -----------------------------------------------------------------------------------


def test_no_assert_in_src() -> None:
    findings = [
        f"{_name(path)}:{node.lineno}"
        for path in _python_files("src")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Assert)
    ]
    _fail_if(findings, "assert disappears under -O: raise InternalError or a more fitting error instead")


def test_every_module_opens_with_a_docstring() -> None:
    findings = [
        _name(path)
        for path in _python_files(*SHIPPED, "tests")
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(_tree(path))
    ]
    _fail_if(findings, "a module opens with its theory: what it decides, inputs, invariants")


def test_functions_are_short() -> None:
    found = {}
    for path in _python_files(*SHIPPED):
        for name, function in _functions(_tree(path)):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found[f"{_name(path)}:{name}"] = f"{lines} lines"
    _judge_exemptions(found, LONG_FUNCTIONS, f"a function has at most {MAX_FUNCTION_LINES} lines")


def test_modules_are_short() -> None:
    found = {}
    for path in _python_files(*SHIPPED, "tests"):
        limit = MAX_TEST_MODULE_LINES if _name(path).startswith("tests/") else MAX_MODULE_LINES
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limit:
            found[_name(path)] = f"{lines} lines, {limit} allowed"
    _judge_exemptions(found, LONG_MODULES, "a module that has grown this long wants to be two")


# -- every module is tested ----------------------------------------------------------------------------------


@functools.cache
def _imports(test: Path) -> frozenset[str]:
    """Dotted names of all that a file imports and of their packages; ``from a import b`` as ``a.b`` too."""
    names: set[str] = set()
    for node in ast.walk(_tree(test)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(
        ".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)
    )


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts)


def _own_test(path: Path) -> Path:
    inside = path.relative_to(SRC / "pairsync")
    return TESTS / inside.parent / f"test_{inside.stem.strip('_')}.py"


def _only_declares(path: Path) -> bool:
    """Constants, types and plain records: there is nothing in it that could be called."""
    return next(_functions(_tree(path)), None) is None


def _judge_equipment(path: Path) -> str | None:
    """The room `testing` is itself equipment of tests: it is enough that one of them works with it."""
    package = ".".join(_dotted(path).split(".")[:3])  # a simulator of many modules is used as one
    if any(package in _imports(test) for test in _python_files("tests")):
        return None
    return f"no test imports {package}: equipment that nothing uses"


def _judge_test_of(path: Path) -> str | None:
    """What is wrong with the tests of that module, or None."""
    if _name(path).startswith("src/pairsync/testing/"):
        return _judge_equipment(path)
    elsewhere = TESTED_ELSEWHERE.get(_name(path))
    test = ROOT / elsewhere[0] if elsewhere else _own_test(path)
    if not test.is_file():
        return f"wants {_name(test)}, or an entry in TESTED_ELSEWHERE of {_name(Path(__file__))}"
    if _dotted(path) not in _imports(test):
        return f"{_name(test)} imports nothing of {_dotted(path)}"
    if elsewhere and _own_test(path).is_file():
        return f"has {_name(_own_test(path))}: its entry in TESTED_ELSEWHERE is not needed any more"
    return None


def test_every_module_has_its_test_module() -> None:
    modules = [path for path in _python_files("src") if path.stem not in {"__init__", "__main__"}]
    found = {
        _name(path): what for path in modules if not _only_declares(path) and (what := _judge_test_of(path))
    }
    _judge_exemptions(found, UNTESTED_GLUE, "every module has a test module of its own")


def test_exemptions_of_tests_name_what_exists() -> None:
    findings = [name for name in (*TESTED_ELSEWHERE, *UNTESTED_GLUE) if not (ROOT / name).is_file()]
    _fail_if(findings, "exemptions for modules that are not there (any more)")


# -- limits --------------------------------------------------------------------------------------------------


def _literal_limit(call: ast.Call) -> str | None:
    """What is wrong with the limit that the call states, or None."""
    function = call.func.value if isinstance(call.func, ast.Subscript) else call.func  # channel[int](8)
    callee = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if callee not in LIMITED_CALLS:
        return None
    position, keyword = LIMITED_CALLS[callee]
    stated = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg == keyword)]
    if callee == "open_memory_channel" and any(ast.unparse(value).endswith("inf") for value in stated):
        return "an unbounded queue"
    for value in stated:
        numbers = {node.value for node in ast.walk(value) if isinstance(node, ast.Constant)}
        if not numbers <= HARMLESS_NUMBERS and all(
            isinstance(node, (ast.Constant, ast.BinOp, ast.operator)) for node in ast.walk(value)
        ):
            return f"{callee}({ast.unparse(value)}): give the number a name, with its unit and reason"
    return None


def test_limits_and_waits_have_names() -> None:
    found = {
        f"{_name(path)}:{ast.unparse(node)}": what
        for path in _python_files("src")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and (what := _literal_limit(node))
    }
    _judge_exemptions(found, LITERAL_LIMITS_ALLOWED, "every limit and every wait is a named constant")


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("trio.open_memory_channel(16)", True),
        ("trio.open_memory_channel(math.inf)", True),
        ("trio.open_memory_channel[int](max_buffer_size=8)", True),
        ("trio.open_memory_channel(QUEUE_SLOTS)", False),
        ("trio.open_memory_channel(0)", False),
        ("trio.sleep(0.25)", True),
        ("stream.receive_some(64 * 1024)", True),
        ("stream.receive_some(64 * KIB)", False),
        ("deque((), maxlen=100)", True),
        ("deque([1, 2, 3])", False),
        ("print(16)", False),
    ],
)
def test_a_literal_limit_is_found(code: str, refused: bool) -> None:
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert bool(_literal_limit(call)) == refused


# -- text of every tracked file ------------------------------------------------------------------------------

# put together here, lest this file be the first finding
_DIRECTORIES = "|".join(("wo" + "rk", "fa" + "rm", "opt/whe" + "els", "opt/py" + "pi"))
_MARKERS = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"))
MACHINE_PATHS = re.compile(rf"(?<![\w.}}/])/(?:{_DIRECTORIES})\b")
MARKERS = re.compile(rf"\b(?:{_MARKERS})\b")


def _lines_with(pattern: re.Pattern[str]) -> list[str]:
    findings = []
    for path in _tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a binary file, such as a recorded input of a fuzzer
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line):
                findings.append(f"{_name(path)}:{number}: {line.strip()[:100]}")
    return findings


def test_no_path_of_somebodys_machine() -> None:
    _fail_if(_lines_with(MACHINE_PATHS), "a tracked file names a directory of the machine it was written on")


def test_nothing_is_left_for_later() -> None:
    _fail_if(_lines_with(MARKERS), "do it now, or write an issue")


def test_patterns_bite() -> None:
    assert MACHINE_PATHS.search("cd " + "/wo" + "rk/main")
    assert MACHINE_PATHS.search("'" + "/fa" + "rm'")
    assert not MACHINE_PATHS.search("src/wo" + "rk/main")
    assert not MACHINE_PATHS.search("/net" + "work/main")
    assert MARKERS.search("# TO" + "DO later")
    assert not MARKERS.search("mkstemp-" + "X" * 6)


# -- the changelog -------------------------------------------------------------------------------------------

SECTIONS = ["Safety", "Features", "Fixes", "Internals"]
RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+) \(\d{4}-\d{2}-\d{2}\)")


def _judge_changelog(text: str) -> list[str]:
    """What is wrong with the changelog's form."""
    titles = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    bodies = re.split(r"^## .+$", text, flags=re.MULTILINE)
    findings = []
    if bodies[0].strip() != "# Changelog":
        findings.append("opens with '# Changelog' and nothing else before the first '## '")
    if titles[:2] != ["Compatibility", "Unreleased"]:
        findings.append(f"wants '## Compatibility', then '## Unreleased'; there is {titles[:2]}")
    releases = [RELEASE.fullmatch(title) for title in titles[2:]]
    findings += [
        f"'## {title}' is not of the form '1.2.3 (2030-12-31)'"
        for title, release in zip(titles[2:], releases, strict=True)
        if release is None
    ]
    versions = [tuple(int(number) for number in release.groups()) for release in releases if release]
    if versions != sorted(set(versions), reverse=True):
        findings.append("the newest release stands first, and none twice")
    for title, body in zip(titles[1:], bodies[2:], strict=True):
        findings += [f"{title}: {what}" for what in _judge_sections(body)]
    return findings


def _judge_sections(body: str) -> list[str]:
    names = re.findall(r"^### (.+)$", body, flags=re.MULTILINE)
    findings = [] if names == SECTIONS else [f"the sections are {SECTIONS}, in this order; there is {names}"]
    for name, text in zip(names, re.split(r"^### .+$", body, flags=re.MULTILINE)[1:], strict=True):
        entries = [" ".join(entry.split()) for entry in re.split(r"^- ", text, flags=re.MULTILINE)]
        if entries[0]:
            findings.append(f"{name}: text outside of '- ' entries: {entries[0][:60]!r}")
        if len(entries) < 2:
            findings.append(f"{name}: empty; write '- Nothing yet.'")
        unended = [entry for entry in entries[1:] if not entry.endswith(".")]
        findings += [f"{name}: an entry ends with a full stop: {entry[:50]!r}" for entry in unended]
    return findings


def test_changelog_has_its_form() -> None:
    findings = _judge_changelog((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    _fail_if(findings, "CHANGELOG.md: a policy, then one part a release, each with the same sections")


def test_a_spoilt_changelog_is_found() -> None:
    written = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    good = re.sub(r"(### Safety\n\n).*?(\n### )", r"\1- Nothing yet.\n\2", written, count=1, flags=re.DOTALL)
    released = good + good[good.index("## Unreleased") :].replace("Unreleased", "0.1.0 (2030-01-31)")
    assert _judge_changelog(released) == []
    for old, new in [
        ("# Changelog\n", "# Changes\n"),
        ("## Compatibility\n", ""),
        ("### Safety", "### Security"),
        ("### Fixes\n", ""),
        ("0.1.0 (2030-01-31)", "0.1.0"),
        ("- Nothing yet.", ""),
        ("Nothing yet.", "Nothing yet"),
    ]:
        assert old in released
        assert _judge_changelog(released.replace(old, new)), f"{old!r} -> {new!r} was not noticed"
    older_first = released + good[good.index("## Unreleased") :].replace("Unreleased", "0.2.0 (2030-02-28)")
    assert _judge_changelog(older_first) == ["the newest release stands first, and none twice"]
