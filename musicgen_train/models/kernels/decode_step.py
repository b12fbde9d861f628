"""`DecodeStep` in C, for decoders on a CPU: a step of few rows then takes little longer than reading its weights once.

It computes what `decode_step.DecodeStep` does, with the weights where they are: matrices are neither packed nor copied,
and files that are mapped stay mapped. Weights in bfloat16 are half as much to read, and are multiplied in float32; from
five rows on, where the processor multiplies bfloat16, what they are multiplied with is rounded, too, as torch does. The
C side is `decode_step.c`, compiled when it is first needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from musicgen_train.models.attention import cross_attention_mask
from musicgen_train.models.kernels.compiler import load_library
from musicgen_train.models.kernels.structures import POINTER, TYPES, DecoderLayer, Step
from musicgen_train.models.kv_cache import KVCache
from musicgen_train.models.positions import sinusoidal_positions

if TYPE_CHECKING:
    from musicgen_train.models.decoder import MusicgenDecoderLayer, MusicgenForCausalLM

_SOURCE = "decode_step.c"
_ACTIVATIONS = {"gelu": 0, "relu": 1}
# What is read once a step, and stays in the model's dtype.
_MATRICES = {"query", "key", "value", "self_out", "cross_query", "cross_out", "fc1", "fc2"}
# The C code reads eight numbers at a time.
_LANES = 8
# With more rows than this a step is a matrix product like any other, and torch does as much in a second.
_MOST_ROWS = 64


class NativeStep:
    """Logits after one more column of ids, for one window of a request; the arguments are those of `DecodeStep`.

    Args:
        model: must be `can_step_natively`.
        cache: holds the steps so far and the text's keys and values, of all rows; it moves on with every call. Of a
            model in bfloat16, its tensors do not: keys and values are kept in float32, here.
        steps: of the window, the first columns included.
        text_mask_BL: 0 for padding; None for no text.
        guided: the cache's second half of rows has the null condition and the same codes as the first.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: MusicgenForCausalLM,
        cache: KVCache,
        steps: int,
        text_mask_BL: torch.Tensor | None,
        guided: bool,
    ) -> None:
        config, decoder = model.config, model.model.decoder
        cache.reserve(steps - 1)  # the last column is never fed
        stored = [cache.buffers(layer) for layer in range(len(cache))]
        rows = len(stored[0][0])
        text: list[tuple[torch.Tensor, ...]] = [() for _ in stored]
        text_rows, text_length, seen_BL = 0, 0, None
        if text_mask_BL is not None:
            text_rows, text_length = text_mask_BL.shape
            text = [
                tuple(each[:text_rows].contiguous() for each in cache.require_cross(layer))
                for layer in range(len(cache))
            ]
            if not bool(text_mask_BL.all()):
                allowed = cross_attention_mask(text_mask_BL).allowed
                assert allowed is not None
                seen_BL = allowed[:, 0, 0].to(torch.uint8)

        self._cache = cache
        self._batch = rows // 2 if guided else rows
        # Everything whose memory the C side reads.
        self._kept: list[Any] = []
        layers = (DecoderLayer * len(stored))()
        self._kept.append(layers)
        for entry, layer, own, cross in zip(layers, decoder.layers, stored, text, strict=True):
            tensors = (*_weights(cast("MusicgenDecoderLayer", layer)), *own, *cross)
            for (name, *_), tensor in zip(DecoderLayer._fields_[: len(tensors)], tensors, strict=True):
                setattr(entry, name, self._pointer(tensor if name in _MATRICES else tensor.float()))
        self._logits = torch.empty(rows, model.num_codebooks, config.vocab_size)
        self._step = Step(
            rows=rows,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            inner_width=config.ffn_dim,
            num_layers=len(stored),
            num_codebooks=model.num_codebooks,
            vocab_size=config.vocab_size,
            capacity=stored[0][0].shape[2],
            text_rows=text_rows,
            text_length=text_length,
            threads=torch.get_num_threads(),
            activation=_ACTIVATIONS[config.activation_function],
            type=TYPES[model.dtype],
            norm_epsilon=decoder.layer_norm.eps,
            embeddings=self._pointers(cast(nn.Embedding, table).weight for table in decoder.embed_tokens),
            layers=ctypes.addressof(layers),
            final_norm_weight=self._pointer(decoder.layer_norm.weight.float()),
            final_norm_bias=self._pointer(decoder.layer_norm.bias.float()),
            heads_weights=self._pointers(cast(nn.Linear, head).weight for head in model.lm_heads),
            positions=self._pointer(sinusoidal_positions(0, steps, config.hidden_size, torch.device("cpu"))),
            text_seen=None if seen_BL is None else self._pointer(seen_BL),
            logits=self._pointer(self._logits),
        )
        library = load_library(_SOURCE)
        assert library is not None
        library.decode_step_scratch.restype = ctypes.c_int64
        # Zeros, since what fills up groups of rows is computed with, though never looked at.
        scratch = self._logits.new_zeros(library.decode_step_scratch(ctypes.byref(self._step)))
        self._step.scratch = self._pointer(scratch)
        self._run = library.decode_step

    def __call__(self, ids_BK: torch.Tensor) -> torch.Tensor:
        """Logits of the next column, float32 `(rows, codebooks, vocab_size)`, in memory that the next call uses again.

        Args:
            ids_BK: int64, the newest column.
        """
        ids_BK = ids_BK.contiguous()
        self._run(
            ctypes.byref(self._step),
            POINTER(ids_BK.data_ptr()),
            ctypes.c_int64(self._batch),
            ctypes.c_int64(self._cache.length),
        )
        self._cache.advance(1)
        return self._logits

    def _pointer(self, tensor: torch.Tensor) -> int:
        assert tensor.is_contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _pointers(self, tensors: Iterable[torch.Tensor]) -> int:
        addresses = [self._pointer(tensor) for tensor in tensors]
        array = (POINTER * len(addresses))(*addresses)
        self._kept.append(array)
        return ctypes.addressof(array)


def _weights(layer: MusicgenDecoderLayer) -> tuple[torch.Tensor, ...]:
    """In the order of `DecoderLayer`'s fields."""
    own, cross = layer.self_attn, layer.encoder_attn
    return (
        *(layer.self_attn_layer_norm.weight, layer.self_attn_layer_norm.bias),
        *(own.q_proj.weight, own.k_proj.weight, own.v_proj.weight, own.out_proj.weight),
        *(layer.encoder_attn_layer_norm.weight, layer.encoder_attn_layer_norm.bias),
        *(cross.q_proj.weight, cross.out_proj.weight),
        *(layer.final_layer_norm.weight, layer.final_layer_norm.bias, layer.fc1.weight, layer.fc2.weight),
    )


def can_step_natively(model: MusicgenForCausalLM, rows: int) -> bool:
    """Whether `NativeStep` can do the steps of a model that `can_step`, and is the fastest to."""
    config = model.config
    head_width = config.hidden_size // config.num_attention_heads
    parameters = [*model.model.parameters(), *model.lm_heads.parameters()]
    return (
        model.device.type == "cpu"
        and model.dtype in TYPES
        and rows <= _MOST_ROWS
        and config.activation_function in _ACTIVATIONS
        and all(size % _LANES == 0 for size in (config.hidden_size, head_width, config.ffn_dim))
        and all(parameter.is_contiguous() for parameter in parameters)
        and load_library(_SOURCE) is not None
    )
