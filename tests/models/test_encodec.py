"""EnCodec against transformers and against audiocraft, and its errors."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_codec import CONFIGS, HOP, MUSICGEN, TINY, audio, build, build_reference

from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import EncodecConfig

# audiocraft 1.3.0's own SEANetEncoder, SEANetDecoder and ResidualVectorQuantizer (from its source distribution on the
# package index) with 2 filters, ratios 5, 4, 2 and 3 codebooks of 32: seeded weights, k-means codebooks, inputs and
# outputs. The file's metadata has the configuration.
AUDIOCRAFT_TINY = Path(__file__).parents[1] / "assets" / "audiocraft_encodec.safetensors"
# The wider one, not part of this repository; its README tells its origin.
AUDIOCRAFT_SHARED = Path(__file__).parents[3] / "shared" / "fixtures" / "audiocraft" / "encodec_A.safetensors"

# One sample; less than the first padding; around one, two and more frames.
LENGTHS = (1, 2, 3, HOP - 1, HOP, HOP + 1, 2 * HOP + 7, 5 * HOP, 7 * HOP + 1)

REAL_SHAPES: dict[str, dict[str, Any]] = {
    "encodec_32khz": {
        "target_bandwidths": [2.2],
        "sampling_rate": 32_000,
        "upsampling_ratios": [8, 5, 4, 4],
        "num_filters": 64,
        "codebook_size": 2048,
        "use_causal_conv": False,
        "use_conv_shortcut": False,
    },
    "encodec_24khz": {},
    "encodec_48khz": {
        "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
        "sampling_rate": 48_000,
        "audio_channels": 2,
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "norm_type": "time_group_norm",
        "use_causal_conv": False,
    },
}


def conv_names(key: str) -> str:
    """The hub's name of an audiocraft tensor, weight norm still spelled the old way."""
    key = key.replace("._codebook.", ".codebook.").replace("quantizer.vq.", "quantizer.")
    key = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", key)
    return re.sub(r"\.(conv|convtr)\.\1\.", ".conv.", key)


