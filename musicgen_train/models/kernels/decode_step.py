"""A step of generation in C: with a few rows it takes little longer than reading the decoder's weights once.

It computes what the decoder's forward pass does, and reads the weights in place: matrices are neither packed nor
copied, and mapped files stay mapped. Weights in bfloat16 are half as much to read, and are multiplied in float32. From
five rows on, if the processor can multiply bfloat16, the states are rounded to it too, as torch does. The C side is
`decode_step.c`.

Axes: B batch, R rows (B, or 2 B under guidance), K codebooks, V codes, D width, N heads, H head width, S steps, L text
length.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from musicgen_train.models.kernels.door import choose
from musicgen_train.models.kernels.structures import POINTER, TYPES, StepArguments, StepLayer

_SOURCE = "decode_step.c"
_ACTIVATIONS = {"gelu": 0, "relu": 1}
# These are read once a step, in the model's dtype; all other tensors are converted to float32 for the C side.
_MATRICES = {"query", "key", "value", "self_out", "cross_query", "cross_out", "fc1", "fc2"}
# The C code reads eight numbers at a time.
_LANES = 8
# With more rows than this torch's matrix products are as fast.
_MOST_ROWS = 64


@dataclass(frozen=True)
class StepTensors:
    """Holds the weights that a step reads, all of one dtype."""

    layers: Sequence[Mapping[str, torch.Tensor]]
    """Each layer's weights by the names of `StepLayer`'s fields, without keys and values."""
    embeddings: Sequence[torch.Tensor]
    """One per codebook, `(V + 1, D)`."""
    heads: Sequence[torch.Tensor]
    """One per codebook, `(V, D)`."""
    final_norm_weight: torch.Tensor
    final_norm_bias: torch.Tensor
    norm_epsilon: float
    num_heads: int
    activation: str
    """A name of `layers.ACTIVATIONS`."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for layer in self.layers:
            yield from layer.values()
        yield from (*self.embeddings, *self.heads, self.final_norm_weight, self.final_norm_bias)


def choose_decode_step(tensors: StepTensors, rows: int) -> ctypes.CDLL | None:
    """Returns the library for `NativeStep` if it supports these weights and is fastest for `rows` rows, else None."""
    inner_width, width = tensors.layers[0]["fc1"].shape
    fits = (
        rows <= _MOST_ROWS
        and tensors.activation in _ACTIVATIONS
        and all(size % _LANES == 0 for size in (width, width // tensors.num_heads, inner_width))
        and all(tensor.is_contiguous() for tensor in tensors)
    )
    return choose(_SOURCE, tensors, fits, tuple(TYPES))


class NativeStep:
    """Computes logits after one more column of ids, for one window of a request.

    Args:
        library: from `choose_decode_step`.
        tensors: the weights.
        keys_values: two tensors `(R, N, capacity, H)` per layer with the steps so far, to which each call adds one.
            Those of a model in bfloat16 are copied to float32, and are not written to.
        text_keys_values: `(text_rows, N, L, H)` per layer, for the first rows, which have a text; None for no text.
        text_seen_BL: uint8 `(text_rows, L)`, 0 for padding; None if nothing is padding.
        positions_SD: float32, the position embeddings of the window.
        batch: rows of the ids; row r of the cache has the codes of row r % batch.
    """

    @torch.no_grad()
    def __init__(
        self,
        library: ctypes.CDLL,
        tensors: StepTensors,
        keys_values: Sequence[tuple[torch.Tensor, torch.Tensor]],
        text_keys_values: Sequence[tuple[torch.Tensor, torch.Tensor]] | None,
        text_seen_BL: torch.Tensor | None,
        positions_SD: torch.Tensor,
        batch: int,
    ) -> None:
        rows, _, capacity, _ = keys_values[0][0].shape
        text_rows, _, text_length, _ = (0, 0, 0, 0) if text_keys_values is None else text_keys_values[0][0].shape
        vocab_size, width = tensors.heads[0].shape
        self._batch = batch
        # Keeps alive all memory that the C side reads.
        self._kept: list[Any] = []
        layers = (StepLayer * len(tensors.layers))()
        self._kept.append(layers)
        for index, (entry, weights) in enumerate(zip(layers, tensors.layers, strict=True)):
            named = {**weights, **dict(zip(("keys", "values"), keys_values[index], strict=True))}
            if text_keys_values is not None:
                named |= dict(zip(("text_keys", "text_values"), text_keys_values[index], strict=True))
            for name, tensor in named.items():
                setattr(entry, name, self._pointer(tensor if name in _MATRICES else tensor.float()))
        self._logits = torch.empty(rows, len(tensors.heads), vocab_size)
        self._arguments = StepArguments(
            rows=rows,
            width=width,
            heads=tensors.num_heads,
            inner_width=len(tensors.layers[0]["fc1"]),
            num_layers=len(tensors.layers),
            num_codebooks=len(tensors.heads),
            vocab_size=vocab_size,
            capacity=capacity,
            text_rows=text_rows,
            text_length=text_length,
            threads=torch.get_num_threads(),
            activation=_ACTIVATIONS[tensors.activation],
            type=TYPES[tensors.heads[0].dtype],
            norm_epsilon=tensors.norm_epsilon,
            embeddings=self._pointers(tensors.embeddings),
            layers=ctypes.addressof(layers),
            final_norm_weight=self._pointer(tensors.final_norm_weight.float()),
            final_norm_bias=self._pointer(tensors.final_norm_bias.float()),
            heads_weights=self._pointers(tensors.heads),
            positions=self._pointer(positions_SD),
            text_seen=None if text_seen_BL is None else self._pointer(text_seen_BL),
            logits=self._pointer(self._logits),
        )
        library.decode_step_scratch.restype = ctypes.c_int64
        # Zeros, since the unused part of the last group of rows is read too.
        scratch = self._logits.new_zeros(library.decode_step_scratch(ctypes.byref(self._arguments)))
        self._arguments.scratch = self._pointer(scratch)
        self._run = library.decode_step

    def __call__(self, ids_BK: torch.Tensor, length: int) -> torch.Tensor:
        """Returns the next column's logits, float32 `(rows, codebooks, vocab_size)`, in memory reused by the next call.

        Args:
            ids_BK: int64, the newest column.
            length: steps in the cache, which is the index at which this one is written.
        """
        ids_BK = ids_BK.contiguous()
        self._run(
            ctypes.byref(self._arguments),
            POINTER(ids_BK.data_ptr()),
            ctypes.c_int64(self._batch),
            ctypes.c_int64(length),
        )
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
