"""The processor against transformers' MusicgenProcessor: calls, decoding, and folders in both directions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentencepiece_models import write_t5_tokenizer_folder

from musicgen_train.processing import musicgen_processor
from musicgen_train.processing.feature_extractor import EncodecFeatureExtractor
from musicgen_train.processing.musicgen_processor import AutoProcessor, MusicgenProcessor
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

TEXTS = ["80s pop track with bassy drums and synth", "a gui tar, lo fi", ""]
RATE = 32_000


def write_hub_folder(folder: Path, *, channels: int = 1, padding_side: str = "left") -> None:
    """Write the processor files of a MusicGen repository on the hub."""
    write_t5_tokenizer_folder(folder)
    config = {
        "chunk_length_s": None,
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": channels,
        "overlap": None,
        "padding_side": padding_side,
        "padding_value": 0.0,
        "processor_class": "MusicgenProcessor",
        "return_attention_mask": True,
        "sampling_rate": RATE,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    """Return hub folders by number of channels and padding side."""
    made = {}
    for channels in (1, 2):
        for side in ("left", "right"):
            made[channels, side] = tmp_path_factory.mktemp(f"hub-{channels}-{side}")
            write_hub_folder(made[channels, side], channels=channels, padding_side=side)
    return made


def both(folder: Path) -> tuple[MusicgenProcessor, Any]:
    """Return our processor and the reference's, loaded from one folder."""
    return MusicgenProcessor.from_pretrained(folder), transformers.MusicgenProcessor.from_pretrained(folder)


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_same(found: Any, expected: Any) -> None:
    """Assert equal keys, types, dtypes and values at every depth."""
    if isinstance(expected, Mapping):
        assert sorted(found) == sorted(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(found, list):
        # The reference stacks masks (not values) of one length even when it is asked for no tensors.
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected)
        if isinstance(expected, np.ndarray | torch.Tensor):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        else:
            assert found == expected


CALLS: dict[str, dict[str, Any]] = {
    "text": {"text": TEXTS, "padding": True, "return_tensors": "pt"},
    "text-lists": {"text": TEXTS},
    "one-text": {"text": TEXTS[0]},
    "text-cut": {"text": TEXTS, "padding": True, "truncation": True, "max_length": 5, "return_tensors": "np"},
    "text-left": {"text": TEXTS, "padding": True, "padding_side": "left", "pad_to_multiple_of": 7},
    "text-no-end": {"text": TEXTS[:2], "add_special_tokens": False, "return_attention_mask": False},
    "text-own": {"text": TEXTS, "text_kwargs": {"padding": "max_length", "max_length": 43}, "return_tensors": "pt"},
    "audio": {"audio": [700, 1300, 11], "sampling_rate": RATE, "padding": True, "return_tensors": "pt"},
    "audio-default": {"audio": [700, 1300, 11], "sampling_rate": RATE, "return_tensors": "np"},
    "audio-cut": {"audio": [700, 1300], "sampling_rate": RATE, "truncation": True, "max_length": 500},
    "audio-unpadded": {"audio": [700, 1300], "sampling_rate": RATE, "padding": False},
    "both": {"audio": [700, 1300, 11], "text": TEXTS, "sampling_rate": RATE, "padding": True, "return_tensors": "pt"},
    "both-default": {"audio": [700, 1300], "text": TEXTS[:2], "sampling_rate": RATE},
    "both-own": {
        "audio": [700, 1300],
        "text": TEXTS[:2],
        "audio_kwargs": {"sampling_rate": RATE, "padding": "max_length", "max_length": 1400},
        "text_kwargs": {"padding": True},
        "return_tensors": "pt",
    },
    "none-is-default": {"text": TEXTS, "padding": True, "max_length": None, "audio": None, "return_tensors": None},
}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CALLS)
def test_calls_equal_the_reference(name: str, side: str, channels: int, folders: dict[tuple[int, str], Path]) -> None:
    ours, reference = both(folders[channels, side])
    call = dict(CALLS[name])
    if call.get("audio"):
        shape = () if channels == 1 else (2,)
        call["audio"] = [noise(*shape, samples, seed=samples) for samples in call["audio"]]
    assert_same(ours(**call), reference(**call))


def test_audio_may_come_first_and_text_second(folders: dict[tuple[int, str], Path]) -> None:
    ours, reference = both(folders[1, "left"])
    clip = noise(90)
    assert_same(
        ours(clip, TEXTS[:1], sampling_rate=RATE, padding=True),
        reference(clip, TEXTS[:1], sampling_rate=RATE, padding=True),
    )
    assert_same(ours(clip, sampling_rate=RATE), reference(clip, sampling_rate=RATE))


