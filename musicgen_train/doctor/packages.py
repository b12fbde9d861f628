"""Python, the packages that are needed, and those that only some things need."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

from musicgen_train.doctor.findings import Finding, note, ok, wrong

_PACKAGE = "musicgen-train"
_TOPIC = "packages"

# Package, what it is for, how to get it.
OPTIONAL = (
    ("peft", "LoRA and DoRA adapters (adapter=lora)", "pip install -e '.[lora]'"),
    ("bitsandbytes", "8-bit optimizers on an NVIDIA GPU", "pip install bitsandbytes"),
    ("torchcodec", "formats that libsndfile does not read, where there is no ffmpeg command", "pip install torchcodec"),
    ("hydra-submitit-launcher", "starting SLURM jobs from the command line", "pip install hydra-submitit-launcher"),
    ("transformers", "the tests and the benchmark, nothing at run time", "pip install -e '.[test]'"),
)


def look_at_packages() -> Iterator[Finding]:
    """Python's version, that of every requirement, and which optional packages there are."""
    yield ok("python", f"{platform.python_version()} at {sys.prefix}")
    yield from _required()
    for name, purpose, command in OPTIONAL:
        version = _version(name)
        if version is None:
            yield note(name, f"not installed; needed only for {purpose}", command)
        else:
            yield ok(name, f"{version}, for {purpose}")


def _required() -> Iterator[Finding]:
    try:
        lines = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield wrong(_TOPIC, f"{_PACKAGE} itself is not installed: what it needs is not known", "pip install -e .")
        return
    requirements = [Requirement(line) for line in lines]
    fitting = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        command = f"pip install '{requirement}'"
        if version is None:
            yield wrong(requirement.name, "not installed", command)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield wrong(requirement.name, f"{version}, but {requirement.specifier} is needed", command)
        else:
            fitting.append(f"{requirement.name} {version}")
    yield ok(_TOPIC, f"{len(fitting)} that are needed: {', '.join(sorted(fitting))}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
