"""The decoder's position embeddings, which are computed where they are used and never stored."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def sinusoidal_positions(first: int, steps: int, width: int, device: torch.device) -> torch.Tensor:
    """Position embeddings as audiocraft and the hub have them: cosines, then sines (Vaswani et al. 2017, 3.5).

    Frequency i of `half = width // 2` is `exp(-log(10000) * i / (half - 1))`. Always float32: in half precision the
    angles of late positions would be wrong by up to 2.

    Returns:
        float32 `(steps, width)` for positions `first` to `first + steps - 1`.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=device).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(first, first + steps, device=device).float()[:, None] * frequencies
    table = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(table, (0, width % 2))
