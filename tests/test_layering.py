"""What may import what: the packages form layers, and the outer world stays out of the inner ones."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import musicgen_train

ROOT = Path(__file__).parents[1] / "musicgen_train"

# Package to what of musicgen_train its files may import, and do: packages or modules.
LAYERS = {
    "hub": {"files", "hub"},
    "models": {"files", "hub", "models"},
    "processing": {"files", "hub", "processing"},
    "convert": {"convert", "files", "hub", "models", "training"},
    "audio": {"audio"},
    "metrics": {"audio", "metrics"},
    "latents": {"files", "latents"},
    "provenance": {"devices", "files", "provenance"},
    "preprocess": {
        *("audio", "hub", "latents", "models", "preprocess", "processing", "provenance"),
        *("devices", "files", "garbage_collection", "progress", "typed_settings"),
    },
    "data": {"data", "latents", "models"},
    "training": {
        *("audio", "data", "hub", "latents", "models", "processing", "provenance", "training"),
        *("files", "typed_settings"),
    },
    "evaluation": {
        *("audio", "data", "evaluation", "hub", "latents", "metrics", "models", "processing", "provenance", "training"),
        *("devices", "files", "progress", "typed_settings"),
    },
    "doctor": {
        *("audio", "data", "devices", "doctor", "files", "latents", "models", "moved", "processing", "provenance"),
        "training",
    },
    # It brings a listener for the control test, which evaluation is handed by its settings.
    "demo": {"audio", "demo", "evaluation.control.listener", "files", "launch"},
}
FOREIGN = {"transformers", "tokenizers", "lightning", "pytorch_lightning", "hydra", "omegaconf", "datasets", "wandb"}
FOREIGN |= {"peft"}
ALLOWED_FOREIGN = {
    "convert": {"omegaconf"},
    "latents": {"datasets"},
    "preprocess": {"datasets", "lightning", "omegaconf"},
    "processing": {"tokenizers"},
    "data": {"datasets", "lightning"},
    "training": {"hydra", "lightning", "omegaconf", "peft", "wandb"},
    "evaluation": {"omegaconf"},
    "doctor": {"omegaconf"},
}
# In one folder of the package.
MOST_FILES = 15
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}

FILES = sorted(path for package in LAYERS for path in (ROOT / package).rglob("*.py"))


def imports_of(source: str, package: str) -> set[str]:
    """All modules that a source imports, at the top or within functions, as absolute names.

    `from a import b` counts as `a.b`, since b may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


@functools.cache
def imports_of_file(path: Path) -> set[str]:
    package = ".".join(["musicgen_train", *path.relative_to(ROOT).parts[:-1]])
    return imports_of(path.read_text(encoding="utf-8"), package)


def ours_of(imports: set[str]) -> set[str]:
    """Those of this package, without its name."""
    return {name.removeprefix("musicgen_train.") for name in imports if is_within(name, "musicgen_train")}


def foreign_of(imports: set[str]) -> set[str]:
    """Those of the outer world that are kept out of most packages."""
    return {name.partition(".")[0] for name in imports} & FOREIGN


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def test_how_imports_are_read() -> None:
    source = (
        "import os.path, json as j\n"
        "from a.b import c, d\n"
        "from . import sibling\n"
        "from ..hub.folder import read_json\n"
        "def f():\n    import late\n"
    )
    assert imports_of(source, "musicgen_train.models") == {
        "os.path",
        "json",
        "a.b.c",
        "a.b.d",
        "musicgen_train.models.sibling",
        "musicgen_train.hub.folder.read_json",
        "late",
    }


def test_all_packages_are_looked_at() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in FILES}
    assert found == set(LAYERS)
    assert ROOT / "models" / "config.py" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_layer_and_those_below(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    imports = imports_of_file(path)
    above = {name for name in ours_of(imports) if not any(is_within(name, layer) for layer in LAYERS[package])}
    assert not above, f"{package} may import {sorted(LAYERS[package])}"
    assert not foreign_of(imports) - ALLOWED_FOREIGN.get(package, set())


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_all_that_it_may(package: str) -> None:
    imports = set().union(*(imports_of_file(path) for path in FILES if path.is_relative_to(ROOT / package)))
    unused = {layer for layer in LAYERS[package] if not any(is_within(name, layer) for name in ours_of(imports))}
    assert not unused - {package}
    assert not ALLOWED_FOREIGN.get(package, set()) - foreign_of(imports)


def test_typed_settings_know_no_stage() -> None:
    imports = imports_of_file(ROOT / "typed_settings.py")
    assert not [name for name in imports if is_within(name, "musicgen_train") or name.partition(".")[0] in FOREIGN]


def test_no_module_is_a_drawer() -> None:
    names = {path.stem for path in ROOT.rglob("*.py")} | {path.name for path in ROOT.rglob("*") if path.is_dir()}
    assert not names & DRAWERS
    assert not [name for name in names if name.endswith(("_utils", "_helpers", "_common"))]


# The same in every stage: its entry, its settings, its main line, its command.
SAME_IN_EVERY_STAGE = {"__init__.py", "__main__.py", "run.py", "settings.py", "main", "run"}


def test_no_name_means_two_things() -> None:
    files = [path.name for path in ROOT.rglob("*.py")]
    names: list[str] = []
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names += [target.id for target in targets if isinstance(target, ast.Name)]
            names += [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
    public = [name for name in names if not name.startswith("_")]
    for found in (files, public):
        twice = {name for name, count in Counter(found).items() if count > 1}
        assert not twice - SAME_IN_EVERY_STAGE


def test_no_room_is_crowded() -> None:
    rooms = [ROOT, *(path for path in ROOT.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    files = {room: [path for path in room.iterdir() if path.is_file()] for room in rooms}
    assert not [str(room) for room, there in files.items() if len(there) > MOST_FILES]


def test_importing_the_package_stays_cheap() -> None:
    # torchaudio and the hub's client are imported by the functions that need them. tokenizers takes a hundredth of a
    # second.
    slow = [*sorted(FOREIGN - {"tokenizers"}), "huggingface_hub", "torchaudio", "soundfile", "torch._dynamo", "sympy"]
    code = (
        "import sys; from musicgen_train import *; MusicgenProcessor; "
        f"print([name for name in {slow!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"


def test_the_package_has_what_it_names_and_nothing_else() -> None:
    assert set(musicgen_train.__all__) <= set(dir(musicgen_train))
    for name in musicgen_train.__all__:
        assert getattr(musicgen_train, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'musicgen_train' has no attribute 'MusicgenForCausalLn'"):
        musicgen_train.MusicgenForCausalLn  # noqa: B018


def test_evaluating_begins_without_what_trains() -> None:
    # Lightning alone takes seconds to import; a checkpoint's weights are read without it.
    slow = ["lightning", "hydra", "peft", "wandb"]
    code = f"import sys, musicgen_train.evaluation.run; print([name for name in {slow!r} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"