def test_an_option_that_is_none_has_its_default(folders: dict[tuple[int, str], Path]) -> None:
    # The reference does so for most options, and raises for the padding of text.
    ours = both(folders[1, "left"])[0]
    clips = [noise(31), noise(7)]
    found = ours(clips, TEXTS, sampling_rate=RATE, padding=None, truncation=None, text_kwargs={"padding_side": None})
    assert_same(found, ours(clips, TEXTS, sampling_rate=RATE))
    assert [len(row) for row in found["padding_mask"]] == [31, 31]


def test_one_clip_becomes_a_batch(folders: dict[tuple[int, str], Path]) -> None:
    ours, reference = both(folders[1, "left"])
    for clip in (noise(90), noise(90).astype(np.float64), noise(90).tolist()):
        call: dict[str, Any] = {
            "audio": clip,
            "text": TEXTS[:1],
            "sampling_rate": RATE,
            "padding": True,
            "return_tensors": "pt",
        }
        found = ours(**call)
        assert_same(found, reference(**call))
        assert found.input_values.shape == (1, 1, 90)
        assert found.input_values.dtype == torch.float32


def test_padding_side_shows_in_the_mask(folders: dict[tuple[int, str], Path]) -> None:
    clips = [noise(3), noise(5)]
    left = both(folders[1, "left"])[0](audio=clips, sampling_rate=RATE, return_tensors="np")
    right = both(folders[1, "right"])[0](audio=clips, sampling_rate=RATE, return_tensors="np")
    assert left["padding_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert right["padding_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(left["input_values"][0, 0, 2:], clips[0])
    np.testing.assert_array_equal(right["input_values"][0, 0, :3], clips[0])


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_mono_audio_comes_back_as_the_reference_gives_it(
    side: str, masked: bool, as_tensor: bool, folders: dict[tuple[int, str], Path]
) -> None:
    ours, reference = both(folders[1, side])
    inputs = ours(audio=[noise(31), noise(47), noise(5)], sampling_rate=RATE, padding=True, return_tensors="np")
    audio: Any = noise(3, 1, 83)
    mask: Any = inputs.padding_mask if masked else None
    if as_tensor:
        audio, mask = torch.from_numpy(audio), mask if mask is None else torch.from_numpy(mask)
    for found, expected in (
        (ours.batch_decode(audio, padding_mask=mask), reference.batch_decode(audio, padding_mask=mask)),
        (ours.batch_decode(audio=audio, padding_mask=mask), reference.batch_decode(audio=audio, padding_mask=mask)),
    ):
        assert isinstance(found, list)
        assert [clip.shape for clip in found] == [clip.shape for clip in expected]
        for clip, reference_clip in zip(found, expected, strict=True):
            # The reference turns masked audio into float64 on the way.
            assert clip.dtype == np.float32
            np.testing.assert_array_equal(clip, reference_clip)
    # What the model added, 83 - 47 samples, is never cut.
    lengths = [31 + 36, 47 + 36, 5 + 36] if masked else [83, 83, 83]
    assert [clip.shape for clip in ours.batch_decode(audio, mask)] == [(1, length) for length in lengths]


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_stereo_channel_comes_back_as_mono_would(side: str, folders: dict[tuple[int, str], Path]) -> None:
    # The reference raises IndexError for stereo with a mask, so its mono result is taken channel by channel.
    ours, reference = both(folders[2, side])
    clips = [noise(2, 31), noise(2, 47)]
    mask = ours(audio=clips, sampling_rate=RATE, return_tensors="pt").padding_mask
    audio = torch.from_numpy(noise(2, 2, 53))
    found = ours.batch_decode(audio, mask)
    for channel in (0, 1):
        expected = reference.batch_decode(audio[:, channel : channel + 1], padding_mask=mask)
        for clip, reference_clip in zip(found, expected, strict=True):
            assert clip.shape[0] == 2
            np.testing.assert_array_equal(clip[channel : channel + 1], reference_clip)
    for clip, whole in zip(ours.batch_decode(audio), reference.batch_decode(audio), strict=True):
        np.testing.assert_array_equal(clip, whole)


def test_a_prompt_goes_in_and_comes_back(folders: dict[tuple[int, str], Path]) -> None:
    for channels in (1, 2):
        ours = both(folders[channels, "left"])[0]
        clips = [noise(channels, 17).squeeze(), noise(channels, 9).squeeze()]
        inputs = ours(audio=clips, sampling_rate=RATE, return_tensors="pt")
        for clip, back in zip(clips, ours.batch_decode(inputs.input_values, inputs.padding_mask), strict=True):
            np.testing.assert_array_equal(back.squeeze(), clip)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_audio_decodes(dtype: torch.dtype, folders: dict[tuple[int, str], Path]) -> None:
    ours = both(folders[1, "left"])[0]
    audio = torch.tensor([[[0.5, 0.25, -1.0]]], dtype=dtype, requires_grad=True)
    (clip,) = ours.batch_decode(audio, torch.tensor([[0, 1]]))
    assert clip.dtype == (np.float16 if dtype == torch.float16 else np.float32)
    assert clip.tolist() == [[0.25, -1.0]]
    assert ours.batch_decode(list(audio))[0].tolist() == [[0.5, 0.25, -1.0]]


def test_token_ids_decode_as_the_reference(folders: dict[tuple[int, str], Path]) -> None:
    ours, reference = both(folders[1, "left"])
    ids = ours(text=TEXTS, padding=True, return_tensors="pt").input_ids
    for rows in (ids, ids.numpy(), ids.tolist(), ours(text=TEXTS).input_ids):
        for skip in (False, True):
            # The reference takes a first positional argument for audio, always.
            expected = reference.batch_decode(sequences=rows, skip_special_tokens=skip)
            assert ours.batch_decode(rows, skip_special_tokens=skip) == expected
            assert ours.batch_decode(sequences=rows, skip_special_tokens=skip) == expected
    assert ours.decode(ids[0], skip_special_tokens=True) == reference.decode(ids[0], skip_special_tokens=True)
    assert ours.decode(ids[1]) == reference.decode(ids[1])


def same_processor(one: Any, other: Any) -> None:
    """Assert that two processors, ours or the reference's, do the same."""
    for call in (
        {"text": TEXTS, "padding": True, "return_tensors": "pt"},
        {
            "audio": [noise(7), noise(12)],
            "text": TEXTS[:2],
            "sampling_rate": RATE,
            "padding": True,
            "return_tensors": "pt",
        },
    ):
        assert_same(one(**call), other(**call))
    for name in ("feature_size", "sampling_rate", "padding_value", "padding_side", "chunk_length_s", "overlap"):
        assert getattr(one.feature_extractor, name) == getattr(other.feature_extractor, name)
    for name in ("model_max_length", "padding_side", "eos_token", "pad_token", "unk_token"):
        assert getattr(one.tokenizer, name) == getattr(other.tokenizer, name)
    assert len(one.tokenizer) == len(other.tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
def test_folders_go_both_ways(side: str, folders: dict[tuple[int, str], Path], tmp_path: Path) -> None:
    ours, reference = both(folders[1, side])
    same_processor(ours, reference)
    reference.save_pretrained(tmp_path / "theirs")
    same_processor(MusicgenProcessor.from_pretrained(tmp_path / "theirs"), reference)
    ours.save_pretrained(tmp_path / "ours")
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(loaded) is transformers.MusicgenProcessor
    same_processor(loaded, reference)
    same_processor(MusicgenProcessor.from_pretrained(tmp_path / "ours"), reference)


def test_what_a_save_leaves_in_a_folder(folders: dict[tuple[int, str], Path], tmp_path: Path) -> None:
    # The reference's file of an earlier processor would win over ours if it stayed as it was.
    transformers.MusicgenProcessor.from_pretrained(folders[2, "right"]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "musicgen"}')
    both(folders[1, "left"])[0].save_pretrained(tmp_path)
    loaded: Any
    for loaded in (AutoProcessor.from_pretrained(tmp_path), transformers.AutoProcessor.from_pretrained(tmp_path)):
        assert loaded.feature_extractor.feature_size == 1
        assert loaded.feature_extractor.padding_side == "left"
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "musicgen"}
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert content["processor_class"] == "MusicgenProcessor"
    assert content["feature_extractor_type"] == "EncodecFeatureExtractor"


def test_a_failing_save_changes_nothing(
    folders: dict[tuple[int, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(folders[1, "left"])[0].save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(musicgen_processor, "write_json", full_disk)
    stereo = both(folders[2, "right"])[0]
    with pytest.raises(OSError, match="no space left"):
        stereo.save_pretrained(tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("stated_in", ["processor_config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_auto_processor_reads_the_stated_class(stated_in: str, tmp_path: Path) -> None:
    write_hub_folder(tmp_path)
    processor = MusicgenProcessor.from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        content = json.loads((tmp_path / name).read_text())
        content.pop("processor_class", None)
        if name == stated_in:
            content["processor_class"] = "MusicgenProcessor"
        (tmp_path / name).write_text(json.dumps(content))
    assert type(AutoProcessor.from_pretrained(tmp_path)) is MusicgenProcessor


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("musicgen", MusicgenProcessor), ("encodec", EncodecFeatureExtractor), ("t5", T5Tokenizer)],
)
def test_auto_processor_falls_back_to_the_model_type(model_type: str, expected: type, tmp_path: Path) -> None:
    write_hub_folder(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    del content["processor_class"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert type(AutoProcessor.from_pretrained(tmp_path)) is expected


def test_auto_processor_finds_a_subfolder(tmp_path: Path) -> None:
    write_hub_folder(tmp_path / "processor")
    assert type(AutoProcessor.from_pretrained(tmp_path, subfolder="processor")) is MusicgenProcessor


def test_auto_processor_refuses_other_models(tmp_path: Path) -> None:
    write_hub_folder(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    content["processor_class"] = "MusicgenMelodyProcessor"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="'MusicgenMelodyProcessor', which is not supported; supported are MusicgenProcessor"
    ):
        AutoProcessor.from_pretrained(tmp_path)


def test_auto_processor_says_what_it_looked_for(tmp_path: Path) -> None:
    write_t5_tokenizer_folder(tmp_path)
    with pytest.raises(ValueError, match=r"does not say whose processor it is: .* holds: .*spiece\.model"):
        AutoProcessor.from_pretrained(tmp_path)


def test_auto_processor_is_no_processor() -> None:
    with pytest.raises(TypeError, match=r"use AutoProcessor\.from_pretrained"):
        AutoProcessor()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_t5_tokenizer_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        MusicgenProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, ValueError, "give audio, text or both; neither was given"),
        ({"padding": True}, ValueError, "give audio, text or both"),
        ({"text": "a", "audios": [0.1]}, TypeError, "a call takes no audios; it takes add_special_tokens, "),
        ({"text": "a", "text_kwargs": {"sampling_rate": RATE}}, TypeError, "text_kwargs takes no sampling_rate"),
        ({"text": "a", "audio_kwargs": {"padding_side": "left"}}, TypeError, "audio_kwargs takes no padding_side"),
        ({"text": "a", "padding": True, "text_kwargs": {"padding": False}}, ValueError, "padding is given twice"),
        ({"audio": noise(9), "sampling_rate": 44_100}, ValueError, r"44[,_]?100"),
        ({"text": 7}, TypeError, "text is 7"),
    ],
)
def test_wrong_calls_are_refused(
    call: dict[str, Any], error: type[Exception], message: str, folders: dict[tuple[int, str], Path]
) -> None:
    ours = both(folders[1, "left"])[0]
    with pytest.raises(error, match=message):
        ours(**call)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither was given"),
        ({"sequences": [[3, 1]], "audio": np.zeros((1, 1, 2))}, "both was given"),
        ({"sequences": [[3, 1]], "padding_mask": np.ones((1, 2))}, "padding_mask belongs to audio"),
        ({"audio": np.zeros((1, 1, 2)), "skip_special_tokens": True}, "skip_special_tokens: for token ids only"),
        ({"audio": np.zeros((2, 9))}, r"audio is \[2, 9\]; expected \[batch, channels, samples\]"),
        ({"audio": np.zeros((2, 1, 9)), "padding_mask": np.ones((2, 11))}, r"\[2, 11\]; .* no more than its 9 samples"),
        ({"audio": np.zeros((2, 1, 9)), "padding_mask": np.ones((3, 9))}, r"\[3, 9\]; .* the 2 rows of the audio"),
        ({"audio": np.zeros((2, 1, 9)), "padding_mask": np.ones((2, 1, 9))}, r"padding_mask is \[2, 1, 9\]"),
    ],
)
def test_wrong_batches_to_decode_are_refused(
    arguments: dict[str, Any], message: str, folders: dict[tuple[int, str], Path]
) -> None:
    ours = both(folders[1, "left"])[0]
    with pytest.raises(ValueError, match=message):
        ours.batch_decode(**arguments)


def test_swapped_parts_are_refused(folders: dict[tuple[int, str], Path]) -> None:
    ours = both(folders[1, "left"])[0]
    swapped: Any = (ours.tokenizer, ours.feature_extractor)
    with pytest.raises(TypeError, match="feature_extractor is T5Tokenizer; expected EncodecFeatureExtractor"):
        MusicgenProcessor(*swapped)


def test_names_of_its_inputs(folders: dict[tuple[int, str], Path]) -> None:
    ours, reference = both(folders[1, "left"])
    assert sorted(ours.model_input_names) == sorted(reference.model_input_names)
    assert "sampling_rate" in repr(ours)
