"""The models on tensors that have a CUDA device but no values: see `fake_cuda.py`."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_codec
import torch
from fake_cuda import CUDA, composite, fake_cuda
from torch import nn

from musicgen_train import (
    EncodecModel,
    GenerationConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    T5Config,
    T5EncoderModel,
)
from musicgen_train.models.config import EncodecConfig
from musicgen_train.models.generation import cuda_graph
from musicgen_train.models.generation.sampling import pick
from musicgen_train.models.loss import _ScoredHeads
from musicgen_train.models.products import _Product

# EnCodec compares where its weights lie.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

B, K, T, L = 2, 4, 9, 5
NEW_TOKENS = 24  # enough for a graph
WIDTH = tiny.DECODER["hidden_size"]


@pytest.fixture(autouse=True)
def _new_weights_are_float32() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def decoder(**config: Any) -> MusicgenForCausalLM:
    with CUDA:
        return MusicgenForCausalLM(MusicgenDecoderConfig(**{**tiny.DECODER, **config}))


def test_the_watch_sees_what_makes_the_host_wait() -> None:
    with fake_cuda() as watch:
        numbers = torch.zeros(3, device=CUDA)
        assert (float(numbers[0]), bool((numbers > 0).any()), int(numbers.long()[0])) == (1.0, True, 1)
        assert numbers.tolist() == [1.0] * 3
        assert watch.looks == ["a test"]
        numbers[0] = 2.0
        numbers.add_(1.0).clamp_(min=0)
        for wrong in (
            lambda: torch.tensor([0, 1], device=CUDA),
            lambda: torch.as_tensor(True, device=CUDA),
            lambda: numbers.cpu(),
            lambda: torch.zeros(3).to(CUDA),
            lambda: torch.zeros(3),
            lambda: numbers[[0, 1]],
        ):
            with pytest.raises(AssertionError, match=r"a copy from|on the CPU"):
                wrong()
        with pytest.raises(RuntimeError):
            numbers[numbers > 0]


@pytest.mark.parametrize("kind", ["float32", "bf16-mixed", "fp16-mixed", "bf16-true"])
@pytest.mark.parametrize("text", ["masked", "whole", "none"])
def test_a_forward_pass_with_loss_waits_for_nothing(kind: str, text: str) -> None:
    dropout = 0.1 if text == "masked" else 0.0
    with fake_cuda() as watch:
        if kind == "bf16-true":
            torch.set_default_dtype(torch.bfloat16)  # casting a model without values does not work
        model = decoder(dropout=dropout, attention_dropout=dropout, activation_dropout=dropout).train()
        labels = torch.zeros(B, T, K, dtype=torch.long, device=CUDA)
        states = None if text == "none" else torch.zeros(B, L, WIDTH, device=CUDA)
        mask = torch.ones(B, L, dtype=torch.bool, device=CUDA) if text == "masked" else None
        dtype = torch.float16 if kind == "fp16-mixed" else torch.bfloat16
        with torch.autocast("cuda", dtype, enabled=kind.endswith("mixed")):
            output = model(labels=labels, encoder_hidden_states=states, encoder_attention_mask=mask)
        assert (output.loss.device, output.loss.dtype) == (CUDA, torch.float32)
        assert output.loss.requires_grad
        assert output.codebook_losses.device == CUDA
        assert not watch.looks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_passes_of_our_own_wait_for_nothing(dtype: torch.dtype) -> None:
    with fake_cuda() as watch, CUDA, torch.no_grad():
        ctx = SimpleNamespace(save_for_backward=lambda *kept: setattr(ctx, "saved_tensors", kept))
        ctx.mark_non_differentiable = lambda tensor: None
        states, weights = torch.zeros(B * T, WIDTH), [torch.zeros(64, WIDTH) for _ in range(K)]
        ctx.needs_input_grad = (False, True, False, *[True] * K)
        labels = torch.zeros(K, B * T, dtype=torch.long)
        sums, correct = _ScoredHeads.forward(ctx, dtype, states, labels, *weights)
        _, of_states, _, *of_weights = _ScoredHeads.backward(ctx, torch.ones(K), correct)
        assert (of_states.shape, of_states.dtype, of_states.device) == (states.shape, states.dtype, CUDA)
        assert [grad.shape for grad in of_weights] == [weight.shape for weight in weights]

        ctx.needs_input_grad = (True, True)
        inner, weight = torch.zeros(B, T, WIDTH, dtype=dtype), torch.zeros(7, WIDTH)
        made = _Product.forward(ctx, inner, weight, dtype, True)
        of_inner, of_weight, *_ = _Product.backward(ctx, torch.ones_like(made))
        assert (of_inner.dtype, of_weight.dtype) == (inner.dtype, weight.dtype)
        assert (sums.device, of_inner.device, of_weight.device) == (CUDA, CUDA, CUDA)
        assert not watch.looks


def test_norm_and_clipping_wait_for_nothing() -> None:
    with fake_cuda() as watch, torch.no_grad():
        parameters = list(decoder().parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        assert norm.device == CUDA
        assert not watch.looks


@pytest.mark.parametrize("name", ["32khz", "24khz", "48khz", "24khz_chunks", "32khz_replicate", "deep"])
def test_the_codec_waits_for_nothing(name: str) -> None:
    with fake_cuda() as watch:
        with CUDA:
            model = EncodecModel(EncodecConfig(**tiny_codec.CONFIGS[name])).eval()
        wave = torch.zeros(2, model.config.audio_channels, 211, device=CUDA)
        mask = torch.ones(2, 211, dtype=torch.bool, device=CUDA)
        for grad in (True, False):
            with torch.set_grad_enabled(grad), torch.autocast("cuda", torch.bfloat16):
                encoded = model.encode(wave, mask)
                audio = model.decode(encoded.audio_codes, encoded.audio_scales, mask).audio_values
            assert (encoded.audio_codes.device, audio.device) == (CUDA, CUDA)
            assert (audio.shape, audio.dtype) == (wave.shape, torch.float32)
        assert not watch.looks


def test_the_lstm_keeps_its_precision() -> None:
    settings: Any = torch.backends.cudnn.rnn
    found: list[str] = []
    with fake_cuda():
        with CUDA:
            model = EncodecModel(EncodecConfig(**tiny_codec.MUSICGEN)).eval()
        before = settings.fp32_precision
        lstm = next(part for part in model.encoder.modules() if isinstance(part, nn.LSTM))
        # Asked for at the beginning of torch's own forward pass.
        lstm.check_forward_args = lambda *_: found.append(settings.fp32_precision)  # type: ignore[method-assign]
        model.encode(torch.zeros(1, 1, 99, device=CUDA))
    assert found == ["ieee"]
    assert settings.fp32_precision == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_text_encoder_waits_for_nothing(dtype: torch.dtype) -> None:
    with fake_cuda() as watch:
        torch.set_default_dtype(dtype)
        for config in (tiny.TEXT, tiny.GATED_TEXT):
            with CUDA:
                model = T5EncoderModel(T5Config(**config)).eval()
            ids = torch.zeros(B, L, dtype=torch.long, device=CUDA)
            for mask in (None, torch.ones_like(ids)):
                with torch.no_grad():
                    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
                assert (states.device, states.shape) == (CUDA, (B, L, tiny.TEXT["d_model"]))
        assert not watch.looks


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("way", ["graphs", "autocast", "forward passes"])
def test_generation_looks_at_the_device_at_both_ends_of_a_window(
    way: str, guidance_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "capture_graph", lambda function, example: function)
    if way == "forward passes":
        monkeypatch.setattr("musicgen_train.models.generation.loop.step_maker", lambda decoder, heads, rows: None)
    sampling = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.9}
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, guidance_scale=guidance_scale, **sampling)
    with fake_cuda() as watch:
        torch.set_default_dtype(torch.float32 if way == "autocast" else torch.bfloat16)
        model = composite()
        ids = torch.zeros(B, L, dtype=torch.long, device=CUDA)
        with torch.autocast("cuda", torch.bfloat16, enabled=way == "autocast"):
            audio = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        assert audio.device == CUDA
        assert audio.shape == (B, 1, (NEW_TOKENS - K + 1) * model.config.audio_encoder.hop_length)
        expected = {
            "graphs": ["_generate_window", "FixedStep.__init__", "GraphedStep._graph", "_check_finite"],
            "autocast": ["_generate_window", "FixedStep.__init__", "_check_finite"],
            "forward passes": ["_generate_window", "_check_finite"],
        }
        assert watch.looks == expected[way]


def test_codes_as_they_come_are_waited_for_by_who_takes_them_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "capture_graph", lambda function, example: function)
    frames: list[int] = []
    cudnn: set[bool] = set()

    def take(codes: torch.Tensor) -> None:
        frames.append(codes.shape[-1])
        cudnn.add(torch.backends.cuda.cudnn_sdp_enabled())

    assert torch.backends.cuda.cudnn_sdp_enabled()
    with fake_cuda() as watch:
        model = decoder().eval()
        states = torch.zeros(1, L, WIDTH, device=CUDA)
        model.generate(
            encoder_hidden_states=states,
            max_new_tokens=NEW_TOKENS,
            guidance_scale=3.0,
            streamer=take,
        )
        assert watch.looks == ["_generate_window", "FixedStep.__init__", "GraphedStep._graph", "_check_finite"]
    assert frames == [1] * (NEW_TOKENS - K + 1)
    # cuDNN would plan attention anew for every length.
    assert cudnn == {False}
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_rows_are_drawn_without_waiting() -> None:
    with fake_cuda() as watch:
        settings = GenerationConfig(do_sample=True, top_k=20)
        logits = torch.zeros(B, K, 64, device=CUDA)
        # Generators of a GPU need one: those that are not there stand in for them.
        generators: Any = [None] * B
        assert pick(logits, settings, generators).shape == (B, K)
        assert not watch.looks


def test_a_prompt_of_audio_is_looked_at_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "capture_graph", lambda function, example: function)
    with fake_cuda() as watch:
        model = composite()
        wave = torch.zeros(1, 1, 4 * model.config.audio_encoder.hop_length, device=CUDA)
        ids = torch.zeros(1, L, dtype=torch.long, device=CUDA)
        audio = model.generate(
            ids, attention_mask=torch.ones_like(ids), input_values=wave, max_new_tokens=NEW_TOKENS, do_sample=False
        )
        assert audio.device == CUDA
        assert watch.looks[:2] == ["_generate_window", "FixedStep.__init__"]
