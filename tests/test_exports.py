"""What the package exports is what it says: sorted, few, there, and documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import pairsync
import pairsync.errors

SRC = Path(__file__).resolve().parent.parent / "src"
MAX_EXPORTS = 30  # DESIGN section 5: what an embedder has to learn

MODULES = sorted(
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    for path in (SRC / "pairsync").rglob("*.py")
    if path.stem != "__main__"  # importing it runs it
)


def _exports(module: ModuleType) -> list[str]:
    return list(getattr(module, "__all__", []))


def _order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, each by name: the order that ruff keeps too."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def _defined(module: ModuleType) -> set[str]:
    """Public functions and classes that the module's own source defines at its top level."""
    tree = ast.parse(inspect.getsource(module) or "")
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


def test_the_package_exports_few_names() -> None:
    exports = _exports(pairsync)
    assert len(exports) <= MAX_EXPORTS
    assert exports == sorted(exports, key=_order)
    undocumented = [
        name
        for name in exports
        if (inspect.isclass(thing := getattr(pairsync, name)) or inspect.isroutine(thing))
        and not thing.__doc__
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", MODULES)
def test_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    exports = _exports(module)
    assert len(exports) == len(set(exports)), "a name stands twice"
    assert [export for export in exports if not hasattr(module, export)] == [], "exported, but not there"
    assert [export for export in exports if export.startswith("_") and export != "__version__"] == []
    private = name.rpartition(".")[2].startswith("_")
    if not private and not name.startswith("pairsync.cli."):  # there a decorator makes a function public
        stray = sorted(_defined(module) - set(exports))
        assert stray == [], "public by name: list it in __all__, or give it an underscore"


@pytest.mark.parametrize("name", MODULES)
def test_what_is_exported_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    things = {export: getattr(module, export) for export in _exports(module)}
    own = {
        export: thing
        for export, thing in things.items()
        if getattr(thing, "__module__", None) == name and (inspect.isclass(thing) or inspect.isroutine(thing))
    }
    # a dataclass without a docstring gets its signature as one
    bare = [e for e, thing in own.items() if not thing.__doc__ or thing.__doc__.startswith(f"{e}(")]
    assert bare == []


def test_every_error_says_whose_fault_it_is() -> None:
    errors = [getattr(pairsync.errors, name) for name in pairsync.errors.__all__]
    root = pairsync.errors.PairsyncError
    assert all(issubclass(error, root) for error in errors)
    for error in errors:
        if error in {root, pairsync.errors.CallerError, pairsync.errors.PeerError}:
            with pytest.raises(TypeError, match="abstract"):
                error("nobody's fault")
        else:
            assert str(error("a reason")) == "a reason"
    assert pairsync.errors.BackendError("disk full", errno=28).errno == 28
    assert pairsync.errors.MetadataError("damaged").errno == 5
