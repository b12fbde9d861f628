"""No module of the package imports one that imports it, by whatever way: also under TYPE_CHECKING and in functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import musicgen_train

ROOT = Path(musicgen_train.__file__).parent


def modules_of(root: Path) -> dict[str, Path]:
    """The files of a package by the names that they are imported under."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(module: str, path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, anywhere in it; of `from a import b` it is `a.b`."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(root: Path) -> dict[str, set[str]]:
    """The modules that each module of a package imports.

    An import of `a.b.c` runs the `__init__` of `a` and `a.b` as well, so these count as imported, too. Those that the
    importing module itself lies in do not, unless they are named: they are running already.
    """
    modules = modules_of(root)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in imported_names(module, path):
            parts = name.split(".")
            ancestors = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
            known = [ancestor for ancestor in ancestors if ancestor in modules]
            if known:
                # The last one is what is named: a module, or the module that has such a variable or class.
                *packages, named = known
                graph[module] |= {named, *(each for each in packages if not f"{module}.".startswith(f"{each}."))}
    return graph


def cycles_of(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The groups of modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        found: set[str] = set()
        pending = list(graph[start])
        while pending:
            if (module := pending.pop()) not in found:
                found.add(module)
                pending += graph[module]
        reached[start] = found
    return {
        frozenset({start, *(module for module in reached[start] if start in reached[module])})
        for start in graph
        if start in reached[start]
    }


def test_no_module_imports_one_that_imports_it() -> None:
    graph = import_graph(ROOT)
    assert "musicgen_train.models.decoder" in graph["musicgen_train.models.causal_lm"]
    assert sorted(map(sorted, cycles_of(graph))) == []


@pytest.mark.parametrize(
    ("files", "cycle"),
    [
        ({"a": "import p.b", "b": "import os"}, ""),
        ({"a": "import p.b", "b": "import p.a"}, "a b"),
        ({"a": "from p import b", "b": "from p.c import X", "c": "from . import a"}, "a b c"),
        # In a function, and for a type checker alone.
        ({"a": "from p.b import X", "b": "def f():\n    from p.a import Y"}, "a b"),
        ({"a": "from p.b import X", "b": "if TYPE_CHECKING:\n    from p.a import Y"}, "a b"),
        # A name of a module, and one within it.
        ({"a": "from p import b", "b": "from p.a import b"}, "a b"),
        ({"a": "from p.a import X"}, "a"),
        # A package may hand on what its modules hold, but they may not ask it for that.
        ({"s/__init__": "from p.s.a import X", "s/a": "from p.s.b import X", "s/b": "X = 1"}, ""),
        ({"s/__init__": "from p.s.a import X", "s/a": "from p.s import X"}, "s s.a"),
        ({"s/__init__": "from .a import X", "s/a": "from . import b", "s/b": "from .. import s"}, "s s.a s.b"),
        # Nor may what it hands on lead back to who imports any of its modules.
        ({"s/__init__": "from p.s.a import X", "s/a": "from p import b", "s/c": "", "b": "import p.s.c"}, "b s s.a"),
    ],
)
def test_which_imports_make_a_cycle(files: dict[str, str], cycle: str, tmp_path: Path) -> None:
    for name, source in {"__init__": "", **files}.items():
        path = tmp_path / "p" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    expected = {frozenset(f"p.{name}" for name in cycle.split())} if cycle else set()
    assert cycles_of(import_graph(tmp_path / "p")) == expected
