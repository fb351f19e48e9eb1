"""Says what the system lacks beside Python, and as root on Debian installs it.

Called by make, with the system's own Python and nothing but its standard library::

    system.py venv             can this Python make virtual environments?  (Debian ships that part apart)
    system.py tools [demo]     the programs of debian-packages.txt, or only those that the demo needs

As root the missing Debian packages are installed: only what is missing, without questions, with at most
`ATTEMPTS` tries.  An ordinary user gets the list and the line for an administrator; then, and when a package
cannot be had, the exit status is still 0, for the tests skip by name what they cannot run.  With ``--strict``
or under ``CI=true`` it is 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["Need", "find", "missing", "needs"]

TABLE = Path(__file__).with_name("debian-packages.txt")
SYSTEM_PYTHON = "/usr/bin/python3"
SYSTEM_DIRECTORIES = ("/usr/sbin", "/sbin")  # mkfs, ip, ...: not in an ordinary user's PATH
APT_LISTS = Path("/var/lib/apt/lists")

ATTEMPTS = 3  # mirrors fail for a moment now and then; more tries only hide a real fault
BACKOFF_S = 5.0  # doubled after each try
APT_DEADLINE_S = 1800.0  # one call of apt-get; a kernel and QEMU on a slow line take minutes
DPKG_LOCK_S = 300  # another apt-get at work, such as the nightly one
LOG_TAIL_LINES = 25
DROP_INS = {  # what keeps a package from starting a service that nobody asked for, while it is installed
    "postgresql": (
        Path("/etc/postgresql-common/createcluster.d/pairsync-tools.conf"),
        "create_main_cluster = false\n",
    ),
    "etcd-server": (Path("/usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n"),
}
FETCH_FAILED = "Failed to fetch"  # apt's word for a mirror that cannot be reached: no package will do better


@dataclasses.dataclass(frozen=True)
class Need:
    """One line of the table."""

    probe: str
    package: str
    groups: frozenset[str] = frozenset()


def needs() -> list[Need]:
    """The table, in its order."""
    rows = (line.split("#", 1)[0].split() for line in TABLE.read_text(encoding="utf-8").splitlines())
    return [Need(row[0], row[1], frozenset(row[2:])) for row in rows if row]


def find(probe: str) -> str | None:
    """Where the program, file or Python module of a probe is; None if it is not there."""
    if probe.startswith("/"):
        return next((str(path) for path in sorted(Path("/").glob(probe[1:]))), None)
    if probe.startswith("python:"):
        code = f"import importlib.util as u; s = u.find_spec({probe[7:]!r}); print(s.origin if s else '')"
        if shutil.which(SYSTEM_PYTHON) is None:
            return None
        done = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_DIRECTORIES])
    return shutil.which(probe, path=path)


def missing(wanted: Iterable[Need]) -> list[Need]:
    """Those that are not there."""
    return [need for need in wanted if find(need.probe) is None]


def _packages(wanted: Iterable[Need]) -> list[str]:
    return list(dict.fromkeys(need.package for need in wanted))


def _say(text: str) -> None:
    print(f"pairsync: {text}", file=sys.stderr, flush=True)


# -- apt-get -------------------------------------------------------------------------------------------------


def _apt_get(*arguments: str) -> str:
    """Run apt-get without questions; "" if it succeeded, else the end of what it printed."""
    # no restart of services, neither asked for nor done: this is somebody's machine
    environment = os.environ | {
        "DEBIAN_FRONTEND": "noninteractive",
        "NEEDRESTART_SUSPEND": "1",
        "LC_ALL": "C",
    }
    command = ["apt-get", "-qq", "-y", "-o", f"DPkg::Lock::Timeout={DPKG_LOCK_S}", "-o", "Dpkg::Use-Pty=0"]
    try:
        done = subprocess.run(
            [*command, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=APT_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"apt-get {arguments[0]} was stopped after {APT_DEADLINE_S:.0f} s"
    if done.returncode == 0:
        return ""
    tail = "\n".join(done.stdout.splitlines()[-LOG_TAIL_LINES:])
    return f"apt-get {arguments[0]} failed with status {done.returncode}:\n{tail}"


@contextlib.contextmanager
def _no_new_services(packages: list[str]) -> Iterator[None]:
    """With the `DROP_INS` of these packages; nothing of them is left."""
    made: list[Path] = []  # the files, and before them the directories that were made for them
    try:
        for file, text in (DROP_INS[package] for package in packages if package in DROP_INS):
            made += [place for place in reversed(file.parents) if not place.exists()]
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                made.append(file)
                file.write_text(text, encoding="utf-8")
                if text.startswith("#!"):
                    file.chmod(0o755)
        yield
    finally:
        for place in reversed(made):
            if place.is_file():
                place.unlink()
            elif not any(place.iterdir()):
                place.rmdir()


def _install(packages: list[str]) -> None:
    """Install what can be installed; what came of it is for the caller to probe."""
    with _no_new_services(packages):
        _install_now(packages)


def _install_now(packages: list[str]) -> None:
    _say(f"installing {len(packages)} Debian package(s), this may take minutes: {' '.join(packages)}")
    install = ("install", "--no-install-recommends")
    if any(APT_LISTS.glob("*_Packages*")) and not _apt_get(*install, *packages):
        return
    trouble = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        # an update may fail for somebody's other sources, and the install succeed all the same
        stale = _apt_get("update")
        trouble = _apt_get(*install, *packages)
        if not trouble:
            return
        trouble = "\n".join(filter(None, (stale, trouble)))
    _say(trouble)
    if FETCH_FAILED in trouble:
        return
    _say("together they cannot be installed; trying one by one")
    for package in packages:
        if trouble := _apt_get(*install, package):
            _say(trouble)


def _can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


# -- commands ------------------------------------------------------------------------------------------------


def _list_missing(lacking: list[Need]) -> None:
    _say("these are missing; what needs them is skipped by name:")
    width = max(len(need.probe) for need in lacking)
    for need in lacking:
        print(f"    {need.probe:<{width}}  (Debian package {need.package})", file=sys.stderr)
    command = f"apt-get install --no-install-recommends {' '.join(_packages(lacking))}"
    _say(f"an administrator of a Debian machine gets them all with\n\n    {command}\n")


def provide_tools(group: str | None, *, strict: bool) -> int:
    """Install or list what is missing of the table, or of one group of it."""
    wanted = [need for need in needs() if group is None or group in need.groups]
    lacking = missing(wanted)
    if lacking and _can_install():
        _install(_packages(lacking))
        lacking = missing(wanted)
    if lacking:
        _list_missing(lacking)
    return 1 if lacking and strict else 0


def _can_make_venv() -> bool:
    code = "import ensurepip, venv"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def provide_venv() -> int:
    """Make sure that this Python can make virtual environments with pip in them."""
    if _can_make_venv():
        return 0
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if _can_install():
        _install([package])
    if _can_make_venv():
        return 0
    _say(f"{sys.executable} lacks the modules venv and ensurepip; on Debian: apt-get install {package}")
    return 1


def main(arguments: list[str]) -> int:
    """The command line; see the top of this file."""
    strict = "--strict" in arguments or os.environ.get("CI", "").lower() == "true"
    match [argument for argument in arguments if argument != "--strict"]:
        case ["venv"]:
            return provide_venv()
        case ["tools"]:
            return provide_tools(None, strict=strict)
        case ["tools", group]:
            return provide_tools(group, strict=strict)
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
