"""The parts of a decoder layer: the layer norm, for weights of another dtype than the states."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from musicgen_train.models.layers import LayerNorm


def norm_of(dtype: torch.dtype) -> LayerNorm:
    norm = LayerNorm(12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_states_stay_float32_under_weights_in_half_precision(dtype: torch.dtype) -> None:
    norm, states = norm_of(dtype), torch.randn(2, 5, 12)
    found = norm(states)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.layer_norm(states, (12,), norm.weight.float(), norm.bias.float()))
    found.sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_otherwise_it_is_torchs(dtype: torch.dtype) -> None:
    norm, states = norm_of(dtype), torch.randn(2, 5, 12).to(dtype)
    torch.testing.assert_close(norm(states), F.layer_norm(states, (12,), norm.weight, norm.bias), rtol=0, atol=0)
