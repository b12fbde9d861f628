"""From logits to codes: guidance, the truncations of sampling, and the random choice.

Axes: B batch, K codebooks, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from musicgen_train.models.generation_config import GenerationConfig

Generators = torch.Generator | Sequence[torch.Generator] | None


def guide(logits_2BKV: torch.Tensor, scale: float) -> torch.Tensor:
    """Applies classifier-free guidance (Ho & Salimans 2022); the second half of the batch has the null condition."""
    conditional, null = logits_2BKV.chunk(2)
    return null + (conditional - null) * scale


def pick(logits_BKV: torch.Tensor, settings: GenerationConfig, generators: Generators) -> torch.Tensor:
    """Picks the next code of each codebook, int64 `(batch, codebooks)`.

    Args:
        logits_BKV: float32.
        settings: greedy or sampling, with temperature, top-k and top-p.
        generators: one for all rows, one per row, or None for torch's global one.
    """
    if not settings.do_sample:
        return logits_BKV.argmax(dim=-1)
    return draw_codes(truncate(logits_BKV, settings).softmax(dim=-1), generators)


def draw_codes(probabilities_BKV: torch.Tensor, generators: Generators) -> torch.Tensor:
    """Draws an index for each codebook of each row, int64 `(B, K)`, as `torch.multinomial` does with that generator.

    `torch.multinomial` checks the probabilities first, for which the host would wait for a GPU. Among exponentially
    distributed numbers with rates p, the i-th is the smallest with probability p_i; equivalently, p_i divided by a
    number with rate 1 is the largest.
    """
    noise_BKV = torch.empty_like(probabilities_BKV, memory_format=torch.contiguous_format)
    if generators is None or isinstance(generators, torch.Generator):
        noise_BKV.exponential_(generator=generators)
    else:
        for noise_KV, generator in zip(noise_BKV, generators, strict=True):
            noise_KV.exponential_(generator=generator)
    return (probabilities_BKV / noise_BKV).argmax(dim=-1)


def truncate(logits: torch.Tensor, settings: GenerationConfig) -> torch.Tensor:
    """Applies temperature, top-k (Fan et al. 2018) and top-p (Holtzman et al. 2020); logits cut off become -inf.

    Works on any leading axes. At least one code always stays.
    """
    if settings.temperature != 1.0:
        logits = logits / settings.temperature
    if settings.top_k and settings.top_k < logits.shape[-1]:
        threshold = logits.topk(settings.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if settings.top_p is not None and settings.top_p < 1.0:
        # Ascending, so that rounding in the sum falls on the unlikely codes.
        ordered, order = logits.sort(dim=-1)
        cut = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - settings.top_p
        cut[..., -1] = False
        logits = logits.masked_fill(cut.scatter(-1, order, cut), float("-inf"))
    return logits
