"""Checks Python, the packages that are required, and those that only some things need."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement

from musicgen_train.doctor.findings import Finding, note, ok, wrong

_PACKAGE = "musicgen-train"
_TOPIC = "packages"

# What each extra of pyproject.toml is for.
EXTRAS = {
    "lora": "LoRA and DoRA adapters (adapter=lora)",
    "slurm": "starting SLURM jobs from the command line",
    "test": "the tests and the benchmarks",
    "dev": "formatting, linting and type checking (make check)",
}
# Packages of no extra, and what they are for.
_OPTIONAL = {
    "bitsandbytes": "8-bit optimizers on an NVIDIA GPU",
    "torchcodec": "formats that libsndfile does not read, where there is no ffmpeg command",
}


def look_at_packages() -> Iterator[Finding]:
    """Check Python's version, that of every requirement, and which extras and optional packages are installed."""
    yield ok("python", f"{platform.python_version()} at {sys.prefix}")
    try:
        lines = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield wrong(_TOPIC, f"{_PACKAGE} itself is not installed: what it needs is not known", "pip install -e .")
        return
    requirements = [Requirement(line) for line in lines]
    yield from _required([each for each in requirements if _is_for(each, "")])
    for extra, purpose in EXTRAS.items():
        belonging = [each for each in requirements if _is_for(each, extra) and not _is_for(each, "")]
        yield _extra(extra, purpose, belonging)
    for name, purpose in _OPTIONAL.items():
        version = _version(name)
        if version is None:
            yield note(name, f"not installed; needed only for {purpose}", f"pip install {name}")
        else:
            yield ok(name, f"{version}, for {purpose}")


def _is_for(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _required(requirements: Sequence[Requirement]) -> Iterator[Finding]:
    fitting = []
    for requirement in requirements:
        if problem := _problem(requirement):
            yield wrong(requirement.name, problem, f"pip install '{requirement}'")
        else:
            fitting.append(f"{requirement.name} {_version(requirement.name)}")
    yield ok(_TOPIC, f"{len(fitting)} that are needed: {', '.join(sorted(fitting))}")


def _extra(extra: str, purpose: str, requirements: Sequence[Requirement]) -> Finding:
    problems = [f"{each.name} {problem}" for each in requirements if (problem := _problem(each))]
    if problems:
        remedy = f"pip install '{_PACKAGE}[{extra}]'"
        return note(f"extra {extra}", f"{'; '.join(problems)}. It is needed only for {purpose}", remedy)
    found = ", ".join(f"{each.name} {_version(each.name)}" for each in requirements)
    return ok(f"extra {extra}", f"{found}, for {purpose}")


def _problem(requirement: Requirement) -> str | None:
    version = _version(requirement.name)
    if version is None:
        return "not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{version}, but {requirement.specifier} is needed"
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
