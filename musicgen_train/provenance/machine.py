"""Tells the versions of packages, and describes the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from typing import Any

import torch

from musicgen_train.devices import available_cores

PACKAGES = (
    *("musicgen-train", "torch", "torchaudio", "lightning", "datasets", "pyarrow", "numpy", "hydra-core"),
    *("safetensors", "sentencepiece", "soundfile", "wandb", "peft", "bitsandbytes"),
)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    # torch's own version also says which CUDA it was built for.
    return {**found, "torch": torch.__version__}


def machine() -> dict[str, Any]:
    """Cores, GPUs and drivers as plain values; without the names of the machine and its user."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [
            {
                "name": gpu.name,
                "memory_gib": round(gpu.total_memory / 2**30, 1),
                "compute_capability": f"{gpu.major}.{gpu.minor}",
            }
            for gpu in gpus
        ],
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "driver": driver_version() if gpus else None,
    }


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None if nvidia-smi is not installed or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None
