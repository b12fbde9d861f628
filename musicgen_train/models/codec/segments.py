"""Layers of EnCodec run over segments of the signal, which bounds memory and makes use of the caches.

There are two levels. Segments of the whole signal bound the memory. On a CPU each of them then goes through the layers
in stages, such as those between two strides, and each stage runs over smaller segments that stay in the caches. A
segment is run together with the steps around it, whose results are dropped: a few steps for one stage, whole frames
for all layers.

Axis letters: B batch, L steps, C width.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn

from musicgen_train.models.codec.convolutions import Conv, TransposedConv
from musicgen_train.models.codec.fused_layers import runner

# Values in the largest activation of a segment. An accelerator needs enough work to be busy; this is about 1 GB in
# float32.
_ACCELERATOR_VALUES = 2**28
# On a CPU it would be 64 MB, but is never held as a whole, since stages have smaller segments: a few of those should
# fit the cores' caches, and be small enough for the allocator to keep their memory.
_CPU_VALUES = 2**24
_CACHED_VALUES = 2**20
# The activation between two stages passes through memory, so a stage ends only where the largest activation is at least
# this many times as large.
_WORTH_A_STAGE = 4


def in_segments(layers: nn.Sequential, hidden_BLC: torch.Tensor) -> torch.Tensor:
    """Returns `layers(hidden)`, run over segments of its rows and steps; only rounding differs.

    Where every step depends on all others, everything is run at once.

    Args:
        layers: convolutions and pointwise functions; they either downsample or upsample, not both.
        hidden_BLC: `(B, L, C)`. An incomplete last stride is padded, as the layers do it.

    Returns:
        `(B, L', C')`.
    """
    if not _are_local(layers):
        return runner(layers, hidden_BLC)(hidden_BLC)
    if hidden_BLC.device.type == "cpu":
        return _in_segments(layers, hidden_BLC, _CPU_VALUES, functools.partial(_in_stages, layers))
    return _in_segments(layers, hidden_BLC, _ACCELERATOR_VALUES, runner(layers, hidden_BLC))


def _are_local(layers: nn.Sequential) -> bool:
    # Group norm reads all steps, and circular padding those of the other end.
    convolutions = [layer for layer in layers.modules() if isinstance(layer, Conv | TransposedConv)]
    return not any(hasattr(layer, "norm") or getattr(layer, "pad_mode", "") == "circular" for layer in convolutions)


def _in_stages(layers: nn.Sequential, hidden_BLC: torch.Tensor) -> torch.Tensor:
    for stage in _stages(layers, hidden_BLC.shape[2]):
        hidden_BLC = _in_segments(stage, hidden_BLC, _CACHED_VALUES, runner(stage, hidden_BLC))
    return hidden_BLC


def _in_segments(
    layers: nn.Sequential,
    hidden_BLC: torch.Tensor,
    most_values: int,
    run: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Returns `run(hidden)`, computed over segments whose largest activation has at most `most_values` if possible.

    `run` runs `layers`. Each segment includes the steps around it that its result depends on; their results are cut
    off.
    """
    batch, length, width = hidden_BLC.shape
    frame = _Frame.of(layers, width)
    frames = -(-length // frame.steps_in)
    before, after = (math.ceil(steps / frame.steps_in) for steps in _steps_around(layers))
    # The steps around a segment are computed twice: keep them few compared with the segment.
    longest = max(most_values // frame.values, 8 * (1 + before + after))
    # Equal lengths, so that the last segment, whose end is padded by reflection, is no shorter than the others.
    num_segments = -(-frames // longest)
    num_rows = max(1, most_values // (frame.values * min(frames, longest)))
    if num_segments == 1 and num_rows >= batch:
        return run(hidden_BLC)
    bounds = [frames * i // num_segments for i in range(num_segments + 1)]
    rows = []
    for hidden in hidden_BLC.split(num_rows):
        pieces = []
        for start, stop in itertools.pairwise(bounds):
            first = max(0, start - before)
            output = run(hidden[:, first * frame.steps_in : (stop + after) * frame.steps_in])
            pieces.append(output[:, (start - first) * frame.steps_out : (stop - first) * frame.steps_out])
        rows.append(torch.cat(pieces, 1))
    return rows[0] if len(rows) == 1 else torch.cat(rows)


@dataclass(frozen=True)
class _Frame:
    """Describes the smallest number of steps that some layers map to a whole number of steps."""

    steps_in: int
    steps_out: int
    after: list[int]
    """Number of values after each layer."""
    values: int
    """Number of values of the largest activation, input and output included."""

    @classmethod
    def of(cls, layers: nn.Sequential, width: int) -> _Frame:
        """Computes the frame of layers whose input has `width` channels."""
        steps = steps_in = math.prod(layer.stride for layer in layers if isinstance(layer, Conv))
        of_input, after = steps * width, []
        for layer in layers:
            if isinstance(layer, TransposedConv):
                steps, width = steps * layer.stride, len(layer.conv.bias)
            elif isinstance(layer, Conv):
                steps, width = steps // layer.stride, len(layer.conv.bias)
            after.append(steps * width)
        return cls(steps_in, steps, after, max(of_input, *after))


def _stages(layers: nn.Sequential, width: int) -> list[nn.Sequential]:
    """Splits the layers into groups before changes of the rate where the activation is small."""
    frame = _Frame.of(layers, width)
    changes = [
        number
        for number, layer in enumerate(layers)
        if isinstance(layer, TransposedConv) or (isinstance(layer, Conv) and layer.stride > 1)
    ]
    # The layers before the first change belong to the first stage.
    worth = [number for number in changes[1:] if _WORTH_A_STAGE * frame.after[number - 1] <= frame.values]
    return [layers[first:last] for first, last in itertools.pairwise([0, *worth, len(layers)])]


def _steps_around(layers: nn.Sequential) -> tuple[Fraction, Fraction]:
    """Returns how many input steps before and after its own an output depends on."""
    before = after = Fraction(0)
    step = Fraction(1)
    for layer in layers.modules():
        if isinstance(layer, Conv):
            before += step * layer.pad_left
            after += step * layer.pad_right
            step *= layer.stride
        elif isinstance(layer, TransposedConv):
            before += step
            after += step
            step /= layer.stride
    return before, after
