"""Tensors that have a CUDA device but no values, and a watch over what is done with them.

What needs a value makes the host wait for the device. Here such a look is noted with the function that takes it, and
answered with 1. A copy between host and device, or an operator on a tensor of the CPU, is an error: the first waits as
well, the second is an oversight. Not seen: kernels, their numbers, and what autograd does in a backward pass, which
needs a device.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tiny
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import musicgen_train
from musicgen_train import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)
from musicgen_train.models.generation import steps

CUDA = torch.device("cuda", 0)

_OURS = str(Path(musicgen_train.__file__).parent)
_COPY = torch.ops.aten._to_copy.default
_LOOK = torch.ops.aten._local_scalar_dense.default
# A list of Python comes as a tensor of the CPU; what is done with it then matters.
_NO_WORK = (torch.ops.aten.lift_fresh.default, torch.ops.prim.device.default)


class Watch(TorchDispatchMode):
    """Notes looks, and refuses tensors of the CPU but for single numbers.

    Args:
        copies: let copies between host and device be, which are noted as looks.
    """

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        self.looks: list[str] = []
        """Functions of ours that looked, in order; several looks of one line in a row are one."""
        self._copies = copies
        self._last: tuple[Any, ...] = ()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator is _LOOK:
            self._note()
            return (args[0].dtype.is_floating_point and 1.0) or args[0].dtype == torch.bool or 1
        result = operator(*args, **(kwargs or {}))
        given = {tensor.device.type for tensor in _tensors((args, kwargs))}
        made = {tensor.device.type for tensor in _tensors(result)}
        if operator is _COPY and given != made:
            assert self._copies, f"a copy from {given} to {made}, for which the host waits"
            self._note()
        elif not self._copies:
            wide = [
                tensor for tensor in _tensors((args, kwargs, result)) if tensor.device.type == "cpu" and tensor.dim()
            ]
            assert not wide or operator in _NO_WORK, (
                f"{operator} of tensors on the CPU: {[list(tensor.shape) for tensor in wide]}"
            )
        return result

    def _note(self) -> None:
        frame = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
            frame = frame.f_back  # type: ignore[assignment]
        place = ("a test", 0) if frame is None else (frame.f_code.co_qualname, frame.f_lineno)
        if place != self._last:
            self.looks.append(place[0])
        self._last = place


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def fake_cuda(copies: bool = False) -> Iterator[Watch]:
    """Within the block new tensors have no values, and `torch.device("cuda")` can be had without a GPU."""
    with (
        FakeTensorMode(),
        # Autocast is refused where there is no GPU.
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda: True),
        # cuDNN asks the driver whether it may take an LSTM; without it torch does the LSTM by kernels of its own.
        torch.backends.cudnn.flags(enabled=False),
        # Parameters without values are not of torch's class.
        patch.object(steps, "is_plain", lambda decoder, heads: True),
        Watch(copies) as watch,
    ):
        yield watch


def composite(**decoder: Any) -> MusicgenForConditionalGeneration:
    """A tiny one on the device; within `fake_cuda`."""
    config = MusicgenConfig(
        text_encoder=T5Config(**tiny.TEXT).to_dict(),
        audio_encoder=EncodecConfig(**tiny.CODEC).to_dict(),
        decoder=MusicgenDecoderConfig(**{**tiny.DECODER, **decoder}).to_dict(),
    )
    with CUDA:
        return MusicgenForConditionalGeneration(config).eval()
