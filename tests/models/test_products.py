"""Products against torch's own, on CPUs with and without the instructions for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from musicgen_train import T5Config, T5EncoderModel
from musicgen_train.models import products
from musicgen_train.models.layers import AttentionMask, attend
from musicgen_train.models.products import Linear, autocast_dtype, gelu_product, product, without_autocast

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(params=[False, True], ids=["loops", "instructions"])
def has_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor counts as one that multiplies in bfloat16; torch does what it can either way."""
    monkeypatch.setattr(products, "_CPU_MULTIPLIES_BFLOAT16", request.param)
    return bool(request.param)


def gradients(result: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad((result.float() * torch.randn(result.shape)).sum(), inputs)


@pytest.mark.usefixtures("has_bfloat16")
@pytest.mark.parametrize("mixed", [True, False], ids=["autocast", "bfloat16 weights"])
def test_a_linear_layer_equals_torchs(mixed: bool) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if mixed else torch.bfloat16
    states = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
    ours = Linear(24, 40).to(dtype)
    theirs = nn.Linear(24, 40, bias=False, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found, expected = ours(states), theirs(states)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert_close(found, expected, rtol=1e-2, atol=1e-3)
    found_gradients = gradients(found, states, ours.weight)
    for ours_gradient, gradient in zip(found_gradients, gradients(expected, states, theirs.weight), strict=True):
        assert ours_gradient.dtype == gradient.dtype == dtype
        assert_close(ours_gradient, gradient, rtol=2e-2, atol=2e-2)


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes products of float32 to oneDNN, however small they are and whatever the processor."""
    monkeypatch.setattr(products, "_ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(products, "_ONEDNN_FROM", 1)


class Products(TorchDispatchMode):
    """Notes which operators multiply matrices, and in which dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name() in ("aten::mm", "mkldnn::_linear_pointwise"):
            self.seen.append((function.name(), args[0].dtype))
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("after_gelu", [False, True], ids=["linear", "after a gelu"])
def test_float32_by_onednn_equals_float64(after_gelu: bool) -> None:
    torch.manual_seed(0)
    layer, states = Linear(24, 40), torch.randn(2, 3, 24, requires_grad=True)
    exact = [each.detach().double().requires_grad_() for each in (states, layer.weight)]
    expected = F.linear(F.gelu(exact[0]) if after_gelu else exact[0], exact[1])
    with Products() as multiplied:
        found = gelu_product(states, layer.weight) if after_gelu else layer(states)
        found_gradients = gradients(found, states, layer.weight)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found_gradients, gradients(expected, *exact), strict=True):
        assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    forward, of_weight, of_states = (name for name, _ in multiplied.seen)
    assert forward == of_states == "mkldnn::_linear_pointwise"
    assert of_weight == "aten::mm"


@pytest.mark.usefixtures("by_onednn")
def test_operands_of_onednn_may_be_views() -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(7, 48)[:, ::2], torch.randn(24, 40)
    assert_close(product(states, weight.T), states @ weight, rtol=1e-5, atol=1e-5)
    layer, inputs = Linear(24, 40), torch.randn(7, 24, requires_grad=True)
    layer(inputs).sum().backward()  # of which the gradient is one number, expanded
    assert_close(inputs.grad, layer.weight.sum(dim=0).expand(7, 24), rtol=1e-5, atol=1e-5)


def test_small_products_and_other_types_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_ONEDNN_IS_FASTER", True)
    with Products() as multiplied, torch.no_grad():
        Linear(24, 40)(torch.randn(5, 24))
        Linear(512, 512).double()(torch.randn(128, 512).double())
    assert {name for name, _ in multiplied.seen} == {"aten::mm"}


@pytest.mark.usefixtures("has_bfloat16")
@pytest.mark.parametrize("mask", [AttentionMask(causal=True), AttentionMask(allowed=torch.ones(7, 7).tril().bool())])
@pytest.mark.parametrize("mixed", [True, False], ids=["autocast", "bfloat16 weights"])
def test_attention_equals_float32_of_the_same_numbers(mask: AttentionMask, mixed: bool) -> None:
    torch.manual_seed(0)
    states = [torch.randn(2, 3, 7, 8).bfloat16().requires_grad_() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = attend(*states, mask, 0.0)
    expected = F.scaled_dot_product_attention(*(each.float() for each in states), is_causal=True)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), expected, rtol=2e-2, atol=1e-2)
    for ours, theirs in zip(gradients(found, *states), gradients(expected, *states), strict=True):
        assert_close(ours, theirs, rtol=5e-2, atol=5e-2)


