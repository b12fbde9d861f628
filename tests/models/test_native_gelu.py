"""GELU in C, and its gradient, against their definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from musicgen_train.models.native import compiler, gelu
from musicgen_train.models.products import gelu_product

pytestmark = pytest.mark.skipif(compiler.reason_without("gelu.c") is not None, reason="no C compiler here")

VALUES = torch.cat([torch.linspace(-12, 12, 100_003), torch.linspace(-1e-2, 1e-2, 10_001), torch.tensor([0.0, 1e30])])


def test_values() -> None:
    found, exact = gelu.gelu(VALUES), F.gelu(VALUES.double())
    torch.testing.assert_close(found.double(), exact, rtol=5e-7, atol=5e-7)
    # Left of zero, where 1 + erf has no digits left, in proportion, too.
    left = (VALUES > -5) & (VALUES < 0)
    from_tail = 0.5 * VALUES.double() * torch.erfc(-VALUES.double() / 2**0.5)
    torch.testing.assert_close(found[left].double(), from_tail[left], rtol=3e-6, atol=0.0)


def test_gradient() -> None:
    exact = VALUES.double().requires_grad_()
    given = torch.randn_like(VALUES)
    (expected,) = torch.autograd.grad(F.gelu(exact), exact, given.double())
    found = gelu.gelu_backward(given.clone(), VALUES)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 4095, 4096, 4097, 12_345])
def test_any_length(length: int) -> None:
    values = torch.randn(length)
    torch.testing.assert_close(gelu.gelu(values), F.gelu(values))
    torch.testing.assert_close(
        gelu.gelu_backward(torch.ones(length), values), torch.ops.aten.gelu_backward(torch.ones(length), values)
    )


def test_not_a_number_stays_one() -> None:
    values = torch.tensor([float("nan"), 1.0, float("inf"), -1.0])
    assert gelu.gelu(values)[:3].tolist()[1:] == [pytest.approx(0.8413447), float("inf")]
    assert gelu.gelu(values)[0].isnan()


def test_other_tensors_are_torchs() -> None:
    strided = torch.randn(6, 5).T
    assert torch.equal(gelu.gelu(strided), F.gelu(strided))
    assert gelu.gelu(VALUES.double()).dtype == torch.float64


def test_the_product_after_it_has_its_gradients() -> None:
    states, weight = torch.randn(3, 40, requires_grad=True), torch.randn(5, 40, requires_grad=True)
    exact = [each.detach().double().requires_grad_() for each in (states, weight)]
    gelu_product(states, weight).square().sum().backward()
    F.linear(F.gelu(exact[0]), exact[1]).square().sum().backward()
    for one, expected in zip((states, weight), exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.double(), expected.grad, rtol=1e-4, atol=1e-4)
