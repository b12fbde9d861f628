"""Which of the ways to do a step of generation is the fastest for a model and a request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from musicgen_train.models.generation.decode_step import DecodeStep, StepWeights, can_step
from musicgen_train.models.generation.graphed_step import FixedStep, GraphedStep
from musicgen_train.models.kernels.decode_step import NativeStep, can_step_natively
from musicgen_train.models.kv_cache import KVCache

if TYPE_CHECKING:
    from musicgen_train.models.decoder import MusicgenForCausalLM

Step: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Logits of the next column, float32 `(rows, codebooks, vocab_size)`, from the newest one, int64 `(batch, codebooks)`.
They may lie in memory that the next call uses again."""

MakeStep: TypeAlias = "Callable[[KVCache, int, torch.Tensor | None, bool], Step]"
"""Makes the step of a window from a cache, the window's steps, the text's mask and whether there is guidance."""


def step_maker(model: MusicgenForCausalLM, rows: int) -> MakeStep | None:
    """How to make the steps of a request's windows; None where only the forward pass can do them.

    Args:
        model: whose weights stay as they are until the request is done.
        rows: that a step has.
    """
    if not can_step(model):
        return None
    if can_step_natively(model, rows):
        return functools.partial(NativeStep, model)
    weights = StepWeights(model, rows)
    # Autocast keeps rounded copies of weights, which a graph must not see freed.
    if model.device.type == "cuda" and not torch.is_autocast_enabled("cuda"):
        return lambda *window: GraphedStep(FixedStep(weights, *window))
    return functools.partial(DecodeStep, weights)
