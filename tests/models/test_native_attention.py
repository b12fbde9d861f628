"""Attention in C against softmax(Q K^T / sqrt(H)) V in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch

from musicgen_train.models import attention
from musicgen_train.models.attention import AttentionMask
from musicgen_train.models.kernels import attention as native_attention
from musicgen_train.models.kernels import compiler

pytestmark = pytest.mark.skipif(compiler.reason_without("attention.c") is not None, reason="no C compiler here")

BATCH, HEADS = 2, 3


def states(length: int, head_width: int, side_by_side: bool) -> torch.Tensor:
    """Heads in one piece each, or side by side as a linear layer makes them."""
    if side_by_side:
        return torch.randn(BATCH, length, HEADS, head_width).transpose(1, 2).requires_grad_()
    return torch.randn(BATCH, HEADS, length, head_width).requires_grad_()


def by_definition(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen_BL: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    scores = queries @ keys.mT / queries.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    if seen_BL is not None:
        scores = scores.masked_fill(~seen_BL[:, None, None], float("-inf"))
    return scores.softmax(dim=-1) @ values


def some_seen(length: int) -> torch.Tensor:
    seen = torch.zeros(BATCH, length, dtype=torch.bool)
    seen[0, : length // 2 + 1] = True
    seen[1, length - 1] = True
    return seen


def assert_same(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor | None,
    causal: bool,
    atol: float = 2e-6,
) -> None:
    given = (queries, keys, values)
    exact = [each.detach().double().requires_grad_() for each in given]
    expected = by_definition(exact[0], exact[1], exact[2], seen, causal)
    found = native_attention.attend_natively(queries, keys, values, seen, causal)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=atol)
    gradient = torch.randn_like(found)
    expected_gradients = torch.autograd.grad(expected, exact, gradient.double())
    gradients = torch.autograd.grad(found, given, gradient)
    for one, expected_one in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one.double(), expected_one, rtol=1e-4, atol=5 * atol)


@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize("head_width", [32, 64])
@pytest.mark.parametrize("steps", [2, 7, 60, 61, 200])
def test_causal(steps: int, head_width: int, side_by_side: bool, variant: str) -> None:
    queries, keys, values = (states(steps, head_width, side_by_side) for _ in range(3))
    assert_same(queries, keys, values, None, causal=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("text_length", [1, 5, 16, 45])
@pytest.mark.parametrize("steps", [2, 63, 130])
def test_to_text(steps: int, text_length: int, masked: bool, variant: str) -> None:
    queries = states(steps, 32, side_by_side=True)
    keys, values = states(text_length, 32, side_by_side=True), states(text_length, 32, side_by_side=False)
    assert_same(queries, keys, values, some_seen(text_length) if masked else None, causal=False)


def test_scores_that_differ_by_far(variant: str) -> None:
    queries, keys, values = (states(70, 32, side_by_side=True) for _ in range(3))
    with torch.no_grad():
        queries *= 30
    # Of scores in the hundreds, float32 has no more digits.
    assert_same(queries, keys, values, None, causal=True, atol=5e-4)


@pytest.mark.parametrize("steps", [2, 57, 70])
@pytest.mark.parametrize("causal", [True, False])
def test_in_bfloat16_nothing_but_what_is_multiplied_or_kept_is_rounded(causal: bool, steps: int, variant: str) -> None:
    given = [states(steps, 32, side_by_side=True).detach().bfloat16().requires_grad_() for _ in range(3)]
    seen = None if causal else some_seen(steps)
    queries, keys, values = exact = [each.detach().double().requires_grad_() for each in given]
    expected = by_definition(queries, keys, values, seen, causal)
    found = native_attention.attend_natively(*given, seen, causal)
    gradient = torch.randn_like(found)
    results = (found, *torch.autograd.grad(found, given, gradient))
    gradient = gradient.double()
    of_queries, of_keys, of_values = torch.autograd.grad(expected, exact, gradient)

    # What the rounding of weights, of gradients by scores, of the result and of gradients may change, at most.
    half_a_unit, scale = 2**-8, 32**-0.5  # of the last of eight binary digits
    weights = by_definition(queries, keys, torch.eye(steps).double().expand(BATCH, HEADS, -1, -1), seen, causal)
    output_error = half_a_unit * (weights @ values.abs() + expected.abs())
    mean = (gradient * expected).sum(dim=-1, keepdim=True)
    of_scores = weights * (gradient @ values.mT - mean)
    scores_error = half_a_unit * of_scores.abs()
    scores_error += weights * (gradient.abs() * output_error).sum(dim=-1, keepdim=True)
    bounds = (
        output_error,
        scale * scores_error @ keys.abs() + half_a_unit * of_queries.abs(),
        scale * scores_error.mT @ queries.abs() + half_a_unit * of_keys.abs(),
        half_a_unit * (weights.mT @ gradient.abs() + of_values.abs()),
    )
    for one, exactly, bound in zip(results, (expected, of_queries, of_keys, of_values), bounds, strict=True):
        assert one.dtype == torch.bfloat16
        assert ((one - exactly).abs() <= 1.01 * bound + 1e-6).all()


def test_in_bfloat16_heads_may_lie_anywhere(variant: str) -> None:
    # An odd number of steps of odd length: pairs start at any address of two bytes.
    batch, heads, steps, head_width = 2, 3, 41, 32
    rows = torch.randn(3, batch, steps, heads * head_width + 1).bfloat16()
    given = [each[..., 1:].unflatten(-1, (heads, head_width)).transpose(1, 2).requires_grad_() for each in rows]
    packed = [each.detach().contiguous().requires_grad_() for each in given]
    found, expected = (native_attention.attend_natively(*each, None, True) for each in (given, packed))
    assert torch.equal(found, expected)
    gradient = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, given, gradient), torch.autograd.grad(expected, packed, gradient), strict=True
    ):
        assert torch.equal(one, other)


def test_a_gradient_of_one_number_for_all() -> None:
    queries, keys, values = (states(20, 32, side_by_side=True) for _ in range(3))
    native_attention.attend_natively(queries, keys, values, None, causal=True).sum().backward()
    exact = [each.detach().double().requires_grad_() for each in (queries, keys, values)]
    by_definition(exact[0], exact[1], exact[2], None, causal=True).sum().backward()
    for one, expected in zip((queries, keys, values), exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.double(), expected.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
def test_results_are_rounded_as_torch_does(size: float, variant: str) -> None:
    # One key: attention gives its value back, which is rounded once more.
    queries, keys = (torch.randn(BATCH, HEADS, 2, 32, dtype=torch.bfloat16) for _ in range(2))
    values = (torch.randn(BATCH, HEADS, 1, 32) * size).bfloat16()
    found = native_attention.attend_natively(queries, keys[:, :, :1], values, None, causal=False)
    assert torch.equal(found, values.expand_as(found))
    # Two keys that weigh the same: a mean, half of which lie between two numbers.
    values = torch.randn(BATCH, HEADS, 2, 32).bfloat16()
    found = native_attention.attend_natively(queries, torch.zeros_like(keys), values, None, causal=False)
    assert torch.equal(found, values.float().mean(dim=2, keepdim=True).bfloat16().expand_as(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_with_those_who_see_it(dtype: torch.dtype, variant: str) -> None:
    queries, keys, values = (states(70, 32, side_by_side=True).detach().to(dtype) for _ in range(3))
    keys[0, 0, 40] = float("nan")
    mixed = native_attention.attend_natively(queries, keys, values, None, causal=True)
    assert mixed[0, 0, 40:].isnan().all()
    assert not mixed[0, 0, :40].isnan().any()
    assert not mixed[:, 1:].isnan().any()
    assert not mixed[1].isnan().any()


def test_is_torchs_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = (states(20, 32, side_by_side=True) for _ in range(3))
    threads = torch.get_num_threads()

    def can(*given: torch.Tensor, allowed: torch.Tensor | None = None, dropout: float = 0.0) -> bool:
        return native_attention.can_attend_natively(*given, allowed, dropout)

    assert can(queries, keys, values)
    assert can(queries, keys, values, allowed=torch.ones(BATCH, 1, 1, 20, dtype=torch.bool))
    assert not can(queries, keys, values, allowed=torch.ones(BATCH, 1, 20, 20, dtype=torch.bool))
    assert not can(queries, keys, values, dropout=0.1)
    assert can(queries.bfloat16(), keys.bfloat16(), values.bfloat16())
    assert not can(queries.bfloat16(), keys, values)
    assert not can(queries.double(), keys.double(), values.double())
    assert not can(queries[:, :, :1], keys, values)
    assert not can(queries[..., :20], keys[..., :20], values[..., :20])
    torch.set_num_threads(BATCH * HEADS)
    try:
        assert not can(queries, keys, values)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(native_attention, "load_library", lambda source: None)
    assert not can(queries, keys, values)


def test_the_decoders_attention_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def noted(*arguments: object) -> torch.Tensor:
        taken.append(arguments)
        return native_attention.attend_natively(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "attend_natively", noted)
    queries, keys, values = (states(20, 32, side_by_side=True) for _ in range(3))
    found = attention.attend(queries, keys, values, AttentionMask(causal=True), dropout=0.0)
    assert len(taken) == 1
    torch.testing.assert_close(found, by_definition(queries, keys, values, None, causal=True), rtol=1e-5, atol=2e-6)
