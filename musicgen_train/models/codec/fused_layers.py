"""EnCodec's layers in sequence, with padding and ELU fused into the convolutions where these are done in C.

Unfused, padding copies a convolution's input, and the ELU before it reads and writes all of it once more, which is much
of the time. Here every convolution writes its result where the next one reads it, with memory for the padding at both
ends. It writes the ELU of the result in addition, or instead (`kernels/convolution.py`).

Axis letters: B batch, L steps, C width, G taps, I and O width of in- and output, P panels of W outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.models.codec.convolutions import (
    Conv,
    Kernel,
    MagnitudeAndDirection,
    Padding,
    ResidualBlock,
    TransposedConv,
    pad_steps,
)
from musicgen_train.models.kernels.convolution import (
    Taps,
    can_pad,
    choose_convolution,
    convolve,
    pad_ends,
    panel_width,
)

_NO_PADDING = Padding(0, 0, "constant")
_CONVOLUTIONS = (Conv, TransposedConv)
_PLAIN = {
    *(*_CONVOLUTIONS, ResidualBlock, Kernel, MagnitudeAndDirection),
    *(nn.Sequential, nn.ModuleDict, nn.ELU, nn.Identity),
}


def run_layers(layers: nn.Sequential, hidden_BLC: torch.Tensor) -> torch.Tensor:
    """Returns `layers(hidden)`, computed in the fastest way available: see `runner`."""
    return runner(layers, hidden_BLC)(hidden_BLC)


def runner(layers: nn.Sequential, hidden_BLC: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function that runs `layers`, with the convolutions in C if possible; only rounding differs.

    Args:
        layers: convolutions, residual blocks, ELUs, and other modules, which are called.
        hidden_BLC: an example input `(B, L, C)`, with the dtype, device and `requires_grad` of later ones.
    """
    return functools.partial(_run, list(layers)) if _can_be_fused(layers, hidden_BLC) else layers


def _can_be_fused(layers: nn.Sequential, hidden: torch.Tensor) -> bool:
    convolutions = [module for module in layers.modules() if isinstance(module, (*_CONVOLUTIONS, ResidualBlock))]
    # Other layers are called, so they need not be plain.
    parts = [part for module in convolutions for part in module.modules()]
    weights = [weight for module in convolutions for weight in module.parameters()]
    return (
        bool(convolutions)
        # A group norm needs all steps, and a module's hooks run only if it is called.
        and all(type(part) in _PLAIN for part in parts)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        and not (torch.is_grad_enabled() and any(weight.requires_grad for weight in layers.parameters()))
        and choose_convolution(hidden, weights)
    )


@dataclass(frozen=True)
class _Wanted:
    """Says what the next layers read: a result itself, its ELU or both, each with the padding that they need."""

    itself: Padding | None = None
    activated: Padding | None = None


def _wanted(layers: Sequence[nn.Module], length: int) -> _Wanted:
    """Returns what these layers read of an input of `length` steps."""
    if not layers:
        return _Wanted(itself=_NO_PADDING)
    first, *others = layers
    if isinstance(first, nn.ELU):
        return _Wanted(activated=_wanted(others, length).itself)
    if isinstance(first, ResidualBlock):
        inner = cast(Conv, first.block[1])
        shortcut = first.shortcut.padding(length) if isinstance(first.shortcut, Conv) else _NO_PADDING
        return _Wanted(itself=shortcut, activated=inner.padding(length))
    if isinstance(first, _CONVOLUTIONS):
        return _Wanted(itself=first.padding(length))
    return _Wanted(itself=_NO_PADDING)


class _Padded:
    """Allocates memory for some steps and for the padding around them.

    Args:
        like: a tensor of the same batch size, device and dtype.
        made, width: shape of what will be written to `target`, `(batch, made, width)`.
        cut: steps at its two ends that are not part of the result.
        padding: padding around the result.
    """

    def __init__(self, like: torch.Tensor, made: int, width: int, cut: tuple[int, int], padding: Padding) -> None:
        # Padding overwrites the steps that are cut off.
        before, after = max(0, padding.left - cut[0]), max(0, padding.right - cut[1])
        room = like.new_empty(len(like), before + made + after, width)
        first, last = before + cut[0], before + made - cut[1]
        self.target = room[:, before : before + made]
        self.steps = room[:, first:last]
        self.padded = room[:, first - padding.left : last + padding.right]
        self._padding = padding

    def pad(self) -> None:
        """Fill the padding; the steps must have been written."""
        left, right, mode = self._padding.left, self._padding.right, self._padding.mode
        if can_pad(mode, self.steps.shape[1], left, right):
            pad_ends(self.steps, left, right, mode)
        elif left or right:
            self.padded.copy_(pad_steps(self.steps, self._padding))


@dataclass(frozen=True)
class _Result:
    itself: _Padded | None
    activated: _Padded | None


def _run(layers: list[nn.Module], hidden_BLC: torch.Tensor) -> torch.Tensor:
    result = _given(hidden_BLC, _wanted(layers, hidden_BLC.shape[1]))
    for number, layer in enumerate(layers, start=1):
        others = layers[number:]
        if isinstance(layer, nn.ELU):
            result = _Result(itself=result.activated, activated=None)
        elif isinstance(layer, ResidualBlock):
            result = _residual_block(layer, result, others)
        elif isinstance(layer, _CONVOLUTIONS):
            assert result.itself is not None
            result = _convolve(layer, result.itself, others)
        else:
            assert result.itself is not None
            hidden_BLC = layer(result.itself.steps)
            result = _given(hidden_BLC, _wanted(others, hidden_BLC.shape[1]))
    assert result.itself is not None
    return result.itself.steps


