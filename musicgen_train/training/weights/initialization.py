"""Random initialization for training from scratch, as in audiocraft."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.decoder import MusicgenDecoderLayer


@torch.no_grad()
def initialize_like_audiocraft(
    decoder: MusicgenForCausalLM, projection: nn.Linear | None = None, generator: torch.Generator | None = None
) -> None:
    """Initialize all weights as those of the released models were (audiocraft's `weight_init: gaussian`).

    Embeddings and heads are Gaussian with a standard deviation of 1/sqrt(width); the output projections and the
    feed-forward of layer i (from 0), with 1/sqrt(inputs) / sqrt(2 (i + 1)); both are truncated at three deviations.
    Queries, keys, values and the text projection are uniform within 1/sqrt(inputs). Norms start as the identity.

    Args:
        decoder: changed in place.
        projection: the composite's `enc_to_dec_proj`, if it has one.
        generator: a generator on the decoder's device; None takes torch's global one.
    """
    inner = decoder.model.decoder
    for table in cast("list[nn.Embedding | nn.Linear]", [*inner.embed_tokens, *decoder.lm_heads]):
        _gaussian(table.weight, decoder.config.hidden_size**-0.5, generator)
    for depth, layer in enumerate(cast("Iterable[MusicgenDecoderLayer]", inner.layers), start=1):
        for attention in (layer.self_attn, layer.encoder_attn):
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                _uniform(linear.weight, linear.in_features, generator)
        for linear in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc1, layer.fc2):
            _gaussian(linear.weight, linear.in_features**-0.5 / (2 * depth) ** 0.5, generator)
    for module in inner.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    if projection is not None:
        _uniform(projection.weight, projection.in_features, generator)
        _uniform(projection.bias, projection.in_features, generator)


def _gaussian(weight: torch.Tensor, std: float, generator: torch.Generator | None) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)


def _uniform(weight: torch.Tensor, inputs: int, generator: torch.Generator | None) -> None:
    bound = inputs**-0.5
    nn.init.uniform_(weight, -bound, bound, generator=generator)
