"""k-means for codebooks.

Axis letters: T vectors to be represented, V entries of a codebook, D width.
"""

from __future__ import annotations

import torch

# Rows of distances at a time, few enough for the caches: twice as fast as thousands.
_ROWS = 512


def fit_vectors(data_TD: torch.Tensor, count: int, rounds: int, generator: torch.Generator) -> torch.Tensor:
    """Choose `count` vectors that are near to the data: Lloyd's algorithm, from data drawn at random.

    An entry that no vector is nearest to moves to one drawn at random.

    Args:
        data_TD: `(T, D)`.
        count: V.
        rounds: of moving each entry to the mean of what is nearest to it; 0 leaves the data as drawn.
        generator: of the draws.

    Returns:
        `(V, D)`.

    Raises:
        ValueError: fewer vectors than entries.
    """
    if len(data_TD) < count:
        raise ValueError(
            f"{len(data_TD)} frames of audio are too few for a codebook of {count} entries; give {count} or more"
        )
    entries_VD = data_TD[torch.randperm(len(data_TD), generator=generator)[:count]].clone()
    for _ in range(rounds):
        codes_T = nearest(data_TD, entries_VD)
        counts_V = torch.bincount(codes_T, minlength=count)
        sums_VD = torch.zeros_like(entries_VD).index_add_(0, codes_T, data_TD)
        entries_VD = sums_VD / counts_V.clamp_min(1)[:, None]
        unused = (counts_V == 0).nonzero().flatten()
        entries_VD[unused] = data_TD[torch.randperm(len(data_TD), generator=generator)[: len(unused)]]
    return entries_VD


def nearest(data_TD: torch.Tensor, entries_VD: torch.Tensor) -> torch.Tensor:
    """The nearest entry to each vector, int64 `(T,)`."""
    # |x - e|^2 without |x|^2, which is the same for all entries.
    half_squares_V, negative_DV = entries_VD.pow(2).sum(1) / 2, -entries_VD.t().contiguous()
    scores = (torch.addmm(half_squares_V, rows, negative_DV) for rows in data_TD.split(_ROWS))
    return torch.cat([score.min(1).indices for score in scores])
