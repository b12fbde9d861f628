"""Chooses the fastest way to do the steps of a request: in C on a CPU, as a CUDA graph on a GPU, else the forward pass.

Within a request only the ids and the position change from step to step, so all else is prepared once.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import nn

from musicgen_train.models.decoder import MusicgenDecoder, MusicgenDecoderLayer
from musicgen_train.models.generation.cuda_graph import FixedStep, GraphedStep, StepWeights
from musicgen_train.models.kernels.decode_step import NativeStep, StepTensors, choose_decode_step
from musicgen_train.models.kv_cache import KeysValues, KVCache
from musicgen_train.models.layers import LayerNorm, MusicgenAttention, cross_attention_mask, sinusoidal_positions
from musicgen_train.models.products import Linear

Step: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Computes the next column's logits, float32 `(rows, codebooks, vocab_size)`, from the newest column, int64
`(batch, codebooks)`. The next call may overwrite them."""

MakeStep: TypeAlias = "Callable[[KVCache, int, torch.Tensor | None, bool], Step]"
"""Makes the step of a window. Takes a cache that holds the first columns and the text, the number of columns of the
window, the text's mask, and whether there is guidance; the second half of rows then has the null condition."""


def step_maker(decoder: MusicgenDecoder, heads: nn.ModuleList, rows: int) -> MakeStep | None:
    """Returns a function that makes the steps of a request's windows; None if only the forward pass can do them.

    Args:
        decoder, heads: their weights must not change until the request is done.
        rows: rows of a step, the null rows of guidance included.
    """
    if not is_plain(decoder, heads):
        return None
    device = decoder.layer_norm.weight.device
    if device.type == "cuda":
        weights = StepWeights(decoder, heads)
        # No graph under autocast: it caches rounded copies of weights, and may free them while a graph reads them.
        if torch.is_autocast_enabled("cuda"):
            return functools.partial(FixedStep, weights)
        return lambda *window: GraphedStep(FixedStep(weights, *window))
    tensors = _step_tensors(decoder, heads)
    library = choose_decode_step(tensors, rows)
    return None if library is None else functools.partial(_native_step, library, tensors)


def is_plain(decoder: MusicgenDecoder, heads: nn.ModuleList) -> bool:
    """Returns True if the weights alone determine what the model computes: no part is wrapped, hooked or sharded."""
    known = {MusicgenDecoder, MusicgenDecoderLayer, MusicgenAttention, Linear, nn.ModuleList, nn.Embedding, LayerNorm}
    parts = [*decoder.modules(), *heads.modules()]
    if any(type(part) not in known or part._forward_hooks or part._forward_pre_hooks for part in parts):
        return False
    parameters = [*decoder.parameters(), *heads.parameters()]
    first = parameters[0]
    return all(
        type(parameter) is nn.Parameter and (parameter.dtype, parameter.device) == (first.dtype, first.device)
        for parameter in parameters
    )


def _step_tensors(decoder: MusicgenDecoder, heads: nn.ModuleList) -> StepTensors:
    config, norm = decoder.config, decoder.layer_norm
    return StepTensors(
        layers=[_layer_tensors(cast(MusicgenDecoderLayer, layer)) for layer in decoder.layers],
        embeddings=[cast(nn.Embedding, table).weight for table in decoder.embed_tokens],
        heads=[cast(nn.Linear, head).weight for head in heads],
        final_norm_weight=norm.weight,
        final_norm_bias=norm.bias,
        norm_epsilon=norm.eps,
        num_heads=config.num_attention_heads,
        activation=config.activation_function,
    )


def _layer_tensors(layer: MusicgenDecoderLayer) -> dict[str, torch.Tensor]:
    own, cross = layer.self_attn, layer.encoder_attn
    norms = {
        "self": layer.self_attn_layer_norm,
        "cross": layer.encoder_attn_layer_norm,
        "final": layer.final_layer_norm,
    }
    return {
        **{f"{name}_norm_weight": norm.weight for name, norm in norms.items()},
        **{f"{name}_norm_bias": norm.bias for name, norm in norms.items()},
        "query": own.q_proj.weight,
        "key": own.k_proj.weight,
        "value": own.v_proj.weight,
        "self_out": own.out_proj.weight,
        "cross_query": cross.q_proj.weight,
        "cross_out": cross.out_proj.weight,
        "fc1": layer.fc1.weight,
        "fc2": layer.fc2.weight,
    }


def _native_step(
    library: ctypes.CDLL,
    tensors: StepTensors,
    cache: KVCache,
    steps: int,
    text_mask_BL: torch.Tensor | None,
    guided: bool,
) -> Step:
    """Makes the step of a window in C. Null rows skip the attention to the text, which is zero for them."""
    cache.reserve(steps - 1)  # the last column is never fed
    stored = [cache.buffers(layer) for layer in range(len(cache))]
    rows, heads, _, head_width = stored[0][0].shape
    text, seen_BL = None, None
    if text_mask_BL is not None:
        text = [_text_of(cache, layer, len(text_mask_BL)) for layer in range(len(cache))]
        if not bool(text_mask_BL.all()):
            allowed = cross_attention_mask(text_mask_BL).allowed
            assert allowed is not None
            seen_BL = allowed[:, 0, 0].to(torch.uint8)
    positions_SD = sinusoidal_positions(0, steps, heads * head_width, torch.device("cpu"))
    native = NativeStep(library, tensors, stored, text, seen_BL, positions_SD, rows // 2 if guided else rows)

    def step(ids_BK: torch.Tensor) -> torch.Tensor:
        logits = native(ids_BK, cache.length)
        cache.advance(1)
        return logits

    return step


def _text_of(cache: KVCache, layer: int, rows: int) -> KeysValues:
    known = cache.cross(layer)
    assert known is not None
    keys, values = known
    return keys[:rows].contiguous(), values[:rows].contiguous()