def test_dropout_of_attention_falls_alike_when_done_again(has_bfloat16: bool) -> None:
    # With ones as values, the gradient by them sums up exactly the weights that were kept.
    torch.manual_seed(0)
    queries, keys = (torch.randn(1, 1, 6, 8).bfloat16().requires_grad_() for _ in range(2))
    values = torch.ones(1, 1, 6, 8).bfloat16().requires_grad_()
    found = attend(queries, keys, values, AttentionMask(causal=True), 0.5)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert_close(gradient.float().sum(), found.float().sum(), rtol=2e-2, atol=0)


def test_other_precisions_are_left_alone(has_bfloat16: bool) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert products.computed_in(dtype, cpu) == dtype
    assert products.computed_in(torch.bfloat16, cpu) == (torch.bfloat16 if has_bfloat16 else torch.float32)
    assert products.computed_in(torch.bfloat16, gpu) == torch.bfloat16


@pytest.mark.usefixtures("has_bfloat16")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_an_activation_that_is_made_again_equals_torchs(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    inner, weight = torch.randn(2, 5, 40).double(), torch.randn(24, 40).double() / 6
    expected_inputs = [each.clone().requires_grad_() for each in (inner, weight)]
    expected = F.linear(F.gelu(expected_inputs[0]), expected_inputs[1])
    inputs = [each.to(dtype).requires_grad_() for each in (inner, weight)]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = gelu_product(*inputs)
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in inputs]
    assert found.dtype == dtype
    assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(gradients(found, *inputs), gradients(expected, *expected_inputs), strict=True):
        assert_close(ours.double(), theirs, rtol=tolerance, atol=3 * tolerance)


def test_no_product_is_rounded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # Inside an operation of ours autocast would round the float32 operands back, and multiply in loops.
    monkeypatch.setattr(products, "_CPU_MULTIPLIES_BFLOAT16", False)
    layer, states = Linear(24, 40), torch.randn(5, 24, requires_grad=True)

    with torch.autocast("cpu", torch.bfloat16), Products() as multiplied:
        gelu_product(layer(states), layer.weight.T).sum().backward()
    assert {dtype for _, dtype in multiplied.seen} == {torch.float32}


def test_frozen_weights_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_CPU_MULTIPLIES_BFLOAT16", False)
    layer, states = Linear(24, 40).requires_grad_(False), torch.randn(5, 24, requires_grad=True)
    kept: list[torch.Tensor] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(kept.append, lambda none: none),
        torch.autocast("cpu", torch.bfloat16),
    ):  # type: ignore[arg-type]
        layer(states)
    assert [tensor.shape for tensor in kept] == [layer.weight.shape]


def test_the_type_that_is_asked_for() -> None:
    assert autocast_dtype(CPU) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(CPU) == torch.bfloat16
        assert autocast_dtype(META) is None
        with without_autocast(CPU):
            assert autocast_dtype(CPU) is None
        with without_autocast(META):
            assert autocast_dtype(CPU) == torch.bfloat16


def test_switched_off_products_keep_their_type() -> None:
    states, weight = torch.randn(2, 3), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(states, weight).dtype == torch.bfloat16
        with without_autocast(CPU):
            assert F.linear(states, weight).dtype == torch.float32


def test_a_text_encoder_runs_without_values() -> None:
    with META:
        model = T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
        ids = torch.zeros(2, 3, dtype=torch.long)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape == (2, 3, 8)
