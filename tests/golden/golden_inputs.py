"""What the golden values are computed from: small models and latents that are stored, so that nothing draws them again.

`golden_origin.py` made them from seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "assets/golden"
COMPOSITE = GOLDEN / "composite"
STEREO_DECODER = GOLDEN / "stereo_decoder"
LATENTS = GOLDEN / "latents"
STEREO_LATENTS = GOLDEN / "stereo_latents"


def uniform(seed: int, *shape: int) -> torch.Tensor:
    """Numbers from -1 to 1 that follow from the bits of numpy's PCG64, which no release may change."""
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape))) >> np.uint64(40)
    return torch.from_numpy((bits.astype(np.float32) / 2**23 - 1).reshape(shape))


def whole(seed: int, below: int, *shape: int) -> torch.Tensor:
    """Whole numbers from 0 on, from the same bits."""
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape))) >> np.uint64(33)
    return torch.from_numpy((bits % np.uint64(below)).astype(np.int64).reshape(shape))
