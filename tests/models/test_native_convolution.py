"""Convolutions in C against torch's: the same numbers, and torch wherever C cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.models.codec import fused_layers
from musicgen_train.models.codec.convolutions import Conv, ResidualBlock, TransposedConv
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import EncodecConfig
from musicgen_train.models.kernels import compiler

pytestmark = pytest.mark.skipif(compiler.reason_without("convolution.c") is not None, reason="no C compiler here")


def config(**settings: Any) -> EncodecConfig:
    return EncodecConfig(**{"use_causal_conv": False, "use_conv_shortcut": False, **settings})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Convolutions done in C."""
    done: list[Any] = []
    convolve = fused_layers._convolve

    def noted(layer: Any, *arguments: Any) -> Any:
        done.append(layer)
        return convolve(layer, *arguments)

    monkeypatch.setattr(fused_layers, "_convolve", noted)
    return done


@torch.no_grad()
def assert_same(layers: list[nn.Module], hidden_BLC: torch.Tensor, convolutions: int, calls: list[Any]) -> None:
    sequence = nn.Sequential(*layers)
    expected = sequence(hidden_BLC)
    assert not calls
    actual = fused_layers.run_layers(sequence, hidden_BLC)
    assert len(calls) == convolutions
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    calls.clear()


@pytest.mark.parametrize("pad_mode", ["reflect", "constant", "replicate"])
@pytest.mark.parametrize("length", [1, 3, 17, 200])
def test_a_chain_is_the_same_in_c(length: int, pad_mode: str, calls: list[Any], variant: str) -> None:
    some = config(pad_mode=pad_mode)
    layers = [
        Conv(some, 2, 24, 7),
        ResidualBlock(some, 24, 1),
        ResidualBlock(some, 24, 3),
        nn.ELU(),
        Conv(some, 24, 72, 4, stride=2),
        nn.ELU(),
        TransposedConv(some, 72, 20, 5),
        ResidualBlock(some, 20, 2),
        nn.ELU(),
        Conv(some, 20, 1, 7),
    ]
    assert_same(layers, torch.randn(3, length, 2), 10, calls)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [2, 29, 130])
def test_every_padding_and_cut(length: int, stride: int, causal: bool, calls: list[Any], variant: str) -> None:
    some = config(use_causal_conv=causal, trim_right_ratio=0.5 if causal else 1.0)
    hidden = torch.randn(2, length, 8)
    assert_same([Conv(some, 8, 40, 2 * stride, stride=stride)], hidden, 1, calls)
    # With the padding of the next layer beside what is cut off.
    assert_same([TransposedConv(some, 8, 12, stride), Conv(some, 12, 3, 3, dilation=4)], hidden, 2, calls)
    assert_same([TransposedConv(some, 8, 12, stride), nn.ELU(), Conv(some, 12, 33, 5)], hidden, 2, calls)


def test_a_shortcut_that_is_a_convolution(calls: list[Any]) -> None:
    some = config(use_conv_shortcut=True)
    assert_same([ResidualBlock(some, 16, 1), ResidualBlock(some, 16, 2)], torch.randn(2, 50, 16), 6, calls)


def test_other_layers_stand_in_between(calls: list[Any]) -> None:
    some = config()
    layers = [Conv(some, 4, 16, 3), nn.LayerNorm(16), nn.ELU(), Conv(some, 16, 4, 3), nn.ELU()]
    assert_same(layers, torch.randn(2, 50, 4), 2, calls)


def test_padding_that_wraps_around(calls: list[Any]) -> None:
    assert_same([Conv(config(pad_mode="circular"), 4, 16, 5)], torch.randn(2, 50, 4), 1, calls)


@torch.no_grad()
def test_elu_over_its_whole_range(variant: str) -> None:
    layer = Conv(config(), 1, 1, 1)
    layer.conv.parametrizations["weight"].original0.fill_(1.0)
    layer.conv.parametrizations["weight"].original1.fill_(1.0)
    layer.conv.bias.zero_()
    values = torch.cat(
        [torch.linspace(-120, 30, 20001), torch.linspace(-1e-3, 1e-3, 20001), torch.logspace(-30, 0, 99)]
    )
    values = torch.cat([values, -values, torch.tensor([0.0, -0.0, float("inf"), -float("inf"), -3e38])])
    values = values[values < 1e38]
    found = fused_layers.run_layers(nn.Sequential(layer, nn.ELU()), values[None, :, None]).flatten()
    torch.testing.assert_close(found.double(), F.elu(values.double()), rtol=1.2e-7, atol=0.0)
    with_nan = torch.tensor([1.0, float("nan"), -1.0])
    found = fused_layers.run_layers(nn.Sequential(layer, nn.ELU()), with_nan[None, :, None]).flatten()
    assert torch.equal(found.isnan(), with_nan.isnan())


def test_gradients_hooks_and_other_types_are_torchs(calls: list[Any]) -> None:
    some = config()
    layers = nn.Sequential(Conv(some, 4, 16, 3), nn.ELU(), Conv(some, 16, 4, 3))
    hidden = torch.randn(1, 20, 4)
    fused_layers.run_layers(layers, hidden).sum().backward()
    assert layers[0].conv.bias.grad is not None
    with torch.no_grad():
        fused_layers.run_layers(layers.to(torch.bfloat16), hidden.to(torch.bfloat16))
        layers.to(torch.float32)
        seen = []
        hook = layers[0].register_forward_hook(lambda *arguments: seen.append(arguments))
        fused_layers.run_layers(layers, hidden)
        assert len(seen) == 1
        hook.remove()
        assert not calls
        fused_layers.run_layers(layers, hidden)
        assert len(calls) == 2


@torch.no_grad()
@pytest.mark.parametrize("layer", [Conv, TransposedConv])
@pytest.mark.parametrize("width", [1, 9, 400_000])
def test_an_activation_of_another_width_is_refused(layer: Any, width: int) -> None:
    # As in a signal (B, C, L) given for one of (B, L, C): C would read far beyond the weights.
    layers = nn.Sequential(layer(config(), 8, 12, 4) if layer is Conv else layer(config(), 8, 12, 2))
    with pytest.raises(ValueError, match=f"a convolution over 8 numbers a step was given {width}"):
        fused_layers.run_layers(layers, torch.randn(1, 3, width))


def test_weights_with_group_norm_are_torchs(calls: list[Any]) -> None:
    some = config(norm_type="time_group_norm")
    with torch.no_grad():
        fused_layers.run_layers(nn.Sequential(Conv(some, 4, 16, 3)), torch.randn(1, 20, 4))
    assert not calls


def test_number_of_threads_changes_nothing() -> None:
    model = EncodecModel(config(num_filters=8, sampling_rate=32000, target_bandwidths=[2.2])).eval()
    wave = torch.randn(2, 1, 5000)
    expected = model(wave).audio_values
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert torch.equal(model(wave).audio_values, expected)
    finally:
        torch.set_num_threads(threads)
