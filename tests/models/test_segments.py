"""EnCodec over segments of the signal: the same values, the same gradients, and memory that does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_codec import CONFIGS, HOP, MUSICGEN, audio, build, build_reference
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from musicgen_train.models.codec import encodec, segments
from musicgen_train.models.codec.convolutions import Conv, TransposedConv
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import EncodecConfig


# Values of a segment, and of a segment of a stage; how much less goes from one stage to the next.
@pytest.mark.parametrize("limits", [(1, 10**9, 10**9), (10**9, 2000, 1), (1, 500, 2)], ids=["outer", "stages", "both"])
@pytest.mark.parametrize(
    "name", ["32khz", "32khz_constant", "32khz_replicate", "24khz", "24khz_trim", "deep", "deep_causal"]
)
def test_segments_change_nothing(name: str, limits: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CONFIGS[name])
    reference = build_reference(model)
    layers_run: list[int] = []
    model.encoder.layers[0].register_forward_hook(lambda _module, _inputs, output: layers_run.append(output.shape[1]))
    for length in (300 * HOP, 331 * HOP + 1, 350 * HOP - 1):
        wave = audio(2, 1, length)
        limit_segments(monkeypatch, 10**9, 10**9, 10**9)
        layers_run.clear()
        with torch.no_grad():
            whole_latents = model.encoder(wave.transpose(1, 2))
            whole = model.decode(model.encode(wave).audio_codes).audio_values
        assert set(layers_run) == {length}
        limit_segments(monkeypatch, *limits)
        layers_run.clear()
        with torch.no_grad():
            latents = model.encoder(wave.transpose(1, 2))
            codes = model.encode(wave).audio_codes
        # Two runs of two rows each, in several segments.
        assert len(layers_run) >= 2 * 2 * 2
        assert max(layers_run) < length
        torch.testing.assert_close(latents, whole_latents, rtol=1e-5, atol=1e-5)
        assert torch.equal(codes, reference.encode(wave).audio_codes)
        torch.testing.assert_close(model.decode(codes).audio_values, whole, rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(MUSICGEN)
    gradients = []
    for limits in ((10**9, 10**9, 10**9), (1, 1, 1)):
        limit_segments(monkeypatch, *limits)
        model.zero_grad()
        model.encoder(audio(2, 1, 200 * HOP).transpose(1, 2)).pow(2).mean().backward()
        gradients.append([value.grad.clone() for value in model.encoder.parameters() if value.grad is not None])
    assert len(gradients[0]) == len(list(model.encoder.parameters()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_stages_begin_at_strides_where_little_is_handed_on() -> None:
    # The real codec's shapes, 640 samples a frame: after its layers there are 640 x 64 values, then (160 x 128, )...
    config = EncodecConfig(
        **{**MUSICGEN, "num_filters": 64, "upsampling_ratios": [8, 5, 4, 4], "codebook_dim": 128, "hidden_size": 128}
    )
    with torch.device("meta"):
        model = EncodecModel(config)

    def widths(layers: nn.Sequential, width: int) -> list[list[int]]:
        stages = segments._stages(layers, width)
        convs = [[layer for layer in stage if isinstance(layer, Conv | TransposedConv)] for stage in stages]
        return [[len(layer.conv.bias) for layer in stage] for stage in convs]

    encoder, decoder = model.encoder, model.decoder
    assert widths(encoder.layers[: encoder.num_local], 1) == [[64, 128, 256], [512], [1024]]
    assert widths(decoder.layers[decoder.first_local :], 1024) == [[512], [256], [128, 64, 1]]


def limit_segments(monkeypatch: pytest.MonkeyPatch, values: int, stage_values: int, worth_a_stage: int) -> None:
    monkeypatch.setattr(segments, "_CPU_VALUES", values)
    monkeypatch.setattr(segments, "_CACHED_VALUES", stage_values)
    monkeypatch.setattr(segments, "_WORTH_A_STAGE", worth_a_stage)


class LargestTensor(TorchDispatchMode):
    """Records how many values the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            # The LSTM's workspace is bytes.
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.values = max(self.values, value.numel())
        return result


def test_memory_does_not_grow_with_length_beyond_that_of_audio_and_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build({**MUSICGEN, "codebook_size": 256, "target_bandwidths": [1.2]})
    monkeypatch.setattr(segments, "_CPU_VALUES", 40 * HOP * 4)
    monkeypatch.setattr(encodec, "_ROWS_OF_DISTANCES", 64)
    frames = 1000
    wave = audio(1, 1, frames * HOP)
    with LargestTensor() as largest:
        codes = model.encode(wave).audio_codes
        model.decode(codes)
    # The gates of the LSTM: 4 times its width of 32 per frame. The widest convolution alone would make
    # frames * HOP * 4 filters, all distances at once frames * 256.
    assert largest.values <= frames * 4 * 32
    assert codes.shape[-1] == frames
