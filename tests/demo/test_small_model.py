"""The small model that ships: a folder that loads here and in transformers, and what its parts do."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from safetensors import safe_open

from musicgen_train import (
    EncodecModel,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5EncoderModel,
)
from musicgen_train.demo import make_track
from musicgen_train.demo.__main__ import main
from musicgen_train.demo.corpus import captions_of
from musicgen_train.demo.small_model import SHIPPED, demo_encoders

FRAME = 640  # samples


@pytest.fixture(scope="module")
def shipped() -> EncodecModel:
    return EncodecModel.from_pretrained(SHIPPED)


@functools.cache
def clip(index: int, seconds: float = 4.0) -> torch.Tensor:
    return torch.from_numpy(make_track(400, index, seconds).audio[0])


def test_the_folder_is_a_whole_composite(tmp_path: Path) -> None:
    folder = demo_encoders(tmp_path / "encoders")
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors.index.json",
        "generation_config.json",
        "preprocessor_config.json",
    } <= names
    assert {"spiece.model", "tokenizer_config.json", "processor_config.json", "README.md", "encoders.json"} <= names
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    processor = MusicgenProcessor.from_pretrained(folder)
    assert processor.feature_extractor.padding_side == "left"
    assert processor.feature_extractor.sampling_rate == model.config.audio_encoder.sampling_rate == 32_000
    assert model.config.audio_encoder.frame_rate == 50
    assert model.config.decoder.num_codebooks == 4
    assert len(processor.tokenizer) <= model.config.text_encoder.vocab_size
    assert model.generation_config.guidance_scale == 3.0
    audio = model.generate(**processor(text=["slow jazz"], return_tensors="pt"), max_new_tokens=13)
    assert isinstance(audio, torch.Tensor)
    assert audio.shape == (1, 1, 10 * FRAME)


def test_the_encoders_are_small() -> None:
    size = 0
    for path in SHIPPED.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            names = [name for name in weights.keys() if not name.startswith("decoder.")]  # noqa: SIM118
            size += sum(weights.get_tensor(name).nbytes for name in names)
    others = sum(path.stat().st_size for path in SHIPPED.iterdir() if path.suffix != ".safetensors")
    assert size + others < 12e6


@pytest.mark.filterwarnings("ignore:.*")  # transformers' own, on loading a tokenizer and weight norm
def test_transformers_gives_the_same_codes_states_and_ids(shipped: EncodecModel) -> None:
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(SHIPPED).eval()
    assert theirs.dtype == torch.float32
    processor = transformers.AutoProcessor.from_pretrained(SHIPPED)
    audio = clip(1, 2.0)[None, None]
    with torch.no_grad():
        expected = theirs.audio_encoder.encode(audio).audio_codes
        ours = shipped.encode(audio).audio_codes
        assert torch.equal(ours, expected)
        torch.testing.assert_close(
            shipped.decode(ours).audio_values, theirs.audio_encoder.decode(ours, [None]).audio_values, atol=1e-4, rtol=0
        )
        captions = [captions_of(400, 2)[0], "crisp rock", "Ukulele & kazoo, 7/8?"]
        inputs = processor(text=captions, padding=True, return_tensors="pt")
        our_inputs = MusicgenProcessor.from_pretrained(SHIPPED)(text=captions, padding=True, return_tensors="pt")
        assert torch.equal(our_inputs["input_ids"], inputs["input_ids"])
        states = T5EncoderModel.from_pretrained(SHIPPED)(**our_inputs).last_hidden_state
        torch.testing.assert_close(states, theirs.text_encoder(**inputs).last_hidden_state, atol=1e-4, rtol=1e-4)
        model = MusicgenForConditionalGeneration.from_pretrained(SHIPPED)
        codes = torch.randint(0, 1024, (3 * 4, 9), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            model(**our_inputs, decoder_input_ids=codes).logits,
            theirs(**inputs, decoder_input_ids=codes).logits,
            atol=1e-3,
            rtol=1e-3,
        )


def test_captions_are_known_words() -> None:
    tokenizer = MusicgenProcessor.from_pretrained(SHIPPED).tokenizer
    model = sentencepiece.SentencePieceProcessor(model_file=str(SHIPPED / "spiece.model"))
    assert [model.id_to_piece(index) for index in range(3)] == ["<pad>", "</s>", "<unk>"]
    captions = [caption for index in range(5000, 5040) for caption in captions_of(7, index)]
    captions += ["Any word, #1 'quoted' (at 97 BPM)!", "zydeco\txylophone"]
    for ids in tokenizer(captions)["input_ids"]:
        assert 2 not in ids
        assert len(ids) < 100


def test_different_captions_have_different_states() -> None:
    processor, encoder = MusicgenProcessor.from_pretrained(SHIPPED), T5EncoderModel.from_pretrained(SHIPPED)
    texts = ["slow sad jazz", "fast sad jazz", "slow happy jazz", "slow sad rock"]
    with torch.no_grad():
        states = [encoder(**processor(text=[text], return_tensors="pt")).last_hidden_state.mean(1) for text in texts]
    distances = torch.pdist(torch.cat(states))
    assert distances.min() > 0.05 * torch.cat(states).norm(dim=1).mean()


def test_a_second_call_keeps_the_folder(tmp_path: Path) -> None:
    folder = demo_encoders(tmp_path / "encoders")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert demo_encoders(folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds something else"):
        demo_encoders(folder)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["encoders", str(tmp_path)]) == 1
    assert "already holds something else (config.json); give another folder" in capsys.readouterr().err


def test_silence_stays_soft(shipped: EncodecModel) -> None:
    output = shipped(torch.zeros(1, 1, 6400))
    assert torch.all(output.audio_codes == 0)
    # -56 dB of full scale: what the trained decoder hums.
    assert output.audio_values.std() < 3e-3


def test_round_trip(shipped: EncodecModel) -> None:
    for length in (1, 639, 640, 641, 7777):
        audio = clip(3)[None, None, 30_000 : 30_000 + length]
        output = shipped(audio)
        assert output.audio_codes.shape == (1, 1, 4, math.ceil(length / FRAME))
        assert output.audio_values.shape == audio.shape
