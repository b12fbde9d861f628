"""GELU and its gradient in C, for float32 on a CPU; torch's take two to three times as long (`docs/benchmarks.md`).

The C side is `gelu.c`.
"""

from __future__ import annotations

import ctypes

import torch
from torch.nn import functional as F

from musicgen_train.models.native.compiler import load_library

_SOURCE = "gelu.c"


def gelu(states: torch.Tensor) -> torch.Tensor:
    """x times the normal distribution's share below x (Hendrycks & Gimpel 2016), without gradients of its own."""
    library = _library_for(states)
    if library is None:
        return F.gelu(states)
    result = torch.empty_like(states)
    library.gelu_of(_pointer(states), _pointer(result), *_extent(states))
    return result


def gelu_backward(gradient: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The gradient by `states` from that by `gelu(states)`; takes the memory of the latter."""
    library = _library_for(gradient, states)
    if library is None:
        result: torch.Tensor = torch.ops.aten.gelu_backward(gradient, states)
        return result
    library.gelu_gradient(_pointer(states), _pointer(gradient), _pointer(gradient), *_extent(states))
    return gradient


def _library_for(*tensors: torch.Tensor) -> ctypes.CDLL | None:
    """None where torch does it."""
    for tensor in tensors:
        if type(tensor) is not torch.Tensor or tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return None
        if not tensor.is_contiguous():
            return None
    return None if torch.compiler.is_compiling() else load_library(_SOURCE)


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _extent(tensor: torch.Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(tensor.numel()), ctypes.c_int64(torch.get_num_threads())