def _given(hidden_BLC: torch.Tensor, wanted: _Wanted) -> _Result:
    """Copies an activation into the form that the next layers read."""

    def copied(values_BLC: torch.Tensor, padding: Padding) -> _Padded:
        _, steps, width = values_BLC.shape
        copy = _Padded(values_BLC, steps, width, (0, 0), padding)
        copy.steps.copy_(values_BLC)
        copy.pad()
        return copy

    return _Result(
        itself=None if wanted.itself is None else copied(hidden_BLC, wanted.itself),
        activated=None if wanted.activated is None else copied(F.elu(hidden_BLC), wanted.activated),
    )


def _residual_block(block: ResidualBlock, result: _Result, others: list[nn.Module]) -> _Result:
    _, to_inner, elu, from_inner = block.block
    assert result.itself is not None
    assert result.activated is not None
    if isinstance(block.shortcut, Conv):
        shortcut = _convolve(block.shortcut, result.itself, []).itself
        assert shortcut is not None
        residual_BLC = shortcut.steps
    else:
        residual_BLC = result.itself.steps
    inner = _convolve(cast(Conv, to_inner), result.activated, [elu, from_inner]).activated
    assert inner is not None
    return _convolve(cast(Conv, from_inner), inner, others, residual_BLC)


def _convolve(
    layer: Conv | TransposedConv, given: _Padded, others: list[nn.Module], residual_BLC: torch.Tensor | None = None
) -> _Result:
    """Runs one convolution over padded steps.

    Args:
        layer: the convolution.
        given: its input, with the padding that it needs.
        others: the layers that come next.
        residual_BLC: added to the result.
    """
    padded, kernel = given.padded, layer.conv
    _, length, width = padded.shape
    num_taps, out_width = kernel.num_taps, len(kernel.bias)
    if isinstance(layer, TransposedConv):
        # It makes blocks of `stride` steps, each from two steps of the input.
        steps, step_width, dilation = length - 1, width, 1
        blocks, cut = layer.stride, (layer.cut_left, layer.cut_right)
    else:
        step_width, dilation = layer.stride * width, layer.dilation
        steps = length // layer.stride - (num_taps - 1) * dilation
        blocks, cut = 1, (0, 0)
    # Without dilation the inputs of all taps are contiguous: one run of memory.
    runs, inputs = (1, num_taps * step_width) if dilation == 1 else (num_taps, step_width)
    outputs = blocks * out_width
    together = _steps_together(outputs) if runs == 1 else 1
    panels_PIW = kernel.folded(_panels_for(step_width, together))
    bias = kernel.bias if together * blocks == 1 else kernel.bias.repeat(together * blocks)

    made = steps * blocks
    wanted = _wanted(others, made - sum(cut))
    itself, activated = (
        None if padding is None else _Padded(padded, made, out_width, cut, padding)
        for padding in (wanted.itself, wanted.activated)
    )
    whole = steps - steps % together
    for first, last, at_once in ((0, whole, together), (whole, steps, 1)):
        if first == last:
            continue
        convolve(
            Taps(
                runs=runs,
                inputs=inputs + (at_once - 1) * step_width,
                input_step=at_once * step_width,
                input_run=dilation * step_width,
            ),
            padded,
            first * step_width,
            panels_PIW,
            bias[: at_once * outputs],
            (last - first) // at_once,
            residual=None if residual_BLC is None else (residual_BLC, first * blocks),
            output=None if itself is None else (itself.target, first * blocks),
            activated=None if activated is None else (activated.target, first * blocks),
        )
    for result in (itself, activated):
        if result is not None:
            result.pad()
    return _Result(itself, activated)


def _steps_together(outputs: int) -> int:
    """Returns how many steps to compute as one step with that many times the outputs, so that a panel is filled.

    Most of the products are then by zero, but a panel with a single output would waste still more. The first columns
    of these panels are those for a single step, and are used for the steps that are left over.
    """
    return max(1, panel_width() // outputs)


@functools.cache
def _panels_for(step_width: int, together: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function from taps to panels `(P, I, W)`, in which the weights that a tile reads are contiguous.

    Args:
        step_width: floats from one step of the input to the next.
        together: see `_steps_together`.
    """

    def panels_of(taps_GIO: torch.Tensor) -> torch.Tensor:
        if taps_GIO.shape[1] != step_width:  # the C code would read beyond the weights
            raise ValueError(f"a convolution over {taps_GIO.shape[1]} numbers a step was given {step_width}")
        taps_IO = taps_GIO.flatten(0, 1)
        inputs, outputs = taps_IO.shape
        panels = -(-together * outputs // panel_width())
        filled_IO = taps_IO.new_zeros(inputs + (together - 1) * step_width, panels * panel_width())
        for step in range(together):
            filled_IO[step * step_width :][:inputs, step * outputs :][:, :outputs] = taps_IO
        return filled_IO.unflatten(1, (panels, panel_width())).transpose(0, 1).contiguous()

    return panels_of
