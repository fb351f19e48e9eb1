"""The interface that an embedder implements: the disk in memory satisfies it, for the type checker too."""

from __future__ import annotations

import inspect

from pairsync.nbd.export import Export
from pairsync.testing.nbd_memory import MemoryExport


def _as_export(export: Export) -> Export:
    return export


def test_memory_export_is_an_export(disk: MemoryExport) -> None:
    assert _as_export(disk) is disk


def test_only_what_may_wait_is_async() -> None:
    """The data plane of cached reads and writes has no task switch in it."""
    functions = {name: value for name, value in vars(Export).items() if inspect.isfunction(value)}
    plain = {name for name, value in functions.items() if not inspect.iscoroutinefunction(value)}
    assert {name for name in plain if not name.startswith("_")} == {"meta_contexts", "read_nowait", "submit"}
