"""Weights of convolutions that EnCodec folds once and keeps: never stale, never copied, freed when they move."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_codec import CONFIGS, MUSICGEN, audio, build

from musicgen_train.models.codec import convolutions
from musicgen_train.models.codec.encodec import EncodecModel


def same_weights(model: EncodecModel) -> EncodecModel:
    """A model built anew, which cannot have kept anything, with the weights `model` has now."""
    fresh = EncodecModel(model.config).eval().to(model.dtype)
    fresh.load_state_dict(model.state_dict())
    return fresh


def _optimizer_step(model: EncodecModel) -> EncodecModel:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    model.decode(torch.zeros(1, 1, 3, 2, dtype=torch.int64)).audio_values.pow(2).mean().backward()
    optimizer.step()
    return model


def _load_copy(model: EncodecModel) -> EncodecModel:
    model.load_state_dict(build(MUSICGEN, seed=7).state_dict())
    return model


def _load_assign(model: EncodecModel) -> EncodecModel:
    model.load_state_dict(build(MUSICGEN, seed=7).state_dict(), assign=True)
    return model


def _cast_there_and_back(model: EncodecModel) -> EncodecModel:
    # Weights rounded to 8 bits: the values differ although dtype, device and version are those of before.
    return model.to(torch.bfloat16).to(torch.float32)


def _edit_magnitude(model: EncodecModel) -> EncodecModel:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("original0"):
                value[0] *= 1.5
    return model


def _edit_direction(model: EncodecModel) -> EncodecModel:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("original1"):
                value.view(-1)[0] += 0.5
    return model


def _replace_parameters(model: EncodecModel) -> EncodecModel:
    for module in model.modules():
        if isinstance(module, convolutions.MagnitudeAndDirection):
            module.original0 = torch.nn.Parameter(module.original0.detach() * 1.5)
    return model


def _replace_data(model: EncodecModel) -> EncodecModel:
    for name, value in model.named_parameters():
        if name.endswith("original0"):
            value.data = value.data * 1.5
    return model


def _replace_by_alias(model: EncodecModel) -> EncodecModel:
    # A new parameter in the same memory counts its own changes, up to the number that the old one had.
    for module in model.modules():
        if isinstance(module, convolutions.MagnitudeAndDirection):
            changes = module.original0._version
            module.original0 = torch.nn.Parameter(module.original0.data)
            with torch.no_grad():
                while module.original0._version < changes:
                    module.original0.mul_(1.5)
            assert module.original0._version == changes
    return model


def _write_through_data(model: EncodecModel) -> EncodecModel:
    for name, value in model.named_parameters():
        if name.endswith("original0"):
            value.data.mul_(1.5)
    return model.eval()


CHANGES: list[Callable[[EncodecModel], EncodecModel]] = [
    _optimizer_step,
    _load_copy,
    _load_assign,
    _cast_there_and_back,
    _edit_magnitude,
    _edit_direction,
    _replace_parameters,
    _replace_data,
    _replace_by_alias,
    _write_through_data,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_folded_weights_are_never_stale(
    change: Callable[[EncodecModel], EncodecModel], mode: Callable[[], Any]
) -> None:
    model = build(MUSICGEN)
    wave = audio(2, 1, 211)
    with mode():
        before = model(wave).audio_values
    model = change(model)
    with mode():
        after = model(wave)
        expected = same_weights(model)(wave)
    assert torch.equal(after.audio_codes, expected.audio_codes)
    assert torch.equal(after.audio_values, expected.audio_values)
    assert not torch.equal(after.audio_values, before)


def test_plain_weights_are_never_stale() -> None:
    model = build(CONFIGS["48khz_causal"])
    wave = audio(2, 2, 211)
    model.encode(wave)
    with torch.no_grad():
        model.get_parameter("encoder.layers.0.conv.weight").mul_(-1)
        after, expected = model(wave).audio_values, same_weights(model)(wave).audio_values
    assert torch.equal(after, expected)


def test_weights_are_folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(MUSICGEN)
    folds: list[int] = []
    fold = convolutions.MagnitudeAndDirection.forward

    def counted(self: convolutions.MagnitudeAndDirection) -> torch.Tensor:
        folds.append(1)
        return fold(self)

    monkeypatch.setattr(convolutions.MagnitudeAndDirection, "forward", counted)
    kernels = sum(isinstance(module, convolutions.Kernel) for module in model.modules())
    for _ in range(3):
        with torch.no_grad():
            model(audio(2, 1, 95))
    assert len(folds) == kernels
    # Gradients need the fold to be part of the graph; those of frozen weights do not.
    model.decode(torch.zeros(1, 1, 3, 2, dtype=torch.int64))
    assert len(folds) > kernels
    folds.clear()
    model.requires_grad_(False)
    model.decode(torch.zeros(1, 1, 3, 2, dtype=torch.int64))
    assert not folds


def test_weights_folded_in_inference_mode_serve_training_of_what_feeds_a_frozen_decoder() -> None:
    model = build(MUSICGEN).requires_grad_(False).train()
    with torch.inference_mode():
        model.decode(torch.zeros(1, 1, 3, 2, dtype=torch.int64))
    latents = torch.randn(1, 4, 11, requires_grad=True)
    model.decoder(latents).pow(2).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_moving_frees_what_was_kept() -> None:
    model = build(MUSICGEN)
    kernels = [module for module in model.modules() if isinstance(module, convolutions.Kernel)]
    model(audio(2, 1, 95))
    model.encode(audio(2, 1, 95))
    assert kernels[0]._kept is not None
    model.to(torch.bfloat16)
    assert all(kernel._kept is None for kernel in kernels)


def test_models_made_in_inference_mode_work() -> None:
    with torch.inference_mode():
        model = build(MUSICGEN)
        wave = audio(2, 1, 95)
        first = model(wave).audio_values
        for value in model.parameters():
            value.mul_(1.5)
        assert not torch.equal(model(wave).audio_values, first)


@pytest.mark.parametrize("used", [False, True])
def test_copies_and_pickles(used: bool) -> None:
    model = build(MUSICGEN)
    names = list(model.state_dict())
    wave = audio(2, 1, 95)
    expected = model.encode(wave).audio_codes if used else same_weights(model).encode(wave).audio_codes
    assert list(model.state_dict()) == names
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    for other in (copied, loaded):
        kernels = [module for module in other.modules() if isinstance(module, convolutions.Kernel)]
        assert all(kernel._kept is None for kernel in kernels)
        assert torch.equal(other.encode(wave).audio_codes, expected)
