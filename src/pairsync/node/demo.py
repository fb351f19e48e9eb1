"""``pairsync demo``: the main job on real input, seen and judged.

An ext4 file system with real files is written through NBD into a volume that two host processes replicate.
The active host is killed in the middle of that; the other one takes over, and the client, which came by
its door, writes on without noticing more than a pause.  The file system is changed while the first host is
away.  Back again, it is the standby, and gets the blocks in which the two differ.  Then
everything is compared: both replicas byte by byte, the file systems by e2fsck, all files with their tree.

Whatever deviates is a finding; the exit status is 0 only without any.  It works as an ordinary user in a
directory of its own, which is removed at the end, also when it is interrupted.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import BackendError, ConfigError

from .compare import compare_volumes
from .control import ask, serve_control
from .demoshow import Show, open_show
from .demotools import Stretch, Tools, find_tools, stretches_of
from .demotree import Tree, change_tree, compare_trees, copy_tree, default_sources
from .lab import Lab
from .labfile import GUEST, LabFile, control_socket_of, nbd_socket_of, open_lab_file, remove_sockets
from .labprepare import prepare
from .labrequests import lab_handlers

__all__ = ["Demo", "run_demo"]

VOLUME = "vda"
VOLUME_BYTES = 256 * MIB
SPACE_BYTES = 600 * MIB
"""Tree, image, two replicas and the files read out again, of 80 MiB each, and a reserve."""

STRETCH_BYTES = 12 * MIB
"""Data that is written between two flushes.  A guest flushes every few seconds; this one goes by bytes, so
that it is known what the host had made durable when it was killed."""

KILL_STRETCH = 0.6
KILL_FRACTION = 0.5
"""Where the active host is killed: in which of the stretches, and how far within it."""

WIRE_RATIO_MAX = 1.05
"""Bytes on the wire for each dirty byte: headers and seals are to be a few per cent."""

WIRE_RESERVE_BYTES = 64 * 1024
"""What a session costs however little is dirty: introductions, acknowledgements."""

LOOK_S = 0.02
"""Between two looks who serves."""

DEADLINE_S = 300.0
"""The whole of it takes seconds; a machine that needs longer is not going to make it."""

INTERRUPTED = 130
"""Exit status after a signal, as shells have it for Ctrl-C."""


class Demo:
    """The story, step by step."""

    def __init__(self, directory: Path, show: Show, tools: Tools) -> None:
        self._lab_directory = directory / "lab"
        self._tree = directory / "tree"
        self._image = directory / "disk.ext4"
        self._show = show
        self._tools = tools
        self._findings: list[str] = []  # what was not as it must be
        self._resyncs: list[str] = []  # the modes of those that the active host began, at most a handful
        self._uri = ""  # of the volume, once the lab is up
        self._content_bytes = 0  # what the volume holds, once the image is written
        self._failover_s = 0.0  # from the kill until the other host served
        self._progressed_s = 0.0  # when the client last went on
        self._longest_s = 0.0  # that it has stood still

    # ------------------------------------------------------------------ the lab

    def _tell(self, line: Mapping[str, Any]) -> None:
        if line.get("host") != "b":
            return
        if line["event"] == "resync":
            self._resyncs.append(line["mode"])
        elif line["event"] == "progress":
            self._show.progress("catching up", line["fraction"], f"{line['bytes_per_s'] / MIB:.0f} MiB/s")

    async def _ask(self, do: str, **more: str) -> dict[str, Any]:
        return await ask(control_socket_of(self._lab_directory), {"do": do, **more})

    async def _guest(self, host: str) -> dict[str, Any]:
        """What a host says of the guest."""
        told = (await self._ask("status"))["hosts"][host]
        if told["guest"] is None:
            raise BackendError(f"host {host} does not answer: {told.get('error', 'it has ended')}")
        return dict(told["guest"])

    async def _dirty(self, host: str = "b") -> int:
        """Blocks that the host does not know to be durable on the other one."""
        return int((await self._guest(host))["volumes"][0]["dirty_blocks"])

    def _replica(self, host: str) -> Path:
        return self._lab_directory / host / f"{VOLUME}.img"

    def _expect(self, fine: bool, finding: str) -> None:
        if not fine:
            self._findings.append(finding)
            self._show.fact(f"NOT AS IT MUST BE: {finding}")

    async def run(self) -> int:
        """All of it; the exit status."""
        begun = time.monotonic()
        tree = await self._make_tree()
        async with trio.open_nursery() as nursery:
            lab = Lab(self._lab_directory, self._prepare_lab(), self._tell, nursery)
            try:
                await self._start(lab, nursery)
                await self._write_and_kill()
                await self._change()
                await self._bring_back()
            finally:
                with trio.CancelScope(shield=True):
                    await lab.stop()
                remove_sockets(self._lab_directory)
            nursery.cancel_scope.cancel()
        await self._prove()
        if self._findings:
            self._show.verdict(f"Verdict: FAILED: {'; '.join(self._findings)}.", good=False)
            return 1
        self._show.verdict(
            "Verdict: the disk outlived the loss of its active host in mid-write: the other one served "
            f"after {self._failover_s:.1f} s, nothing that was acknowledged is missing, the first one caught "
            f"up by itself, and all {tree.files:,} files are on both, bit for bit "
            f"({time.monotonic() - begun:.0f} s).",
            good=True,
        )
        return 0

    # ------------------------------------------------------------------ steps

    async def _make_tree(self) -> Tree:
        self._show.step("Make a disk image with a real file system")
        sources = await trio.to_thread.run_sync(default_sources)
        tree = await trio.to_thread.run_sync(
            partial(copy_tree, sources, self._tree, trio.from_thread.check_cancelled)
        )
        self._show.fact(
            f"{tree.files:,} files, {_mib(tree.size_bytes)}, from {', '.join(map(str, tree.sources))}"
        )
        await self._tools.make_image(self._image, self._tree, VOLUME_BYTES)
        self._show.fact(f"mkfs.ext4 -d put them into an image of {_mib(VOLUME_BYTES)}")
        return tree

    def _prepare_lab(self) -> LabFile:
        self._lab_directory.mkdir(mode=0o700)
        lab = open_lab_file(self._lab_directory, {VOLUME: VOLUME_BYTES}, None, single=False)
        prepare(self._lab_directory, lab)
        return lab

    async def _start(self, lab: Lab, nursery: trio.Nursery) -> None:
        self._show.step("Start a pair: two hosts, an encrypted link between them, and a witness")
        self._show.command(f"pairsync lab up {self._lab_directory} --volume {VOLUME}={VOLUME_BYTES // MIB}M")
        await lab.start_all()
        await lab.until_owned()
        socket = control_socket_of(self._lab_directory)
        await nursery.start(serve_control, socket, lab_handlers(lab))
        await self._ask("wait")
        lab.tell_ready()
        hosts = lab.ready_line()["hosts"]
        self._uri = str(hosts["b"]["volumes"][VOLUME]["uri"])
        pids = {name: host["pid"] for name, host in hosts.items()}
        self._show.fact(f"host a (process {pids['a']}) is active, host b (process {pids['b']}) its standby")

    async def _write_and_kill(self) -> None:
        self._show.step("Write the image through NBD by host b's door; kill host a in the middle of it")
        self._show.command(f"qemu-img convert -n --target-is-zero -O raw {self._image.name} '{self._uri}'")
        stretches = await trio.to_thread.run_sync(stretches_of, self._image, STRETCH_BYTES)
        victim = int(KILL_STRETCH * len(stretches))
        last = Stretch(stretches[victim].offset, VOLUME_BYTES - stretches[victim].offset)
        stretches[victim:] = [last]  # long enough to be killed in the middle of it
        for number, stretch in enumerate(stretches):
            await self._write(stretch, number, len(stretches), kill=number == victim)
        dirty = await self._dirty()
        self._content_bytes = (await trio.Path(self._replica("b")).stat()).st_blocks * 512
        self._show.fact(
            f"host b took over and served {self._failover_s:.2f} s after the kill; qemu-img wrote on, after "
            f"a pause of {self._longest_s:.2f} s"
        )
        self._show.fact(
            f"of {_mib(self._content_bytes)}, {dirty:,} blocks ({_blocks(dirty)}) are not on host a"
        )
        self._expect(dirty > 0, "nothing is dirty although a host was away during a write")

    async def _write(self, stretch: Stretch, number: int, count: int, *, kill: bool) -> None:
        """Write and flush one stretch, and if asked for kill the active host meanwhile."""
        far_enough = trio.Event()
        ended = False

        def progress(fraction: float) -> None:
            self._show.progress("written", (number + fraction) / count)
            now_s, before_s = time.monotonic(), self._progressed_s
            self._longest_s = max(self._longest_s, now_s - before_s) if before_s else 0.0
            self._progressed_s = now_s
            if fraction >= KILL_FRACTION:
                far_enough.set()

        async def killer() -> None:
            await far_enough.wait()
            self._expect(not ended, "the write had ended before the host was killed")
            begun = time.monotonic()
            await self._ask("kill", host="a")
            self._show.command(f"pairsync lab kill {self._lab_directory} a")
            while True:
                if (await self._ask("status"))["guests"][GUEST]["active"] == "b":
                    break
                await trio.sleep(LOOK_S)
            self._failover_s = time.monotonic() - begun

        async with trio.open_nursery() as nursery:
            if kill:
                nursery.start_soon(killer)
            socket = nbd_socket_of(self._lab_directory, "b")
            await self._tools.write_stretch(self._image, stretch, socket, VOLUME, progress)
            ended = True

    async def _change(self) -> None:
        self._show.step("Change the file system while host a is away")
        edits = await trio.to_thread.run_sync(change_tree, self._tree)
        await self._tools.change_image(self._image, self._tree, edits)
        self._show.fact(f"debugfs: {len(edits.removed)} files removed, {len(edits.written)} written")
        before = await self._dirty()
        await self._tools.write_changes(self._image, self._uri)
        dirty = await self._dirty()
        self._show.fact(f"qemu-img wrote the blocks that differ: {dirty:,} ({_blocks(dirty)}) are dirty now")
        self._expect(dirty > before, "the changes made nothing dirty")

    async def _bring_back(self) -> None:
        self._show.step("Bring host a back: it is the standby, and only what differs is copied")
        self._show.command(f"pairsync lab start {self._lab_directory} a")
        await self._ask("cut")  # for a moment, to see what it brings along
        begun = time.monotonic()
        await self._ask("start", host="a")
        own = await self._dirty("a")
        dirty_bytes = (await self._dirty() + own) * BLOCK_BYTES
        wire = -(await self._guest("b"))["link"]["bytes_out"]
        self._resyncs.clear()
        self._show.fact(f"{own:,} blocks may hold what it had written at the end, which nobody acknowledged")
        await self._ask("heal")
        await self._ask("wait")
        taken = time.monotonic() - begun
        wire += (await self._guest("b"))["link"]["bytes_out"]
        self._show.progress("catching up", 1.0)
        self._show.fact(f"in sync {taken:.1f} s after its process was started")
        self._show.fact(
            f"{dirty_bytes // BLOCK_BYTES:,} dirty blocks of both are {_mib(dirty_bytes)}; on the wire "
            f"{_mib(wire)} ({wire / max(dirty_bytes, 1):.3f} x); the whole content is "
            f"{_mib(self._content_bytes)}"
        )
        self._expect(self._resyncs == ["incremental"], f"not one incremental resync, but {self._resyncs}")
        self._expect(dirty_bytes < self._content_bytes, "everything was dirty, also what had been flushed")
        self._expect(
            wire <= dirty_bytes * WIRE_RATIO_MAX + WIRE_RESERVE_BYTES,
            f"{wire} bytes on the wire for {dirty_bytes} dirty ones",
        )

    async def _prove(self) -> None:
        self._show.step("Both hosts ended; compare everything")
        replicas = {host: self._replica(host) for host in "ab"}
        self._show.command(f"pairsync lab check {self._lab_directory}")
        await self._compare("both replicas are", replicas["a"], replicas["b"])
        await self._compare("they and the image are", replicas["a"], self._image)
        for host, path in replicas.items():
            trouble = await self._tools.check_image(path)
            self._expect(not trouble, f"e2fsck on host {host}: {trouble[-300:]}")
        self._show.fact("e2fsck -fn ran on both replicas")
        for host, path in replicas.items():
            out = self._image.with_name(f"files-{host}")
            await self._tools.extract(path, out)
            differences = await trio.to_thread.run_sync(
                partial(compare_trees, self._tree, out, trio.from_thread.check_cancelled)
            )
            self._expect(not differences, f"files on host {host}: {', '.join(differences)}")
            await trio.to_thread.run_sync(shutil.rmtree, out)
        self._show.fact("all files of both replicas were compared with the tree")

    async def _compare(self, what: str, left: Path, right: Path) -> None:
        result = await trio.to_thread.run_sync(compare_volumes, left, right, _checking())
        self._expect(result.equal, f"{left} and {right} differ, first at byte {result.first_difference}")
        if result.equal:
            self._show.fact(f"{what} the same in all {result.size_bytes:,} bytes")


def _checking() -> Callable[[int, int], None]:
    """Lets a comparison in a thread be cancelled."""

    def progress(_done: int, _total: int) -> None:
        trio.from_thread.check_cancelled()

    return progress


def _mib(count: float) -> str:
    return f"{count / MIB:,.1f} MiB"


def _blocks(count: int) -> str:
    return _mib(count * BLOCK_BYTES)


@contextmanager
def _workplace(parent: Path | None, *, keep: bool) -> Iterator[Path]:
    """A new directory with room enough."""
    where = Path(tempfile.gettempdir()) if parent is None else parent
    try:
        where.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(where).free
        if free < SPACE_BYTES:
            raise ConfigError(
                f"{where} has {_mib(free)} free, the demonstration takes {_mib(SPACE_BYTES)}: "
                f"name another place with --directory"
            )
        directory = Path(tempfile.mkdtemp(prefix="pairsync-demo-", dir=where))
    except OSError as error:
        raise BackendError(f"{where}: {error.strerror}", error.errno or 5) from error
    try:
        yield directory
    finally:
        if not keep:
            shutil.rmtree(directory)


async def _until_signal(story: Callable[[], Awaitable[int]]) -> int:
    """Run the story; a signal ends it, and what it began is cleaned up."""
    result = INTERRUPTED
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            with trio.move_on_after(DEADLINE_S) as limit:
                result = await story()
            if limit.cancelled_caught:
                raise BackendError(f"the demonstration did not end within {DEADLINE_S:g} s")
            nursery.cancel_scope.cancel()
    return result


def _run(story: Callable[[], Awaitable[int]]) -> int:
    try:
        return trio.run(_until_signal, story)
    except BaseExceptionGroup as group:  # whose nurseries these are is nobody else's concern
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__


def run_demo(parent: Path | None = None, *, keep: bool = False) -> int:
    """Run the demonstration in a new directory of ``parent``; the exit status.

    Raises `ConfigError` if a program or room is missing, `BackendError` if something could not be run.
    """
    tools = Tools(find_tools())
    with _workplace(parent, keep=keep) as directory:
        show = open_show()
        try:
            result = _run(Demo(directory, show, tools).run)
        finally:
            show.close()
        if result == INTERRUPTED:
            show.verdict("Interrupted; everything that was begun is cleaned up.", good=False)
        elif keep:
            show.fact(f"kept: {directory}; to play on: pairsync lab up {directory}/lab")
    return result
