"""Attention and its gradients in C on a CPU; torch's takes about twice the time (`docs/benchmarks.md`).

The C side is `attention.c`. Of bfloat16, operands and results are rounded, and what is kept for the backward pass;
softmax and sums are float32. Where the processor multiplies bfloat16, weights and the gradients by scores are rounded,
too, as fused attention on a GPU does; elsewhere they are not.

Axes: B batch, N heads, S query steps, L key positions, H head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from musicgen_train.models.kernels.compiler import load_library
from musicgen_train.models.kernels.structures import TYPES, Attention, States

_SOURCE = "attention.c"
# Threads take whole heads: with fewer of them for each, some would have nothing to do.
_HEADS_OF_A_THREAD = 2


def is_available(heads: int, head_width: int, dropout: float) -> bool:
    """Whether the C code does attention of so many heads (of all rows) on a CPU, where nothing else is against it."""
    library = load_library(_SOURCE)
    return (
        library is not None
        and dropout == 0.0
        and head_width % library.panel_width() == 0
        and heads >= _HEADS_OF_A_THREAD * torch.get_num_threads()
    )


def can_attend_natively(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor | None, dropout: float
) -> bool:
    """Whether `attend_natively` can do this attention, and is the fastest to."""
    states = (queries, keys, values)
    if any(type(each) is not torch.Tensor for each in states) or torch.compiler.is_compiling():
        return False
    batch, heads, steps, head_width = queries.shape
    if any(each.device.type != "cpu" or each.dtype != queries.dtype or each.stride(-1) != 1 for each in states):
        return False
    return (
        queries.dtype in TYPES
        and steps > 1
        and keys.numel() > 0
        # Of masks, those that hide keys from all queries alike.
        and (allowed is None or allowed.shape == (batch, 1, 1, keys.shape[2]))
        and is_available(batch * heads, head_width, dropout)
    )


def attend_natively(
    queries_BNSH: torch.Tensor,
    keys_BNLH: torch.Tensor,
    values_BNLH: torch.Tensor,
    allowed_BL: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """softmax(Q K^T / sqrt(H)) V (Vaswani et al. 2017), `(batch, heads, queries, head_width)`; has gradients.

    Args:
        queries_BNSH, keys_BNLH, values_BNLH: must be such that `can_attend_natively`.
        allowed_BL: False for keys that no query of the row sees; every row has at least one True.
        causal: query s sees the keys up to s.
    """
    mixed: torch.Tensor = _Attend.apply(queries_BNSH, keys_BNLH, values_BNLH, allowed_BL, causal)
    return mixed


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        allowed_BL: torch.Tensor | None,
        causal: bool,
    ) -> torch.Tensor:
        seen_BL = None if allowed_BL is None else allowed_BL.to(torch.uint8).contiguous()
        output = _like(queries)
        sums_BNS = torch.empty(queries.shape[:3])
        _call("attend", queries, keys, values, output, sums_BNS, seen_BL, causal)
        ctx.save_for_backward(queries, keys, values, output, sums_BNS, seen_BL)
        ctx.causal = causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, output, sums_BNS, seen_BL = ctx.saved_tensors
        (gradient,) = grads
        if gradient.stride(-1) != 1:
            gradient = gradient.contiguous()
        found = [_like(each) for each in (queries, keys, values)]
        gradients = dict(zip(("output", "query", "key", "value"), (gradient, *found), strict=True))
        _call("attend_backward", queries, keys, values, output, sums_BNS, seen_BL, ctx.causal, gradients)
        return (*found, None, None)


def _call(
    function: str,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    sums_BNS: torch.Tensor,
    seen_BL: torch.Tensor | None,
    causal: bool,
    gradients: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> None:
    """Run a function of the C side; `gradients` are those by output, query, key and value."""
    batch, heads, steps, head_width = queries.shape
    arguments = Attention(
        batch=batch,
        heads=heads,
        queries=steps,
        keys=keys.shape[2],
        head_width=head_width,
        causal=causal,
        threads=torch.get_num_threads(),
        type=TYPES[queries.dtype],
        query=_states(queries),
        key=_states(keys),
        value=_states(values),
        output=_states(output),
        seen=None if seen_BL is None else seen_BL.data_ptr(),
        sums=sums_BNS.data_ptr(),
        **{f"{name}_gradient": _states(tensor) for name, tensor in gradients.items()},
    )
    library = load_library(_SOURCE)
    assert library is not None
    if getattr(library, function)(ctypes.byref(arguments)):
        raise MemoryError("no memory for the weights of a block of queries; use fewer frames or a smaller micro-batch")


def _states(tensor_BNSH: torch.Tensor) -> States:
    return States(tensor_BNSH.data_ptr(), *tensor_BNSH.stride()[:3])


def _like(tensor_BNSH: torch.Tensor) -> torch.Tensor:
    """Room for as much, laid out as `(B, S, N, H)`: so what comes before and after has it."""
    return tensor_BNSH.new_empty(tensor_BNSH.transpose(1, 2).shape).transpose(1, 2)