# -- parity with transformers


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_and_audio_equal_the_reference_at_any_length(name: str) -> None:
    model = build(CONFIGS[name])
    reference = build_reference(model)
    channels = model.config.audio_channels
    seen = set()
    with torch.no_grad():
        for length in LENGTHS:
            wave = audio(3, channels, length, seed=length)
            expected = reference.encode(wave)
            ours = model.encode(wave)
            assert torch.equal(ours.audio_codes, expected.audio_codes), length
            assert ours.audio_codes.dtype == torch.int64
            assert ours.last_frame_pad_length == expected.last_frame_pad_length
            for scale, expected_scale in zip(ours.audio_scales, expected.audio_scales, strict=True):
                torch.testing.assert_close(scale, expected_scale)
            expected_audio = reference.decode(
                expected.audio_codes,
                expected.audio_scales,
                last_frame_pad_length=expected.last_frame_pad_length,
            ).audio_values
            decoded = model.decode(
                ours.audio_codes, ours.audio_scales, last_frame_pad_length=ours.last_frame_pad_length
            ).audio_values
            torch.testing.assert_close(decoded, expected_audio, rtol=1e-5, atol=1e-5)
            seen.update(ours.audio_codes.flatten().tolist())
            if model.config.chunk_length is None:
                assert ours.audio_codes.shape[-1] == -(-length // HOP)
    # Otherwise equal codes would say little.
    assert len(seen) >= 8


@pytest.mark.parametrize("bandwidth", [None, 0.2, 0.5, 1.1])
def test_bandwidth_chooses_the_codebooks(bandwidth: float | None) -> None:
    model = build(CONFIGS["24khz"])
    reference = build_reference(model)
    wave = audio(2, 1, 311)
    ours = model.encode(wave, bandwidth=bandwidth).audio_codes
    expected = reference.encode(wave, bandwidth=bandwidth).audio_codes
    assert torch.equal(ours, expected)
    assert ours.shape == (1, 2, {None: 1, 0.2: 1, 0.5: 2, 1.1: 5}[bandwidth], 11)
    torch.testing.assert_close(
        model.decode(ours).audio_values, reference.decode(expected, [None]).audio_values, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("channels_in_mask", [None, 1, 2])
def test_padding_mask_silences_and_forward_cuts(channels_in_mask: int | None) -> None:
    model = build(CONFIGS["48khz"])
    reference = build_reference(model)
    wave = audio(2, 2, 401)
    mask = torch.ones(2, 401, dtype=torch.int32)
    mask[0, :77] = 0
    if channels_in_mask is not None:
        mask = mask[:, None].repeat(1, channels_in_mask, 1)
    with torch.no_grad():
        ours, expected = model(wave, mask), reference(wave, mask)
    assert torch.equal(ours.audio_codes, expected.audio_codes)
    torch.testing.assert_close(ours.audio_values, expected.audio_values, rtol=1e-5, atol=1e-5)
    assert ours.audio_values.shape == wave.shape
    assert not torch.equal(ours.audio_codes, model.encode(wave).audio_codes)


def test_many_chunks_with_a_short_last_one() -> None:
    model = build(CONFIGS["24khz_chunks"])
    reference = build_reference(model)
    chunk, stride = model.config.chunk_length, model.config.chunk_stride
    assert chunk == 150
    assert stride == 135
    for length in (3 * stride + chunk, 4 * stride + 16, 2 * stride + 101):
        wave = audio(2, 1, length)
        with torch.no_grad():
            ours, expected = model(wave), reference(wave)
        assert torch.equal(ours.audio_codes, expected.audio_codes)
        torch.testing.assert_close(ours.audio_values, expected.audio_values, rtol=1e-5, atol=1e-5)


def test_forward_takes_codes_and_gives_tuples() -> None:
    model = build(MUSICGEN)
    wave = audio(2, 1, 95)
    codes, scales, missing = model.encode(wave, return_dict=False)
    assert (scales, missing) == ([None], 0)
    (decoded,) = model.decode(codes, scales, return_dict=False)
    assert decoded.shape == (2, 1, 120)
    again, cut = model(wave, audio_codes=codes, audio_scales=scales, return_dict=False)
    assert again is codes
    # MusicGen passes a None for every row.
    assert torch.equal(model.decode(codes, [None, None]).audio_values, decoded)
    torch.testing.assert_close(cut, decoded[..., :95])
    torch.testing.assert_close(model(wave).audio_values, cut)
    with torch.no_grad():
        expected = build_reference(model)(wave, audio_codes=codes, audio_scales=scales)
    torch.testing.assert_close(cut, expected.audio_values, rtol=1e-5, atol=1e-5)


def test_without_lstm() -> None:
    """The reference cannot be built without its LSTM; audiocraft then leaves the layer out, so we compare with that."""
    model = build({**MUSICGEN, "num_lstm_layers": 0})
    config = transformers.EncodecConfig(**{**MUSICGEN, "num_lstm_layers": 1})
    reference = transformers.EncodecModel(config).eval()
    del reference.encoder.layers[10], reference.decoder.layers[1]
    reference.load_state_dict(model.state_dict(), strict=True)
    wave = audio(2, 1, 341)
    with torch.no_grad():
        ours, expected = model(wave), reference(wave)
    assert torch.equal(ours.audio_codes, expected.audio_codes)
    torch.testing.assert_close(ours.audio_values, expected.audio_values, rtol=1e-5, atol=1e-5)


def test_circular_padding() -> None:
    model = build({**MUSICGEN, "pad_mode": "circular", "kernel_size": 5, "last_kernel_size": 3})
    reference = build_reference(model)
    wave = audio(2, 1, 7 * HOP)
    with torch.no_grad():
        ours, expected = model(wave), reference(wave)
    assert torch.equal(ours.audio_codes, expected.audio_codes)
    torch.testing.assert_close(ours.audio_values, expected.audio_values, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="pad_mode 'circular' needs 2 steps or more at a layer that has 1"):
        model.encode(wave[..., :1])


@pytest.mark.parametrize("name", ["32khz", "24khz_trim", "48khz_causal"])
def test_gradients_equal_the_reference(name: str) -> None:
    model = build(CONFIGS[name]).train()
    reference = build_reference(model).train()
    codes = model.encode(audio(2, model.config.audio_channels, 95)).audio_codes
    model.decode(codes).audio_values.pow(2).mean().backward()
    reference.decode(codes, [None]).audio_values.pow(2).mean().backward()
    wave = audio(2, model.config.audio_channels, 95)
    model.encoder(wave.transpose(1, 2)).pow(2).mean().backward()
    reference.encoder(wave).pow(2).mean().backward()
    expected = dict(reference.named_parameters())
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert expected[key].grad is not None, key
        torch.testing.assert_close(value.grad, expected[key].grad, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", REAL_SHAPES)
def test_state_dict_of_the_published_shapes(name: str) -> None:
    with torch.device("meta"):
        ours = EncodecModel(EncodecConfig(**REAL_SHAPES[name])).state_dict()
        reference = transformers.EncodecModel(transformers.EncodecConfig(**REAL_SHAPES[name])).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in reference.items()}


def test_folders_go_both_ways(tmp_path: Path) -> None:
    model = build(MUSICGEN)
    model.save_pretrained(tmp_path / "ours")
    loaded: Any = transformers.EncodecModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    reference, report = loaded
    assert not any(report.values()), report
    reference.save_pretrained(tmp_path / "theirs")
    again = EncodecModel.from_pretrained(tmp_path / "theirs")
    assert not again.training
    wave = audio(2, 1, 131)
    codes = model.encode(wave).audio_codes
    assert torch.equal(reference.encode(wave).audio_codes, codes)
    assert torch.equal(again.encode(wave).audio_codes, codes)


# -- parity with audiocraft


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize("path", [AUDIOCRAFT_TINY, AUDIOCRAFT_SHARED], ids=["tiny", "shared"])
def test_equal_to_audiocraft(path: Path, pad_mode: str, tmp_path: Path) -> None:
    if not path.is_file():
        pytest.skip(f"the optional reference tensors are not here: {path.name}")
    tensors = load_file(path)
    state = {conv_names(key.removeprefix("state.")): tensors[key] for key in tensors if key.startswith("state.")}
    save_file(state, tmp_path / "model.safetensors")
    codebooks = sum(key.endswith(".embed") for key in state)
    size, width = state["quantizer.layers.0.codebook.embed"].shape
    upsampling = [8, 5, 4, 4] if path == AUDIOCRAFT_SHARED else [5, 4, 2]
    settings = {
        "model_type": "encodec",
        "sampling_rate": 32_000 if path == AUDIOCRAFT_SHARED else 2000,
        "upsampling_ratios": upsampling,
        "num_filters": state["encoder.layers.0.conv.bias"].shape[0],
        "hidden_size": width,
        "codebook_size": size,
        # 50 frames a second, 5 bits a code
        "target_bandwidths": [0.25 * codebooks],
        "use_causal_conv": False,
        "use_conv_shortcut": False,
        "pad_mode": pad_mode,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    model = EncodecModel.from_pretrained(tmp_path)

    for name in ("wav", "wav_odd"):
        wave, codes = tensors[name], tensors[f"{pad_mode}.{name}.codes"]
        with torch.no_grad():
            latents = model.encoder(wave.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(latents, tensors[f"{pad_mode}.{name}.latent"], rtol=1e-5, atol=1e-5)
        assert torch.equal(model.encode(wave).audio_codes[0], codes.long())
        decoded = model.decode(codes[None]).audio_values
        torch.testing.assert_close(decoded, tensors[f"{pad_mode}.{name}.decoded"], rtol=1e-5, atol=1e-5)

    if "wav_stereo" in tensors:
        left_right = tensors["wav_stereo"].transpose(0, 1)
        codes = model.encode(left_right).audio_codes[0]
        # (channels, K, T) to (1, K * channels, T): 1L, 1R, 2L, 2R, ...
        interleaved = codes.transpose(0, 1).flatten(0, 1)[None]
        assert torch.equal(interleaved, tensors[f"{pad_mode}.wav_stereo.codes"])
        decoded = model.decode(codes[None]).audio_values.transpose(0, 1)
        torch.testing.assert_close(decoded, tensors[f"{pad_mode}.wav_stereo.decoded"], rtol=1e-5, atol=1e-5)


# -- batches, segments, memory


@pytest.mark.parametrize("name", ["32khz", "24khz", "48khz"])
def test_a_row_of_a_batch_equals_the_row_alone(name: str) -> None:
    model = build(CONFIGS[name])
    wave = audio(5, model.config.audio_channels, 211)
    together = model.encode(wave)
    scales = together.audio_scales
    decoded = model.decode(together.audio_codes, scales).audio_values
    for row in range(5):
        alone = model.encode(wave[row : row + 1])
        assert torch.equal(alone.audio_codes[:, 0], together.audio_codes[:, row])
        torch.testing.assert_close(
            model.decode(alone.audio_codes, alone.audio_scales).audio_values[0], decoded[row], rtol=1e-5, atol=1e-5
        )


def test_nearest_vector_by_brute_force() -> None:
    model = build(MUSICGEN)
    codebook: Any = model.quantizer.layers[1].codebook
    latents = torch.randn(3, 7, 11)
    expected = (latents[:, :, None] - codebook.embed).pow(2).sum(-1).argmin(-1)
    assert torch.equal(codebook.nearest(latents), expected)
    # Of equal vectors the first.
    codebook.embed[9] = codebook.embed[4]
    assert codebook.nearest(codebook.embed[9][None, None]).item() == 4


def test_quantizer_reduces_the_error_codebook_by_codebook() -> None:
    model = build({**MUSICGEN, "codebook_size": 512, "target_bandwidths": [1.8]})
    latents = torch.randn(2, 101, 11) * 0.5
    codes = model.quantizer.encode(latents, 4)
    errors = [(latents - model.quantizer.decode(codes[:, :count])).pow(2).mean().item() for count in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * latents.pow(2).mean().item()


def test_fresh_models_code_audio_with_many_codes() -> None:
    model = EncodecModel(
        EncodecConfig(**{**MUSICGEN, "num_filters": 8, "codebook_size": 64, "target_bandwidths": [1.2]})
    )
    codes = model.encode(torch.randn(4, 1, 100 * HOP) * 0.3).audio_codes
    assert codes.shape == (1, 4, 4, 100)
    assert all(len(codes[0, :, codebook].unique()) >= 12 for codebook in range(4))


# -- types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["32khz", "48khz"])
def test_half_precision(dtype: torch.dtype, name: str) -> None:
    model = build(CONFIGS[name])
    exact = model(audio(2, model.config.audio_channels, 211)).audio_values
    half = copy.deepcopy(model).to(dtype)
    output = half(audio(2, model.config.audio_channels, 211))
    assert output.audio_codes.dtype == torch.int64
    assert output.audio_values.dtype == (dtype if name == "32khz" else torch.float32)
    assert output.audio_values.isfinite().all()
    codes = model.encode(audio(2, model.config.audio_channels, 211))
    near = half.decode(codes.audio_codes, codes.audio_scales).audio_values[..., :211].float()
    assert (near - exact).abs().max() < 0.05 * exact.abs().max()


def test_double_precision() -> None:
    model = build(MUSICGEN)
    reference = build_reference(model).double()
    model.double()
    wave = audio(2, 1, 211).double()
    ours = model.encode(wave).audio_codes
    assert torch.equal(ours, reference.encode(wave).audio_codes)
    with torch.no_grad():
        expected = reference.decode(ours, [None]).audio_values
        torch.testing.assert_close(model.decode(ours).audio_values, expected, rtol=1e-10, atol=1e-10)


def test_autocast_does_not_change_the_codes() -> None:
    model = build(MUSICGEN)
    wave = audio(2, 1, 400)
    plain = model(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(wave)
    assert torch.equal(cast.audio_codes, plain.audio_codes)
    assert torch.equal(cast.audio_values, plain.audio_values)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_codes_of_any_integer_type(dtype: torch.dtype) -> None:
    model = build(MUSICGEN)
    codes = model.encode(audio(2, 1, 95)).audio_codes
    assert torch.equal(model.decode(codes.to(dtype)).audio_values, model.decode(codes).audio_values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["32khz", "24khz", "48khz"])
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    model = build(CONFIGS[name])
    wave = audio(2, model.config.audio_channels, 211)
    expected = model(wave)
    model.save_pretrained(tmp_path)
    # Warnings are errors: cuDNN's about the LSTM's scattered weights would show here.
    on_gpu = EncodecModel.from_pretrained(tmp_path, device="cuda")
    with torch.no_grad():
        output = on_gpu(wave.cuda())
    assert torch.equal(output.audio_codes.cpu(), expected.audio_codes)
    torch.testing.assert_close(output.audio_values.cpu(), expected.audio_values.detach(), rtol=1e-4, atol=1e-4)


# -- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_size": 48}, "codebook_size is 48; expected a power of two"),
        ({"use_causal_conv": False, "trim_right_ratio": 0.5}, r"trim_right_ratio is 0\.5; .* allows 1\.0"),
        ({"chunk_length_s": 1.0}, r"chunk_length_s is 1\.0 and overlap is None; give both or neither"),
        ({"compress": 5}, r"compress is 5; expected num_filters \(4\) or less"),
    ],
)
def test_configs_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    config = EncodecConfig(**{**TINY, **settings})
    with pytest.raises(ValueError, match=message):
        EncodecModel(config)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 95), r"the shape \[2, 95\]; expected \[batch, 1, samples\], since this codec has 1 audio channel$"),
        ((2, 2, 95), r"the shape \[2, 2, 95\]; expected \[batch, 1, samples\]"),
        ((2, 1, 0), r"input_values is empty: its shape is \[2, 1, 0\]"),
        ((0, 1, 95), r"input_values is empty"),
    ],
)
def test_audio_of_another_shape(shape: tuple[int, ...], message: str) -> None:
    model = build(MUSICGEN)
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(shape))


