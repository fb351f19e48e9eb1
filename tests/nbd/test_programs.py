"""Outside programs against a real server, over Unix and TCP: libnbd's tools, QEMU's, fio, nbd-client.

The server runs in the test's own loop; what a program reports is compared with what the disk in memory
holds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.nbd.outside import run

from pairsync.core.units import KIB, MIB
from pairsync.nbd import NbdLimits, open_tcp_listeners
from pairsync.nbd import constants as c
from pairsync.testing.nbd_memory import CONTEXT_DIRTY, MemoryExport
from pairsync.testing.nbd_service import NbdService, serving_nbd

DEADLINE_S = 60.0
SYSTEM_PYTHON = "/usr/bin/python3"  # has libnbd's binding, which is not on PyPI


def fill(disk: MemoryExport, seed: int = 1) -> None:
    """Random data in places, with holes between."""
    chance = random.Random(seed)
    for offset in range(0, disk.size_bytes, 256 * KIB):
        disk.poke(offset, chance.randbytes(chance.choice([4096, 40_000, 128 * KIB])))


def content(disk: MemoryExport) -> bytes:
    return disk.peek(0, disk.size_bytes)


# -- libnbd --------------------------------------------------------------------------------------------------


@pytest.mark.tools("nbdinfo")
async def test_nbdinfo(disk: MemoryExport, tmp_path: Path) -> None:
    second = MemoryExport("log disk", MIB, read_only=True)
    async with serving_nbd(tmp_path, [disk, second]) as service:
        listed = json.loads(await run("nbdinfo", "--list", "--json", service.uri("")))
        assert [export["export-name"] for export in listed["exports"]] == ["vda", "log disk"]
        info = json.loads(await run("nbdinfo", "--json", service.uri("vda")))
        (export,) = info["exports"]
        assert info["protocol"] == "newstyle-fixed"
        assert info["structured"] is True
        assert export["export-size"] == disk.size_bytes
        assert export["description"] == "a disk for tests"
        assert export["contexts"] == [c.CONTEXT_ALLOCATION, CONTEXT_DIRTY]
        assert (
            export["block_size_minimum"],
            export["block_size_preferred"],
            export["block_size_maximum"],
        ) == (
            1,
            4096,
            32 * MIB,
        )
        abilities = {name for name in export if name.startswith(("can_", "is_")) and export[name] is True}
        assert abilities == {
            "can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim",
            "can_zero",
        }  # fmt: skip
        assert await run("nbdinfo", "--size", service.uri("vda")) == f"{disk.size_bytes}\n"
        await run("nbdinfo", "--is", "read-only", service.uri("log%20disk"))
        await run("nbdinfo", "--can", "df", service.uri("log%20disk"))
        assert "2\n" not in await run("nbdinfo", "--can", "trim", service.uri("log%20disk"), check=False)
    second.close()


@pytest.mark.tools("nbdinfo")
async def test_nbdinfo_map(disk: MemoryExport, tmp_path: Path) -> None:
    disk.poke(64 * KIB, b"x" * 8192)
    async with serving_nbd(tmp_path, [disk]) as service:
        rows = json.loads(await run("nbdinfo", "--map", "--json", service.uri("vda")))
        assert [(row["offset"], row["length"], row["type"]) for row in rows] == [
            (0, 64 * KIB, 3),
            (64 * KIB, 8192, 0),
            (72 * KIB, disk.size_bytes - 72 * KIB, 3),
        ]
        rows = json.loads(await run("nbdinfo", f"--map={CONTEXT_DIRTY}", "--json", service.uri("vda")))
        assert [(row["length"], row["type"]) for row in rows][1] == (8192, 1)


@pytest.mark.tools("nbdcopy")
@pytest.mark.parametrize(
    "options", [[], ["--connections=1"], ["--synchronous"], ["--requests=64", "--flush"]]
)
async def test_nbdcopy_both_ways(disk: MemoryExport, tmp_path: Path, options: Sequence[str]) -> None:
    fill(disk)
    before = content(disk)
    image = tmp_path / "image"
    async with serving_nbd(tmp_path, [disk]) as service:
        await run("nbdcopy", *options, service.uri("vda"), image)
        assert image.read_bytes() == before
        fill(disk, seed=2)
        await run("nbdcopy", *options, image, service.uri("vda"))
        assert content(disk) == before
        if "--flush" in options:
            assert disk.flushed == disk.writes_done


@pytest.mark.tools("nbdcopy")
async def test_nbdcopy_from_server_to_server(disk: MemoryExport, tmp_path: Path) -> None:
    fill(disk)
    target = MemoryExport("copy", disk.size_bytes)
    async with serving_nbd(tmp_path, [disk, target]) as service:
        await run("nbdcopy", service.uri("vda"), service.uri("copy"))
        assert content(target) == content(disk)
    target.close()


NBDSH_ERRORS = """
import errno, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("pairsync:dirty")
h.connect_uri(sys.argv[1])
h.set_strict_mode(0)
size = h.get_size()

