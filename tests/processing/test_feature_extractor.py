"""The feature extractor against transformers', in every form of input and every option, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from musicgen_train.processing.feature_extractor import EncodecFeatureExtractor

CHUNKS: dict[str, Any] = {"sampling_rate": 8000, "chunk_length_s": 0.001, "overlap": 0.25}
SETTINGS: dict[str, dict[str, Any]] = {
    "mono": {},
    "stereo": {"feature_size": 2},
    "musicgen": {"sampling_rate": 32_000, "padding_side": "left"},
    "left_stereo": {"feature_size": 2, "padding_side": "left", "padding_value": 2.0},
    "chunks": CHUNKS,
    "chunks_stereo_left": {**CHUNKS, "feature_size": 2, "padding_side": "left"},
    "chunks_without_overlap": {"sampling_rate": 8000, "chunk_length_s": 0.001},
}
CALLS: list[dict[str, Any]] = [
    {},
    {"padding": True},
    {"padding": "longest"},
    {"padding": True, "max_length": 7},
    {"padding": False},
    {"padding": "do_not_pad"},
    {"padding": "max_length", "max_length": 29},
    {"padding": "max_length", "max_length": 5},
    {"padding": False, "truncation": True, "max_length": 11},
    {"truncation": True, "max_length": 11},
    {"truncation": True, "max_length": 17},
    {"padding": False, "truncation": True},
    {"truncation": True},
    {"padding": "max_length"},
]


def clip(samples: int, channels: int, seed: int = 0) -> Any:
    shape = (samples,) if channels == 1 else (2, samples)
    return np.random.default_rng(seed + samples).uniform(-1, 1, shape)


def result(extractor: Any, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
    try:
        return dict(extractor(*args, **kwargs, sampling_rate=extractor.sampling_rate))
    except ValueError:
        return None


def assert_same(ours: Any, expected: Any) -> None:
    """Assert the same keys, types, dtypes and values; None stands for a refusal of both."""
    assert (ours is None) == (expected is None)
    if ours is None:
        return
    assert sorted(ours) == sorted(expected)
    for name in ours:
        if not isinstance(ours[name], list):
            assert type(ours[name]) is type(expected[name])
        assert len(ours[name]) == len(expected[name])
        for row, expected_row in zip(ours[name], expected[name], strict=True):
            assert row.shape == expected_row.shape
            assert str(row.dtype) == str(expected_row.dtype)
            assert np.array_equal(np.asarray(row), np.asarray(expected_row))


@pytest.mark.parametrize("return_tensors", ["np", "pt", None])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_option_equals_the_reference(name: str, return_tensors: str | None) -> None:
    ours = EncodecFeatureExtractor(**SETTINGS[name])
    reference = transformers.EncodecFeatureExtractor(**SETTINGS[name])
    answered = 0
    for lengths in ((13,), (13, 19), (19, 13, 16), (6, 6), (8, 14), (2, 25)):
        clips = [clip(length, ours.feature_size, seed) for seed, length in enumerate(lengths)]
        for options in CALLS:
            got = result(ours, clips, return_tensors=return_tensors, **options)
            assert_same(got, result(reference, clips, return_tensors=return_tensors, **options))
            answered += got is not None
    assert answered >= 40


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_forms_of_mono_audio(dtype: type) -> None:
    ours, reference = EncodecFeatureExtractor(), transformers.EncodecFeatureExtractor()
    one, two = clip(13, 1).astype(dtype), clip(7, 1).astype(dtype)
    expected = reference([one.astype(np.float32)], return_tensors="np")
    for form in (one, torch.from_numpy(one), one.tolist(), tuple(one.tolist()), [one], [one.tolist()], (one,)):
        assert_same(dict(ours(form, return_tensors="np")), dict(expected))
    expected = reference([one.astype(np.float32), two.astype(np.float32)], return_tensors="np")
    several: list[Any] = [
        [one, two],
        (one, two),
        [one.tolist(), two.tolist()],
        [one.tolist(), tuple(two.tolist())],
        [torch.from_numpy(one), torch.from_numpy(two)],
    ]
    for form in several:
        assert_same(dict(ours(form, return_tensors="np")), dict(expected))


def test_forms_of_stereo_audio() -> None:
    ours = EncodecFeatureExtractor(feature_size=2)
    reference = transformers.EncodecFeatureExtractor(feature_size=2)
    one, two = clip(13, 2), clip(7, 2)
    expected = reference(one, return_tensors="np")
    assert expected["input_values"].shape == (1, 2, 13)
    for form in (one, torch.from_numpy(one), [one], [one.tolist()]):
        assert_same(dict(ours(form, return_tensors="np")), dict(expected))
    expected = reference([one, two], return_tensors="np")
    for form in ([one, two], [one.tolist(), two.tolist()], [torch.from_numpy(one), torch.from_numpy(two)]):
        assert_same(dict(ours(form, return_tensors="np")), dict(expected))


def test_tensors_with_gradients_and_bfloat16() -> None:
    wave = torch.tensor([0.5, -0.25, 0.125], dtype=torch.bfloat16, requires_grad=True)
    batch = EncodecFeatureExtractor()(wave, return_tensors="pt")
    assert batch.input_values.tolist() == [[[0.5, -0.25, 0.125]]]
    assert batch.input_values.dtype == torch.float32
    assert not batch.input_values.requires_grad


def test_the_given_audio_is_not_changed_by_changing_the_batch() -> None:
    wave = clip(13, 1).astype(np.float32)
    before = wave.copy()
    batch = EncodecFeatureExtractor()(wave, return_tensors="pt")
    batch.input_values.zero_()
    assert np.array_equal(wave, before)


def test_left_padding_by_hand() -> None:
    extractor = EncodecFeatureExtractor(padding_side="left")
    batch = extractor([[0.5, 0.25], [1.0, -1.0, 0.75]], return_tensors="np")
    assert batch.input_values.tolist() == [[[0.0, 0.5, 0.25]], [[1.0, -1.0, 0.75]]]
    assert batch.padding_mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_padding_in_chunks_by_hand() -> None:
    extractor = EncodecFeatureExtractor(**CHUNKS)
    assert (extractor.chunk_length, extractor.chunk_stride) == (8, 6)
    # 13 samples take 3 chunks, which start at 0, 6 and 12 and end at 20.
    assert extractor(clip(13, 1), return_tensors="np").input_values.shape == (1, 1, 20)
    assert extractor(clip(12, 1), return_tensors="np").input_values.shape == (1, 1, 14)


# -- files


def _extractor_with_everything(**more: Any) -> EncodecFeatureExtractor:
    return EncodecFeatureExtractor(2, 32_000, 0.5, 1.5, 0.25, "left", False, **more)


def test_folders_go_both_ways(tmp_path: Path) -> None:
    ours = _extractor_with_everything(processor_class="MusicgenProcessor", custom=[1, 2])
    ours.save_pretrained(tmp_path / "ours")
    reference = transformers.EncodecFeatureExtractor.from_pretrained(tmp_path / "ours")
    # transformers names the processor's class under a private attribute.
    expected = {**ours.to_dict()}
    del expected["processor_class"]
    assert {name: reference.to_dict()[name] for name in expected} == expected
    reference.save_pretrained(tmp_path / "theirs")
    again = EncodecFeatureExtractor.from_pretrained(tmp_path / "theirs")
    assert {name: again.to_dict()[name] for name in expected} == expected
    content = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    assert content == ours.to_dict()
    assert content["custom"] == [1, 2]
    assert EncodecFeatureExtractor.from_pretrained(tmp_path / "ours").to_dict() == content


def test_overrides(tmp_path: Path) -> None:
    _extractor_with_everything().save_pretrained(tmp_path)
    loaded = EncodecFeatureExtractor.from_pretrained(tmp_path, padding_side="right", sampling_rate=16_000)
    assert (loaded.padding_side, loaded.sampling_rate, loaded.feature_size) == ("right", 16_000, 2)


def test_settings_inside_a_processors_file_win(tmp_path: Path) -> None:
    EncodecFeatureExtractor(sampling_rate=16_000).save_pretrained(tmp_path)
    reference = transformers.EncodecFeatureExtractor(sampling_rate=32_000, padding_side="left")
    processor = {"processor_class": "MusicgenProcessor", "feature_extractor": reference.to_dict()}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    loaded = EncodecFeatureExtractor.from_pretrained(tmp_path)
    assert (
        loaded.sampling_rate == transformers.EncodecFeatureExtractor.from_pretrained(tmp_path).sampling_rate == 32_000
    )
    assert loaded.padding_side == "left"
    # Saving must not leave the old ones there, which would win again.
    EncodecFeatureExtractor(sampling_rate=24_000).save_pretrained(tmp_path)
    assert EncodecFeatureExtractor.from_pretrained(tmp_path).sampling_rate == 24_000
    assert transformers.EncodecFeatureExtractor.from_pretrained(tmp_path).sampling_rate == 24_000
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "MusicgenProcessor"


def test_a_processors_file_without_settings_is_passed_over(tmp_path: Path) -> None:
    EncodecFeatureExtractor(sampling_rate=16_000).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "MusicgenProcessor"}')
    assert EncodecFeatureExtractor.from_pretrained(tmp_path).sampling_rate == 16_000


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json"):
        EncodecFeatureExtractor.from_pretrained(tmp_path)


def test_file_of_another_feature_extractor(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"feature_extractor_type": "MusicgenMelodyFeatureExtractor"}')
    with pytest.raises(ValueError, match=r"is 'MusicgenMelodyFeatureExtractor'; expected 'EncodecFeatureExtractor'"):
        EncodecFeatureExtractor.from_pretrained(tmp_path)


# -- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_size": 3}, r"feature_size is 3; allowed are 1 \(mono\) and 2 \(stereo\)"),
        ({"sampling_rate": 0}, "sampling_rate is 0; expected a number of Hz above 0"),
        ({"padding_side": "both"}, "padding_side is 'both'; allowed are 'left' and 'right'"),
        ({"overlap": 1.0}, r"overlap is 1\.0; expected a share of a chunk"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodecFeatureExtractor(**settings)


@pytest.mark.parametrize(
    ("audio", "options", "message"),
    [
        ([0.1], {"sampling_rate": 44_100}, r"is 44100 Hz, the codec's is 24000 Hz\. Resample it .*44100, 24000\)"),
        ([0.1], {"padding": True, "truncation": True}, "padding and truncation are both set"),
        ([0.1], {"padding": "shortest"}, "padding is 'shortest'; allowed are True, False, 'longest', 'max_length'"),
        ([0.1], {"padding": "max_length"}, "max_length is missing: padding needs it"),
        ([0.1], {"truncation": True}, "max_length is missing: truncation needs it"),
        (
            [0.1],
            {"return_tensors": "tf"},
            r"return_tensors is 'tf'; allowed are 'pt' \(torch\), 'np' \(numpy\) and None",
        ),
        ([], {}, "raw_audio is an empty list"),
        ([[]], {}, "a clip is empty: it has no samples"),
        (np.zeros(0, np.float32), {}, "a clip is empty"),
        (np.zeros(5, np.int16), {}, "audio is int16; expected floating-point .* int16 divided by 32768"),
        (np.zeros((2, 5), np.float32), {}, r"a clip has the shape \(2, 5\); expected \(samples,\), .* mono audio"),
        (np.float32(0.5), {}, r"a clip has the shape \(\); expected \(samples,\)"),
        ([[0.1], [0.2, 0.3]], {"padding": False, "return_tensors": "pt"}, "clips of 1 to 2 samples cannot become one"),
    ],
)
def test_calls_that_cannot_be(audio: Any, options: dict[str, Any], message: str) -> None:
    extractor = EncodecFeatureExtractor()
    with pytest.raises(ValueError, match=message):
        extractor(audio, **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5,), r"a clip has the shape \(5,\); expected \(2, samples\), .* stereo audio \(feature_size 2\)\. Several"),
        ((5, 2), r"a clip has the shape \(5, 2\); expected \(2, samples\), .* Transpose it\."),
        ((3, 5), r"a clip has the shape \(3, 5\); expected \(2, samples\)"),
    ],
)
def test_audio_that_is_not_stereo(shape: tuple[int, ...], message: str) -> None:
    extractor = EncodecFeatureExtractor(feature_size=2)
    with pytest.raises(ValueError, match=message):
        extractor(np.zeros(shape, np.float32))
