"""The package as people install it: built, put into an environment of its own, and used from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[1]
SOURCES = ("musicgen_train", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def done(*command: object, cwd: Path) -> str:
    """Run a command that sees neither the checkout nor the caller's settings of Python. Returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy, since setuptools leaves its products beside the sources."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / name)
    done(sys.executable, "-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')", cwd=folder)
    [archive] = (folder / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel, built from the source distribution."""
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done(*pip, "--wheel-dir", "wheels", sdist, cwd=sdist.parent)
    [archive] = (sdist.parent / "wheels").iterdir()
    return archive


def test_the_wheel_holds_what_the_package_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    for folder, place in ((ROOT / "musicgen_train", "musicgen_train"), (ROOT / "configs", "musicgen_train/configs")):
        there = {f"{place}/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
        assert not {name for name in there if "__pycache__" not in name} - names
    assert not {name for name in names if name.partition("/")[0] not in ("musicgen_train", metadata.partition("/")[0])}
    assert metadata.replace("METADATA", "licenses/LICENSE") in names
    assert "License-Expression: Apache-2.0\n" in text


def test_the_source_distribution_builds_by_itself(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.py", "configs/train.yaml", "configs/model/small.yaml"} <= names


@pytest.fixture(params=["wheel", pytest.param("package index", marks=pytest.mark.package_index)])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The installed command `musicgen-train`: beside the packages that the tests have, or with all of its own."""
    environment = tmp_path / "environment"
    if request.param == "package index":
        done(sys.executable, "-m", "venv", environment, cwd=tmp_path)
        sdist = request.getfixturevalue("sdist")
        done(environment / "bin/pip", "--quiet", "install", sdist, cwd=tmp_path)
    else:
        done(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
        pip = [sys.executable, "-m", "pip", "--quiet", "--python", environment / "bin/python"]
        done(*pip, "install", "--no-deps", "--no-index", request.getfixturevalue("wheel"), cwd=tmp_path)
        # Only now: pip would take an editable installation among the tests' packages for the same. Files in a folder
        # named here are not read as `.pth` files, so that installation does not lead back to the checkout.
        [packages] = environment.glob("lib/*/site-packages")
        (packages / "tests_packages.pth").write_text("\n".join(site.getsitepackages()))
    return environment / "bin/musicgen-train"


def test_an_installed_package_works_from_an_empty_folder(command: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()

    def verb(*words: object) -> str:
        return done(command, *words, cwd=folder)

    code = "import musicgen_train; print(musicgen_train.__file__)"
    package = Path(done(command.with_name("python"), "-c", code, cwd=folder).strip()).parent
    assert package.is_relative_to(command.parents[1])

    findings = {each["topic"]: each for each in json.loads(verb("doctor", "--json"))["findings"]}
    assert findings["packages"]["status"] == "ok"

    music = folder / "music"
    music.mkdir()
    for number in range(4):
        seconds = np.arange(2 * 32000) / 32000
        soundfile.write(music / f"{number}.wav", 0.3 * np.sin(2 * np.pi * 110 * (number + 2) * seconds), 32000)
        (music / f"{number}.txt").write_text("a slow piece of one note")
    verb("demo", "encoders", "encoders")
    verb("preprocess", "input=music", "output=latents", "encoders=encoders", "clip_seconds=2", "split.validation=0.25")
    experiment = folder / "own/experiment/mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(
        "# @package _global_\ndefaults:\n  - debug\n  - override /trainer: ddp\n  - _self_\n"
        "trainer:\n  accelerator: cpu\n  devices: 2\n  max_steps: 2\nsamples:\n  every: 0\n"
    )
    trained = verb(
        *("train", "experiment=mine", "--config-dir", "own", "data.path=latents", "init_from=encoders", "output=run")
    )
    assert "2 device(s)" in trained
    (folder / "prompts.txt").write_text("a fast techno track\n")
    evaluated = ["model=run", "output=report", "prompts=prompts.txt", "data.path=latents", "max_new_tokens=23"]
    verb("evaluate", *evaluated)
    assert "a fast techno track" in (folder / "report/report.html").read_text()
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        *("encoders", "latents", "music", "own", "prompts.txt", "report", "run")
    ]