def fails(number, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except nbd.Error as error:
        if error.errnum != number:
            raise SystemExit(f"{call.__name__}{arguments[1:]}: {error.errnum} instead of {number}")
    else:
        raise SystemExit(f"{call.__name__}{arguments[1:]} succeeded")

fails(errno.EINVAL, h.pread, 1, size)
fails(errno.EINVAL, h.pread, 2, size - 1)
fails(errno.EINVAL, h.pread, 0, 0)
fails(errno.ENOSPC, h.pwrite, b"ab", size - 1)
fails(errno.ENOSPC, h.zero, 2, size - 1)
fails(errno.EINVAL, h.trim, 2, size - 1)
fails(errno.EINVAL, h.cache, 2, size - 1)
fails(errno.EINVAL, h.block_status, 2, size - 1, lambda *a: 0)
fails(errno.EINVAL, h.pwrite, b"x", 0, flags=nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.pread, 1, 0, flags=nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.trim, 1, 0, flags=nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.cache, 1, 0, flags=nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.flush, flags=nbd.CMD_FLAG_NO_HOLE)

h.pwrite(b"hello", 1000, flags=nbd.CMD_FLAG_FUA)
assert h.pread(5, 1000, flags=nbd.CMD_FLAG_DF) == b"hello"
h.zero(4096, 0, flags=nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
h.cache(4096, 0)
h.flush()
seen = {}
h.block_status(size, 0, lambda name, offset, extents, error: seen.setdefault(name, extents) and 0)
assert set(seen) == {"base:allocation", "pairsync:dirty"}, seen
one = {}
h.block_status(512, 0, lambda name, offset, extents, error: one.setdefault(name, extents) and 0,
               flags=nbd.CMD_FLAG_REQ_ONE)
assert one["pairsync:dirty"] == [512, 1], one
h.shutdown()
print("all as it should be")
"""


@pytest.mark.tools("nbdsh")
async def test_nbdsh_error_cases(disk: MemoryExport, tmp_path: Path) -> None:
    script = tmp_path / "errors.py"
    script.write_text(f"import nbd\n{NBDSH_ERRORS}")
    async with serving_nbd(tmp_path, [disk]) as service:
        assert await run(SYSTEM_PYTHON, script, service.uri("vda")) == "all as it should be\n"
        assert service.server.statistics().errors == 13


NBDSH_OPTIONS = """
import sys
for go_on in ("abort", "go"):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(sys.argv[1])
    names = []
    h.opt_list(lambda name, description: names.append((name, description)) or 0)
    assert names == [("vda", "a disk for tests")], names
    h.set_export_name("nothing")
    try:
        h.opt_info()
    except nbd.Error as error:
        assert "ENOENT" in str(error), error
    else:
        raise SystemExit("an export that is not there")
    h.set_export_name("vda")
    contexts = []
    h.opt_list_meta_context(lambda name: contexts.append(name) or 0)
    assert contexts == ["base:allocation", "pairsync:dirty"], contexts
    h.opt_info()
    size = h.get_size()
    if go_on == "go":
        h.opt_go()
        assert h.get_size() == size
        h.shutdown()
    else:
        h.opt_abort()
h = nbd.NBD()
h.set_request_structured_replies(False)
h.connect_uri(sys.argv[1])
assert not h.get_structured_replies_negotiated()
h.pwrite(b"plain", 0)
assert h.pread(5, 0) == b"plain"
try:
    h.pread(1, h.get_size()) if h.set_strict_mode(0) is None else None
except nbd.Error as error:
    assert error.errnum == 22
h.shutdown()
print("all as it should be")
"""


@pytest.mark.tools("nbdsh")
async def test_nbdsh_options(disk: MemoryExport, tmp_path: Path) -> None:
    script = tmp_path / "options.py"
    script.write_text(f"import nbd\n{NBDSH_OPTIONS}")
    async with serving_nbd(tmp_path, [disk]) as service:
        assert await run(SYSTEM_PYTHON, script, service.uri("vda")) == "all as it should be\n"
        assert service.server.statistics().refused == {}


@pytest.mark.tools("nbd-client")
async def test_nbd_client_lists(disk: MemoryExport, tmp_path: Path) -> None:
    (listener,) = await open_tcp_listeners("127.0.0.1", 0)
    async with serving_nbd(tmp_path, [disk], listeners=[listener]):
        listed = await run("nbd-client", "-l", "127.0.0.1", str(listener.port))
        assert "vda: a disk for tests" in listed


# -- QEMU ----------------------------------------------------------------------------------------------------


@pytest.mark.tools("qemu-img")
async def test_qemu_img(disk: MemoryExport, tmp_path: Path) -> None:
    fill(disk)
    image = tmp_path / "image"
    async with serving_nbd(tmp_path, [disk]) as service:
        info = json.loads(await run("qemu-img", "info", "--output=json", service.uri("vda")))
        assert info["virtual-size"] == disk.size_bytes
        rows = json.loads(await run("qemu-img", "map", "--output=json", service.uri("vda")))
        for row in rows:
            if row["zero"]:
                assert disk.peek(row["start"], row["length"]) == bytes(row["length"])
        assert any(row["zero"] for row in rows)
        await run("qemu-img", "convert", "-f", "raw", "-O", "raw", service.uri("vda"), image)
        assert image.read_bytes() == content(disk)
        compared = await run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, service.uri("vda"))
        assert compared == "Images are identical.\n"
        disk.poke(disk.size_bytes - 1, b"#")
        compared = await run("qemu-img", "compare", image, service.uri("vda"), check=False)
        assert "mismatch" in compared
        await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", image, service.uri("vda"))
        assert image.read_bytes() == content(disk)


@pytest.mark.tools("qemu-io")
async def test_qemu_io(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:

        async def io(*commands: str) -> str:
            output = await run(
                "qemu-io", "-t", "writeback", "-d", "unmap", "-f", "raw",
                *(part for command in commands for part in ("-c", command)), service.uri("vda"),
            )  # fmt: skip
            assert "failed" not in output, output
            return output

        await io("write -P 0xab 0 1M", "read -P 0xab 0 1M")
        assert disk.peek(0, MIB) == b"\xab" * MIB
        await io("write -z 4k 8k", "read -P 0 4k 8k", "read -P 0xab 12k 4k")
        await io("write -zu 64k 64k", "read -P 0 64k 64k")
        await io("write -zn 256k 64k", "read -P 0 256k 64k")
        await io("discard 512k 256k")
        assert disk.peek(512 * KIB, 256 * KIB) == bytes(256 * KIB)
        await io("write -f -P 1 100 200")
        assert disk.flushed == disk.writes_done
        await io("write -P 2 1000 4096", "flush")
        assert disk.flushed == disk.writes_done
        await io("aio_write -P 3 2M 1M", "aio_write -P 4 3M 1M", "aio_read 0 1M", "aio_flush")
        assert disk.peek(2 * MIB, 2 * MIB) == b"\3" * MIB + b"\4" * MIB
        allocated = await io("alloc 64k 4k", "alloc 0 4k")
        assert "4096/4096 bytes allocated at offset 0 bytes" in allocated.replace(
            "4 KiB", "4096/4096 bytes"
        ) or ("0/4096 bytes allocated" in allocated)


@pytest.mark.tools("qemu-io")
async def test_qemu_io_keeps_the_errors_apart(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        disk.write_error = 28
        output = await run("qemu-io", "-f", "raw", "-c", "write 0 4k", service.uri("vda"), check=False)
        assert "No space left on device" in output


# -- fio -----------------------------------------------------------------------------------------------------


async def _fio(service: NbdService, *options: str) -> dict[str, float]:
    fixed = ["--name=verify", "--ioengine=nbd", "--size=8M", "--output-format=json", "--verify_state_save=0"]
    output = await run("fio", *fixed, f"--uri={service.uri('vda')}", *options)
    (job,) = json.JSONDecoder().raw_decode(output[output.index("{\n") :])[0]["jobs"]
    assert job["error"] == 0
    return {"read": job["read"]["total_ios"], "write": job["write"]["total_ios"]}


@pytest.mark.tools("fio")
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("sizes", ["--bs=4k", "--bsrange=512-64k"])
async def test_fio_verifies(disk: MemoryExport, tmp_path: Path, cold: bool, sizes: str) -> None:
    disk.cold = cold
    limits = NbdLimits(requests_in_flight_max=8) if cold else NbdLimits()
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        pattern = ["--rw=randwrite", sizes, "--bs_unaligned", "--iodepth=32", "--fsync=64", "--randseed=7"]
        done = await _fio(service, *pattern, "--verify=crc32c", "--verify_fatal=1")
        assert done["write"] > 100
        assert done["read"] == done["write"]
        assert service.server.statistics().errors == 0
