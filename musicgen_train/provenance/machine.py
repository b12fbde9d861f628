"""Versions of what is installed, and the machine that it runs on."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from typing import Any

import torch

from musicgen_train.provenance.cores import available_cores

PACKAGES = (
    *("musicgen-train", "torch", "torchaudio", "lightning", "datasets", "pyarrow", "numpy", "hydra-core"),
    *("safetensors", "sentencepiece", "soundfile", "wandb", "peft", "bitsandbytes"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    # Which says also what it was built for.
    return {**found, "torch": torch.__version__}


def machine() -> dict[str, Any]:
    """Processor, memory, GPUs and what drives them, as plain values; no names of the machine or its user."""
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


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that a stage's setting `device` asks for; `auto` is CUDA, else Apple's MPS, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        local_rank: number of this process on its machine: of several GPUs `auto` gives each process the next one.

    Raises:
        ValueError: there is no such device here, or torch cannot use it.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        best = next(kind for kind, count in counts.items() if count)
        return _usable(torch.device(best, local_rank % counts[best]) if best == "cuda" else torch.device(best))
    not_allowed = f"device is {name!r}; allowed are auto, cpu, cuda, cuda:N, mps"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(not_allowed) from error
    if device.type not in counts:
        raise ValueError(not_allowed)
    if (device.index or 0) >= counts[device.type]:
        there = [kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in counts.items() if count]
        raise ValueError(f"device is {name!r}, which torch does not find on this machine; there is {', '.join(there)}")
    return _usable(device)


def _usable(device: torch.device) -> torch.device:
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:  # such as a GPU that another process has for itself
        raise ValueError(
            f"the device {device} cannot be used: {str(error).splitlines()[0]}. device=cpu computes without it"
        ) from error
    return device


def driver_version() -> str | None:
    """Version of NVIDIA's driver; None where its tool is not installed or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None
