"""Counts processor cores, and picks the device that a setting asks for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available_cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that a stage's setting `device` asks for; `auto` is CUDA, else Apple's MPS, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        local_rank: the number of this process on its machine; `auto` gives each process the next GPU.

    Raises:
        ValueError: there is no such device here, or torch cannot use it.
    """
    # Imported late: preprocessing asks for the number of cores before torch is imported.
    import torch

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
    import torch

    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:  # such as a GPU that another process has for itself
        raise ValueError(
            f"the device {device} cannot be used: {str(error).splitlines()[0]}. device=cpu computes without it"
        ) from error
    return device