def test_integer_audio() -> None:
    model = build(MUSICGEN)
    with pytest.raises(ValueError, match=r"input_values is torch\.int16; expected floating-point audio"):
        model.encode(torch.zeros(1, 1, 95, dtype=torch.int16))


def test_unknown_bandwidth() -> None:
    model = build(CONFIGS["24khz"])
    with pytest.raises(ValueError, match=r"bandwidth is 3\.0; this codec allows 0\.2, 0\.5, 1\.1 kbit/s"):
        model.encode(audio(1, 1, 95), bandwidth=3.0)


def test_mask_of_another_shape() -> None:
    model = build(MUSICGEN)
    with pytest.raises(ValueError, match=r"padding_mask has the shape \[2, 94\]; expected \[2, 95\] or \[2, 1, 95\]"):
        model.encode(audio(2, 1, 95), torch.ones(2, 94))


def test_length_that_does_not_divide_into_chunks() -> None:
    model = build(CONFIGS["24khz_chunks"])
    with pytest.raises(ValueError, match=r"275 samples do not divide into chunks of 150 every 135: .* to 285 samples"):
        model.encode(audio(1, 1, 275))
    assert model.encode(audio(1, 1, 285)).audio_codes.shape == (3, 1, 3, 5)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (
            torch.zeros(2, 3, 4, dtype=torch.int64),
            r"the shape \[2, 3, 4\]; expected \[chunks, batch, codebooks, frames\]",
        ),
        (torch.zeros(1, 2, 4, 5, dtype=torch.int64), r"\[1, 2, 4, 5\]; .* at most 3 codebooks"),
        (torch.zeros(1, 2, 3, 0, dtype=torch.int64), r"no axis empty"),
        (torch.zeros(1, 2, 3, 5), r"audio_codes is torch\.float32; expected integers"),
        (torch.zeros(2, 1, 3, 5, dtype=torch.int64), r"audio_codes has 2 chunks; .* decodes one"),
        (torch.full((1, 2, 3, 5), 17), r"values from 17 to 17; allowed are 0 to 15$"),
        (torch.full((1, 2, 3, 5), -1), r"values from -1 to -1; allowed are 0 to 15$"),
        (torch.arange(2, 17).view(1, 1, 3, 5), r"values from 2 to 16; allowed are 0 to 15\. Remove the special id 16"),
    ],
)
def test_codes_that_cannot_be_decoded(codes: torch.Tensor, message: str) -> None:
    model = build(MUSICGEN)
    with pytest.raises(ValueError, match=message):
        model.decode(codes)


def test_scales_that_do_not_fit() -> None:
    model = build(CONFIGS["24khz_chunks"])
    codes = model.encode(audio(1, 1, 285)).audio_codes
    with pytest.raises(ValueError, match="audio_scales is missing: this codec divides the volume out"):
        model.decode(codes)
    with pytest.raises(ValueError, match="audio_scales has 2 entries, audio_codes has 3 chunks"):
        model.decode(codes, [torch.ones(1, 1)] * 2)
    with pytest.raises(ValueError, match="last_frame_pad_length is 5; the last chunk has 5 frames"):
        model.decode(codes, [torch.ones(1, 1)] * 3, last_frame_pad_length=5)
    with pytest.raises(ValueError, match="audio_scales was given without the audio_codes"):
        model(audio(1, 1, 285), audio_scales=[torch.ones(1, 1)] * 3)
