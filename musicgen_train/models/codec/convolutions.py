"""The convolutions of EnCodec and the blocks made of them, as sums of matrix products over steps.

Every activation is `(B, L, C)`: a convolution is then a sum of a few matrix products over shifted views of its input
(`sum_of_taps`), which copies nothing, and a transposed convolution is an ordinary one with `stride` times the width,
whose output is reshaped to more steps. On a CPU this takes half the time of `torch.nn.functional.conv1d`.

Axis letters: B batch, C width of an activation, L steps, G taps, I and O width of in- and output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.models.config import EncodecConfig

# Inputs narrower than this (audio itself) are gathered into one product: products of one column each are slow.
_NARROW = 8


@dataclass(frozen=True)
class Padding:
    """Says how many steps a convolution pads its input with on each side, and how they are filled: see `pad_steps`."""

    left: int
    right: int
    mode: str


class Conv(nn.Module):
    """Convolves and pads the input, so that L steps become `ceil(L / stride)`: `(B, L, C)` to `(B, L', C')`."""

    def __init__(
        self, config: EncodecConfig, in_width: int, out_width: int, size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        weight_norm = config.norm_type == "weight_norm"
        self.conv = Kernel((out_width, in_width, size), in_width * size, out_width, stride, conv_taps, weight_norm)
        if not weight_norm:
            self.norm = nn.GroupNorm(1, out_width)
        self.stride = stride
        self.dilation = dilation
        self.pad_mode = config.pad_mode
        padding = (size - 1) * dilation + 1 - stride
        # Odd totals and odd strides put the larger half on the left.
        self.pad_right = 0 if config.use_causal_conv else padding // 2
        self.pad_left = padding - self.pad_right

    def padding(self, length: int) -> Padding:
        """Returns the padding for an input of `length` steps."""
        # The right side is padded further, up to a whole number of strides.
        return Padding(self.pad_left, self.pad_right + -length % self.stride, self.pad_mode)

    def forward(self, hidden_BLC: torch.Tensor) -> torch.Tensor:
        taps_GIO, bias = self.conv.taps(), self.conv.bias
        padded = pad_steps(hidden_BLC, self.padding(hidden_BLC.shape[1]))
        batch, length, width = padded.shape
        # Put the steps that one stride covers side by side: (B, L, C) to (B, L / stride, stride * C).
        padded = padded.reshape(batch, length // self.stride, self.stride * width)
        output = sum_of_taps(padded, taps_GIO, bias, self.dilation)
        return output if not hasattr(self, "norm") else _group_norm(self.norm, output)


class TransposedConv(nn.Module):
    """Upsamples by a transposed convolution with a kernel of two strides, cut to `stride` steps per input step.

    An output block of `stride` steps depends on two steps of the input, its own and the one before. So this is an
    ordinary convolution of two taps, whose outputs are whole blocks, `stride * C` wide.
    """

    def __init__(self, config: EncodecConfig, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        weight_norm = config.norm_type == "weight_norm"
        shape = (in_width, out_width, 2 * stride)
        self.conv = Kernel(shape, in_width * 2, out_width, stride, transposed_conv_taps, weight_norm)
        if not weight_norm:
            self.norm = nn.GroupNorm(1, out_width)
        self.stride = stride
        self.cut_right = math.ceil(stride * config.trim_right_ratio) if config.use_causal_conv else stride // 2
        self.cut_left = stride - self.cut_right

    def padding(self, length: int) -> Padding:
        """Returns one step of zeros per side, whatever the length: the first and the last block have one neighbour."""
        return Padding(1, 1, "constant")

    def forward(self, hidden_BLC: torch.Tensor) -> torch.Tensor:
        padded = pad_steps(hidden_BLC, self.padding(hidden_BLC.shape[1]))
        blocks = sum_of_taps(padded, self.conv.taps(), self.conv.bias.repeat(self.stride))
        batch, num_blocks, block_width = blocks.shape
        # (B, L + 1, stride * C) to (B, (L + 1) * stride, C)
        output = blocks.view(batch, num_blocks * self.stride, block_width // self.stride)
        if hasattr(self, "norm"):
            output = _group_norm(self.norm, output)
        return output[:, self.cut_left : output.shape[1] - self.cut_right]


class ResidualBlock(nn.Module):
    """Adds to its input: ELU, a dilated convolution to a smaller width, ELU, a convolution of size 1 back."""

    def __init__(self, config: EncodecConfig, width: int, dilation: int) -> None:
        super().__init__()
        inner = width // config.compress
        self.block = nn.Sequential(
            nn.ELU(),
            Conv(config, width, inner, config.residual_kernel_size, dilation=dilation),
            nn.ELU(),
            Conv(config, inner, width, 1),
        )
        self.shortcut = Conv(config, width, width, 1) if config.use_conv_shortcut else nn.Identity()

    def forward(self, hidden_BLC: torch.Tensor) -> torch.Tensor:
        return self.shortcut(hidden_BLC) + self.block(hidden_BLC)


class Kernel(nn.Module):
    """Holds weight and bias of one convolution under the hub's names, and gives the matrices `sum_of_taps` needs.

    Weight norm, w = g * v / ||v|| with one g and one norm per entry of the first axis (Salimans and Kingma, 2016), is
    written out here rather than taken from `torch.nn.utils.parametrizations`, whose modules cannot be copied or
    pickled and recompute the weight at every access.

    Args:
        shape: shape of the stored weight, `(out, in, size)`, or `(in, out, size)` for a transposed convolution.
        fan_in: how many inputs one output sums, for the initialization.
        out_width: length of the bias.
        stride: stride of the convolution.
        arrange: `conv_taps` or `transposed_conv_taps`.
        weight_norm: whether the weight is stored as g and v.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        fan_in: int,
        out_width: int,
        stride: int,
        arrange: Callable[[torch.Tensor, int], torch.Tensor],
        weight_norm: bool,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.num_taps = shape[2] // stride
        self.arrange = arrange
        # LeCun et al. 1998. Residual sums grow as much as ELU shrinks, so signals keep their amplitude to the end.
        weight = torch.empty(shape).normal_(std=1.0 / math.sqrt(fan_in))
        if weight_norm:
            self.parametrizations = nn.ModuleDict({"weight": MagnitudeAndDirection(weight)})
        else:
            self.weight = nn.Parameter(weight)
        bound = 1.0 / math.sqrt(fan_in)
        self.bias = nn.Parameter(torch.empty(out_width).uniform_(-bound, bound))
        self._kept: Folded | None = None

    def taps(self) -> torch.Tensor:
        """Returns the taps `(G, in, out)`."""
        return self.folded(_as_they_are)

    def folded(self, form: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Returns `form(taps)`, cached as long as no gradient is needed and the weights do not change.

        Args:
            form: a function of the taps `(G, in, out)`; the result of one function is cached at a time.
        """
        sources = self._sources()
        needs_grad = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        # An inference tensor has no version counter, so nothing made of it can be cached.
        if needs_grad or any(source.is_inference() for source in sources):
            return form(self.arrange(self._weight(), self.stride))
        if self._kept is None or self._kept.form is not form or not self._kept.is_of(sources):
            # Outside of inference mode, since the cached tensor may later take part in a backward pass.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = Folded(form(self.arrange(self._weight(), self.stride)), form, sources)
        return self._kept.values

    def _sources(self) -> tuple[torch.Tensor, ...]:
        if not hasattr(self, "parametrizations"):
            return (self.weight,)
        normed = self.parametrizations["weight"]
        assert isinstance(normed, MagnitudeAndDirection)
        return (normed.original0, normed.original1)

    def _weight(self) -> torch.Tensor:
        return self.weight if not hasattr(self, "parametrizations") else self.parametrizations["weight"]()

    def train(self, mode: bool = True) -> Kernel:
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Kernel:
        # After moving or casting, the cache would only keep the old weights from being freed.
        self._kept = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # Leave the cache out of copies and pickles.
        return {**self.__dict__, "_kept": None}


class Folded:
    """Holds a tensor computed from some weights, and tells whether it is still up to date."""

    def __init__(
        self, values: torch.Tensor, form: Callable[[torch.Tensor], torch.Tensor], sources: Sequence[torch.Tensor]
    ) -> None:
        self.values = values
        self.form = form
        self._sources = tuple(sources)
        # Aliases keep the memory allocated, so that no other tensor can get its address while it is compared.
        self._memory = tuple(source.detach() for source in sources)
        self._versions = tuple(source._version for source in sources)

    def is_of(self, sources: Sequence[torch.Tensor]) -> bool:
        """Returns True if these are the same tensors, in the same memory, and were not written to since."""
        return all(
            now is then and now.data_ptr() == memory.data_ptr() and now._version == version
            for now, then, memory, version in zip(sources, self._sources, self._memory, self._versions, strict=True)
        )


class MagnitudeAndDirection(nn.Module):
    """Holds a weight under weight norm as g and v, under the names of torch's parametrizations."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        # On the meta device, computing a norm would do nothing but import torch's compiler, which takes 1 s.
        if weight.is_meta:
            norm = weight.new_empty(len(weight), 1, 1)
        else:
            norm = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
        self.original0 = nn.Parameter(norm)
        self.original1 = nn.Parameter(weight)

    def forward(self) -> torch.Tensor:
        stored = self.original1.dtype
        # Squares of a half-precision weight could overflow.
        v = self.original1.to(torch.promote_types(stored, torch.float32))
        g = self.original0.to(v.dtype)
        return (v * (g / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True))).to(stored)


