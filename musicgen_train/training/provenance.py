"""Where a run comes from: versions, git state, machine, data and seeds."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from musicgen_train.latents.manifest import Manifest

_PACKAGES = ("musicgen-train", "torch", "lightning", "torchaudio", "datasets", "safetensors", "sentencepiece", "wandb")


def provenance(manifest: Manifest, *, latents: str, init_from: str, encoders: str, seed: int) -> dict[str, Any]:
    """Everything beside the config that decides a run's numbers, as plain values for a JSON file."""
    return {
        "command": shlex.join(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "init_from": init_from,
        "encoders": encoders,
        "latents": {
            "path": latents,
            "created": manifest.created,
            "text_encoder": dataclasses.asdict(manifest.text_encoder),
            "audio_encoder": dataclasses.asdict(manifest.audio_encoder),
            "splits": {name: dataclasses.asdict(split) for name, split in manifest.splits.items()},
        },
        "git": git_state(Path(__file__).parents[2]),
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    # Which says also what it was built for.
    return {**found, "torch": torch.__version__}


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the repository around a folder and whether files differ from it; empty where git knows nothing."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "changed_files": len(changed.splitlines())}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
