"""Matrix products: on a CPU by the fastest library, elsewhere torch's own.

float32: torch calls MKL, which has AVX-512 code only for Intel's processors. oneDNN has it for all, so large products
go there.

bfloat16: torch calls oneDNN if that has kernels for the processor. On other CPUs, such as those with AVX2 alone, it
falls back to plain loops, which take many times as long as float32. There, operands are rounded to bfloat16 and
multiplied in float32, which rounds no more than real half-precision products do.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# torch's own condition for oneDNN rather than loops.
_CPU_MULTIPLIES_BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
# With AVX2 alone oneDNN and MKL are equally fast; on Intel's processors they were not compared.
_ONEDNN_IS_FASTER = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
# A call of oneDNN costs some 10 us more, which pays off from this many multiplications on.
_ONEDNN_FROM = 2**24


# A device without autocast: torch raises when asked about it. Compared by name, since torch's own
# `is_autocast_available` breaks compiled graphs in torch 2.11.
_WITHOUT_AUTOCAST = "meta"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Returns the dtype that autocast rounds the operands of products to on a device; None if it is off."""
    if device.type != _WITHOUT_AUTOCAST and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off for what is computed on a device."""
    return contextlib.nullcontext() if device.type == _WITHOUT_AUTOCAST else torch.autocast(device.type, enabled=False)


def product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Returns the dtype that a matrix product rounds its operands to: autocast's, or the tensor's own."""
    asked = autocast_dtype(tensor.device)
    return tensor.dtype if asked is None or tensor.dtype == torch.float64 else asked


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Rounds the input of several products once: autocast would make, and the backward pass keep, a copy for each."""
    return tensor.to(product_dtype(tensor))


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Returns the dtype in which products of operands rounded to `dtype` are fast: float32, or `dtype` itself."""
    if device.type == "cpu" and dtype == torch.bfloat16 and not _CPU_MULTIPLIES_BFLOAT16:
        return torch.float32
    return dtype


def product(states: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """Returns states @ weight.T, without support for autograd.

    Args:
        states: `(..., I)`.
        weight_OI: `(O, I)`, of the same dtype, contiguous or the transpose of a contiguous tensor.
    """
    if _is_for_onednn(states, weight_OI, states.dtype):
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight_OI, None, "none", [], "")
        return result
    return states @ weight_OI.T


def _is_for_onednn(states: torch.Tensor, weight_OI: torch.Tensor, dtype: torch.dtype) -> bool:
    """Returns True if oneDNN is faster at states @ weight.T in that dtype."""
    return (
        _ONEDNN_IS_FASTER
        and dtype == torch.float32
        and states.device.type == "cpu"
        and not torch.compiler.is_compiling()  # first, since reading the shape would specialize the graph
        and states.numel() * len(weight_OI) >= _ONEDNN_FROM
    )


class Linear(nn.Linear):
    """Implements a linear layer without bias that is fast on any CPU. Results have the dtype of `nn.Linear`'s."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        dtype = product_dtype(states)
        if computed_in(dtype, states.device) != dtype or _is_for_onednn(states, self.weight, dtype):
            result: torch.Tensor = _Product.apply(states, self.weight, dtype, False)
            return result
        return F.linear(states, self.weight)


def gelu_product(inner: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """Returns gelu(inner) @ weight.T; only `inner` is kept for the backward pass.

    The activation is the widest tensor of a transformer's layer, and costs next to nothing to recompute.
    """
    result: torch.Tensor = _Product.apply(inner, weight_OI, product_dtype(inner), True)
    return result


class _Product(torch.autograd.Function):
    """Computes states @ weight.T of operands rounded to `dtype`, optionally after a gelu, whose result is not kept."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight_OI: torch.Tensor, dtype: torch.dtype, after_gelu: bool
    ) -> torch.Tensor:
        ctx.dtype, ctx.after_gelu, ctx.states_dtype = dtype, after_gelu, states.dtype
        kept = states if after_gelu else states.to(dtype)
        ctx.save_for_backward(kept if after_gelu or ctx.needs_input_grad[1] else None, weight_OI)
        with without_autocast(states.device):
            operand = _operand(F.gelu(kept) if after_gelu else kept, dtype)
            return product(operand, _operand(weight_OI, dtype)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        kept, weight_OI = ctx.saved_tensors
        grad = _operand(grads[0], ctx.dtype)
        grad_states = grad_weight = None
        with without_autocast(grad.device):
            if ctx.needs_input_grad[1]:
                states = _operand(F.gelu(kept) if ctx.after_gelu else kept, ctx.dtype)
                grad_weight = (grad.flatten(0, -2).T @ states.flatten(0, -2)).to(weight_OI.dtype)
                del states  # before a tensor of the same size is allocated
            if ctx.needs_input_grad[0]:
                grad_states = product(grad, _operand(weight_OI, ctx.dtype).T).to(ctx.states_dtype)
                if ctx.after_gelu:
                    # In place, since nothing else in a layer is as large.
                    torch.ops.aten.gelu_backward.grad_input(grad_states, kept, grad_input=grad_states)
        return grad_states, grad_weight, None, None


def _operand(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype).to(computed_in(dtype, tensor.device))
