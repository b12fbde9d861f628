"""Convolutions of EnCodec in C, for float32: each writes its result, its ELU or both where the next one reads them.

The C side is `convolution.c`. Activations `(B, L, C)` may be views into larger memory, which has room for padding; each
row must be contiguous.

Axis letters: B batch, L steps, C width, I inputs of a panel, P panels of W outputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from musicgen_train.models.kernels.compiler import load_library
from musicgen_train.models.kernels.door import choose
from musicgen_train.models.kernels.structures import POINTER, Convolution

_SOURCE = "convolution.c"
_PADDING_MODES = ("constant", "reflect", "replicate")  # as the C side counts them


def choose_convolution(hidden: torch.Tensor, weights: Iterable[torch.Tensor]) -> bool:
    """Returns True if `convolve` can do convolutions with these weights and such an input."""
    return choose(_SOURCE, (hidden, *weights)) is not None


def panel_width() -> int:
    """Returns W, the number of outputs of a panel."""
    width: int = _library().panel_width()
    return width


@dataclass(frozen=True)
class Taps:
    """Says which inputs a step of the result reads; sizes and distances count floats."""

    runs: int
    """Contiguous runs of floats that are read: one per tap with dilation, else one for all taps together."""
    inputs: int
    """Length of a run."""
    input_step: int
    """Distance from the input of one result to that of the next."""
    input_run: int
    """Distance from one run to the next."""


def convolve(
    taps: Taps,
    input_BLC: torch.Tensor,
    first: int,
    panels_PIW: torch.Tensor,
    bias: torch.Tensor,
    steps: int,
    residual: tuple[torch.Tensor, int] | None,
    output: tuple[torch.Tensor, int] | None,
    activated: tuple[torch.Tensor, int] | None,
) -> None:
    """Computes some steps of a convolution.

    Args:
        taps: which inputs a step of the result reads.
        input_BLC: the padded input.
        first: index of the first float of each row that is read.
        panels_PIW: the weights, in panels of `panel_width` outputs.
        bias: as long as a step of the result.
        steps: how many steps to compute.
        residual: an activation to add, and its step that belongs to the first one computed.
        output: where the result is written, and its first step; None to write only its ELU.
        activated: the same for the result's ELU.
    """
    arguments = Convolution(
        batch=len(input_BLC),
        steps=steps,
        runs=taps.runs,
        inputs=taps.inputs,
        outputs=len(bias),
        threads=torch.get_num_threads(),
        input=input_BLC.data_ptr() + first * input_BLC.element_size(),
        input_batch=input_BLC.stride(0),
        input_step=taps.input_step,
        input_run=taps.input_run,
        weights=panels_PIW.data_ptr(),
        bias=bias.data_ptr(),
        **_place("residual", residual),
        **_place("output", output),
        **_place("activated", activated),
    )
    _library().convolve(ctypes.byref(arguments))


def can_pad(mode: str, length: int, left: int, right: int) -> bool:
    """Returns True if `pad_ends` can pad rows of `length` steps by `left` and `right` steps."""
    return mode in _PADDING_MODES and length > max(left, right)


def pad_ends(steps_BLC: torch.Tensor, left: int, right: int, mode: str) -> None:
    """Fills the memory before and after each row in place; the rows must be views into memory with room for it.

    Args:
        steps_BLC: rows that `can_pad` accepts.
        left, right: steps to fill before and after them.
        mode: mode of `torch.nn.functional.pad`.
    """
    batch, length, width = steps_BLC.shape
    numbers = (batch, steps_BLC.stride(0), length, width, left, right, _PADDING_MODES.index(mode))
    _library().pad_ends(POINTER(steps_BLC.data_ptr()), *map(ctypes.c_int64, numbers))


def _place(name: str, place: tuple[torch.Tensor, int] | None) -> dict[str, int]:
    """Returns the structure's fields for an activation from one of its steps on; no fields for None."""
    if place is None:
        return {}
    values_BLC, first = place
    of_batch, of_step, of_channel = values_BLC.stride()
    assert (of_step, of_channel) == (values_BLC.shape[2], 1)
    begin = values_BLC.data_ptr() + first * of_step * values_BLC.element_size()
    return {name: begin, f"{name}_batch": of_batch}


def _library() -> ctypes.CDLL:
    library = load_library(_SOURCE)
    assert library is not None
    return library
