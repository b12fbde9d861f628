"""The one place that decides whether something is computed in C or by torch."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Collection, Iterable

import torch
from torch import nn

from musicgen_train.models.kernels.compiler import is_switched_off, load_library, reason_without_any


def choose(
    source: str,
    tensors: Iterable[torch.Tensor],
    fits: bool = True,
    dtypes: Collection[torch.dtype] = (torch.float32,),
) -> ctypes.CDLL | None:
    """Returns the compiled C file if it can be used with these tensors; None if torch has to do it.

    If only the compiler is missing, one warning per process says what that costs.

    Args:
        source: name of the C file.
        tensors: all tensors that the computation reads. They must be plain, on the CPU, and need no gradient.
        fits: whether the C code supports the shapes and settings.
        dtypes: supported dtypes; all tensors must have the same one.
    """
    tensors = list(tensors)
    if not fits or not all(_is_plain(tensor) and tensor.dtype == tensors[0].dtype for tensor in tensors):
        return None
    if tensors[0].dtype not in dtypes or (torch.is_grad_enabled() and any(each.requires_grad for each in tensors)):
        return None
    library = load_library(source)
    if library is None and not is_switched_off():
        _warn_once()
    return library


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, nn.Parameter) and tensor.device.type == "cpu"


@functools.cache
def _warn_once() -> None:
    logging.getLogger("musicgen_train").warning(
        "no C code (%s): on this CPU generation takes 2 to 5 times as long, and the codec up to twice as long "
        "(docs/benchmarks.md); install gcc or clang, or name a C compiler in $CC",
        reason_without_any(),
    )
