"""The frozen encoders: which codecs can be used, and how clips and captions are batched and cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from audio_corpus import CODEC, tone
from tiny import CODEC as TINY_CODEC

from musicgen_train import EncodecConfig, EncodecModel
from musicgen_train.preprocess.encoding.encoders import AudioCoder, FrozenEncoders, TextCoder, clip_rows, load_encoders


def load(folder: Path, **given: Any) -> FrozenEncoders:
    values: dict[str, Any] = {"text_encoder": str(folder), "audio_encoder": str(folder), "audio_channels": None}
    values |= {"max_tokens": 512, "batch_tokens": 8192, "device": torch.device("cpu")}
    return load_encoders(**{**values, **given})


@pytest.fixture
def encoders(encoders_folder: Path) -> FrozenEncoders:
    return load(encoders_folder, batch_tokens=16, max_tokens=6)


def codec(**changed: Any) -> EncodecModel:
    return EncodecModel(EncodecConfig(**{**TINY_CODEC, **CODEC, **changed}))


@pytest.mark.parametrize("changed", [{"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01}])
def test_a_codec_whose_codes_are_not_all_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="divides the volume out or codes in chunks"):
        AudioCoder(codec(**changed), 1)


def test_a_stereo_codec_codes_both_sides_at_once() -> None:
    stereo = codec(audio_channels=2).eval()
    coder = AudioCoder(stereo, 2)
    clip = tone(0.5, channels=2).T.copy()
    assert coder.num_codebooks == 4
    assert torch.equal(coder.encode([clip], 1)[0].long(), stereo.encode(torch.from_numpy(clip)[None]).audio_codes[0, 0])
    with pytest.raises(
        ValueError, match="the codec takes 2 channels of audio, audio_channels is 1; give audio_channels=2"
    ):
        AudioCoder(stereo, 1)


def test_a_clip_has_the_same_codes_whatever_is_beside_it(encoders: FrozenEncoders) -> None:
    clips = [tone(0.7, pitch=pitch).T.copy() for pitch in (90.0, 300.0, 1200.0)]
    batch = encoders.audio.encode(clips, 5)
    assert batch.dtype == torch.int16
    assert len(batch) == 3
    for clip, codes in zip(clips, batch, strict=True):
        assert torch.equal(encoders.audio.encode([clips[1], clip], 5)[1], codes)
        # In a batch of another shape sums may be rounded otherwise, which does not change these codes.
        assert torch.equal(encoders.audio.encode([clip], 1)[0], codes)
    assert len({codes.numpy().tobytes() for codes in batch}) == 3


def test_only_clips_of_the_full_length_share_batches() -> None:
    assert clip_rows(100, 100, 100 * 7 + 99) == 7
    assert clip_rows(100, 100, 99) == 1
    assert clip_rows(99, 100, 100 * 7) == 1
    assert clip_rows(100, 100, 10**9) == 8


def test_long_captions_are_cut_before_the_end_token(encoders: FrozenEncoders, tokenizer: Any, reference: Any) -> None:
    text = "jazz guitar beat chorus lofi pop"
    whole = tokenizer(text)["input_ids"]
    (encoded,) = encoders.text.encode([text])
    assert len(whole) > 6
    assert encoded.cut
    with torch.no_grad():
        states = reference.text_encoder(torch.tensor([[*whole[:5], whole[-1]]])).last_hidden_state[0]
    assert torch.allclose(encoded.states_LD, states, atol=1e-5)
    assert not encoders.text.encode(["jazz"])[0].cut
    assert encoders.text.encode([]) == []


def test_a_caption_has_the_same_states_to_the_last_bit_whatever_is_beside_it(encoders_folder: Path) -> None:
    text = load(encoders_folder).text
    captions = [" ".join(["jazz", "beat", "chorus"][: 1 + number % 3] * (1 + number % 5)) for number in range(40)]
    together = {caption: encoded.states_LD for caption, encoded in zip(captions, text.encode(captions), strict=True)}
    assert len({len(states) for states in together.values()}) > 4
    for caption, states in together.items():
        (alone,) = text.encode([caption])
        assert torch.equal(alone.states_LD, states)
        assert torch.equal(text.encode([captions[7], caption])[1].states_LD, states)


def test_text_batches_hold_the_budget(encoders_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = load(encoders_folder, batch_tokens=70).text
    shapes = []
    states = TextCoder._states

    def watched(coder: TextCoder, ids: Any, rows: int, length: int) -> torch.Tensor:
        shapes.append((rows, length))
        return states(coder, ids, rows, length)

    monkeypatch.setattr(TextCoder, "_states", watched)
    captions = ["jazz " * number for number in range(1, 50, 3)]
    lengths = [len(encoded.states_LD) for encoded in text.encode(captions)]
    assert lengths == [len(text.token_ids(caption)[0]) for caption in captions]
    assert {(4, 16), (2, 32), (1, 64)} <= set(shapes)
    assert all(rows == max(70 // length, 1) for rows, length in shapes)


def test_codec_folders_alone_say_their_channels(tmp_path: Path, encoders_folder: Path) -> None:
    codec(audio_channels=2).save_pretrained(tmp_path / "codec")
    loaded = load(encoders_folder, audio_encoder=str(tmp_path / "codec"))
    assert loaded.audio.channels == 2
    assert loaded.audio_record.name == str(tmp_path / "codec")
