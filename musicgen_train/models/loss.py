"""The training loss: cross-entropy per codebook, as sums and counts so that means can be taken over any group.

Axes: B batch, K codebooks, S steps, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

IGNORE = -100


def codebook_cross_entropy(
    logits_BSV: Sequence[torch.Tensor], labels_BSK: torch.Tensor, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and number of scored positions of each codebook.

    Args:
        logits_BSV: per codebook, `(batch, steps, vocab_size)` in any floating-point type; taken to float32.
        labels_BSK: `(batch, steps, codebooks)`; -100 and `pad_id` are not scored.
        pad_id: the special id.

    Returns:
        Sums in nats, float32 `(codebooks,)`, and counts, int64 `(codebooks,)`. The sum of a codebook with nothing to
        score is 0 and has zero gradients.
    """
    labels_KN = labels_BSK.masked_fill(labels_BSK == pad_id, IGNORE).flatten(0, 1).T  # (K, B * S)
    sums = [
        F.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=IGNORE, reduction="sum")
        for logits, labels in zip(logits_BSV, labels_KN, strict=True)
    ]
    return torch.stack(sums), (labels_KN != IGNORE).sum(dim=1)


def mean_over_codebooks(sums_K: torch.Tensor, counts_K: torch.Tensor) -> torch.Tensor:
    """The loss: the mean, over codebooks that have anything to score, of each one's mean cross-entropy.

    It is audiocraft's, except that a codebook with nothing to score does not make it NaN. Pass sums and counts added
    up over micro-batches and ranks to get what one big batch would give.
    """
    scored = counts_K > 0
    means = sums_K / counts_K.clamp(min=1)
    return means.sum() / scored.sum().clamp(min=1)