def _as_they_are(taps_GIO: torch.Tensor) -> torch.Tensor:
    return taps_GIO


def conv_taps(weight_OIL: torch.Tensor, stride: int) -> torch.Tensor:
    """Returns a convolution's weight `(out, in, G * stride)` as G matrices `(G, stride * in, out)`."""
    width_out, width_in, size = weight_OIL.shape
    split = weight_OIL.reshape(width_out, width_in, size // stride, stride)
    return split.permute(2, 3, 1, 0).reshape(size // stride, stride * width_in, width_out).contiguous()


def transposed_conv_taps(weight_IOL: torch.Tensor, stride: int) -> torch.Tensor:
    """Returns a transposed convolution's weight `(in, out, 2 * stride)` as two matrices `(2, in, stride * out)`.

    The first is for the earlier of the two input steps: the second half of its kernel reaches into this block.
    """
    width_in, width_out, _ = weight_IOL.shape
    split = weight_IOL.reshape(width_in, width_out, 2, stride).flip(2)
    return split.permute(2, 0, 3, 1).reshape(2, width_in, stride * width_out).contiguous()


def sum_of_taps(
    hidden_BLI: torch.Tensor, taps_GIO: torch.Tensor, bias: torch.Tensor, dilation: int = 1
) -> torch.Tensor:
    """Returns `y[l] = bias + sum over g of x[l + g * dilation] @ taps[g]`, for every l at which all taps are inside.

    Args:
        hidden_BLI: `(B, L, in)`.
        taps_GIO: `(G, in, out)`.
        bias: `(out,)`.
        dilation: steps between two taps.

    Returns:
        `(B, L - (G - 1) * dilation, out)`.
    """
    batch, length, width = hidden_BLI.shape
    num_taps = len(taps_GIO)
    length -= (num_taps - 1) * dilation
    if width < _NARROW and dilation == 1:
        # (B, L, in, G) to (B, L, G * in)
        hidden_BLI = hidden_BLI.unfold(1, num_taps, 1).transpose(2, 3).reshape(batch, length, num_taps * width)
        taps_GIO = taps_GIO.reshape(1, num_taps * width, -1)
    output: torch.Tensor | None = None
    for tap, matrix in enumerate(taps_GIO):
        seen = hidden_BLI[:, tap * dilation : tap * dilation + length]
        matrices = matrix.expand(batch, -1, -1)
        output = torch.baddbmm(bias, seen, matrices) if output is None else output.baddbmm_(seen, matrices)
    assert output is not None
    return output


def pad_steps(hidden_BLC: torch.Tensor, padding: Padding) -> torch.Tensor:
    """Pads along L as `torch.nn.functional.pad` does, and reflects signals of any length.

    A signal that is too short to be reflected is first extended with zeros on the right, which are cut off again.
    """
    left, right, mode = padding.left, padding.right, padding.mode
    if left == 0 and right == 0:
        return hidden_BLC
    if mode == "constant":
        return F.pad(hidden_BLC, (0, 0, left, right))
    length = hidden_BLC.shape[1]
    if mode == "replicate":
        first, last = hidden_BLC[:, :1].expand(-1, left, -1), hidden_BLC[:, -1:].expand(-1, right, -1)
        return torch.cat((first, hidden_BLC, last), 1)
    if mode == "circular":
        if max(left, right) > length:
            raise ValueError(f"pad_mode 'circular' needs {max(left, right)} steps or more at a layer that has {length}")
        return torch.cat((hidden_BLC[:, length - left :], hidden_BLC, hidden_BLC[:, :right]), 1)
    missing = max(0, max(left, right) + 1 - length)
    hidden_BLC = F.pad(hidden_BLC, (0, 0, 0, missing)) if missing else hidden_BLC
    length += missing
    before, after = hidden_BLC[:, 1 : left + 1].flip(1), hidden_BLC[:, length - 1 - right : length - 1].flip(1)
    return torch.cat((before, hidden_BLC, after), 1)[:, : left + length + right - missing]


def _group_norm(norm: nn.GroupNorm, hidden_BLC: torch.Tensor) -> torch.Tensor:
    """Applies `norm`, which has one group, in this layout: torch's own would copy to `(B, C, L)` and back."""
    values = hidden_BLC.to(torch.promote_types(hidden_BLC.dtype, torch.float32))
    centered = values - values.mean((1, 2), keepdim=True)
    # torch.var_mean takes several times as long on a CPU.
    variance = centered.square().mean((1, 2), keepdim=True)
    gain_B1C = norm.weight * (variance + norm.eps).rsqrt()
    return torch.addcmul(norm.bias.to(gain_B1C.dtype), centered, gain_B1C).to(hidden_BLC.dtype)
