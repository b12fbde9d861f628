"""From logits to codes: guidance, the truncations of sampling, and the random choice.

Axes: B batch, K codebooks, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from musicgen_train.models.generation_config import GenerationConfig

Generators = torch.Generator | Sequence[torch.Generator] | None


def guide(logits_2BKV: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) of a batch whose second half has the null condition."""
    conditional, null = logits_2BKV.chunk(2)
    return null + (conditional - null) * scale


def pick(logits_BKV: torch.Tensor, settings: GenerationConfig, generators: Generators) -> torch.Tensor:
    """The next code of each codebook, int64 `(batch, codebooks)`.

    Args:
        logits_BKV: float32.
        settings: greedy or sampling, with temperature, top-k and top-p.
        generators: one for all rows, one per row, or None for torch's global one.
    """
    if not settings.do_sample:
        return logits_BKV.argmax(dim=-1)
    return draw_codes(truncate(logits_BKV, settings).softmax(dim=-1), generators)


def draw_codes(probabilities_BKV: torch.Tensor, generators: Generators) -> torch.Tensor:
    """Draw an index for each codebook of each row, int64 `(B, K)`: the one `torch.multinomial` draws with the same
    generator.

    `torch.multinomial` checks the probabilities first, for which the host would wait for a GPU. Of numbers that are
    exponentially distributed with rates p, the smallest is that of index i with probability p_i; the same holds for
    the largest of p_i divided by a number with rate 1.
    """
    noise_BKV = torch.empty_like(probabilities_BKV, memory_format=torch.contiguous_format)
    if generators is None or isinstance(generators, torch.Generator):
        noise_BKV.exponential_(generator=generators)
    else:
        for noise_KV, generator in zip(noise_BKV, generators, strict=True):
            noise_KV.exponential_(generator=generator)
    return (probabilities_BKV / noise_BKV).argmax(dim=-1)


def truncate(logits: torch.Tensor, settings: GenerationConfig) -> torch.Tensor:
    """Logits after temperature, top-k (Fan et al. 2018) and top-p (Holtzman et al. 2020); codes cut off are -inf.

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
