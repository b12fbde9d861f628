"""The demo's encoders: a folder that loads here and in transformers, and a codec whose round trip is the music."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import hearing
import numpy as np
import pytest
import sentencepiece
import torch
import transformers

from musicgen_train import (
    EncodecModel,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5EncoderModel,
)
from musicgen_train.demo import make_track
from musicgen_train.demo.__main__ import main
from musicgen_train.demo.clusters import fit_vectors, nearest
from musicgen_train.demo.codec import BANDS, HOP, demo_codec_config, latents_of, mdct_window, write_transform
from musicgen_train.demo.corpus import captions_of
from musicgen_train.demo.encoders import demo_encoders, quality_of
from musicgen_train.demo.quality import measure, mel_bands, mel_distance, si_sdr

CLIPS = 13  # of 10 s: 6500 frames for 2048 entries


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_encoders(tmp_path_factory.mktemp("demo") / "encoders", 3, fitting_clips=CLIPS, held_out_clips=0)


@pytest.fixture(scope="module")
def codec(folder: Path) -> EncodecModel:
    return EncodecModel.from_pretrained(folder)


@functools.cache
def clip(index: int, seconds: float = 4.0) -> torch.Tensor:
    return torch.from_numpy(make_track(400, index, seconds).audio[0])


# The folder


def test_the_folder_is_a_whole_composite(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "preprocessor_config.json"} <= names
    assert {"spiece.model", "tokenizer_config.json", "processor_config.json", "demo_encoders.json"} <= names
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    processor = MusicgenProcessor.from_pretrained(folder)
    assert processor.feature_extractor.padding_side == "left"
    assert processor.feature_extractor.sampling_rate == model.config.audio_encoder.sampling_rate == 32_000
    assert model.config.audio_encoder.frame_rate == 50
    assert len(processor.tokenizer) <= model.config.text_encoder.vocab_size
    assert model.generation_config.guidance_scale == 3.0
    audio = model.generate(**processor(text=["slow jazz"], return_tensors="pt"), max_new_tokens=13)
    assert isinstance(audio, torch.Tensor)
    assert audio.shape == (1, 1, 10 * HOP)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 30e6


@pytest.mark.filterwarnings("ignore:.*")  # transformers' own, on loading a tokenizer and weight norm
def test_transformers_gives_the_same_codes_states_and_ids(folder: Path, codec: EncodecModel) -> None:
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    audio = clip(1, 2.0)[None, None]
    with torch.no_grad():
        expected = theirs.audio_encoder.encode(audio).audio_codes
        ours = codec.encode(audio).audio_codes
        assert torch.equal(ours, expected)
        torch.testing.assert_close(
            codec.decode(ours).audio_values, theirs.audio_encoder.decode(ours, [None]).audio_values, atol=1e-4, rtol=0
        )
        captions = [captions_of(400, 2)[0], "crisp rock", "Ukulele & kazoo, 7/8?"]
        inputs = processor(text=captions, padding=True, return_tensors="pt")
        our_inputs = MusicgenProcessor.from_pretrained(folder)(text=captions, padding=True, return_tensors="pt")
        assert torch.equal(our_inputs["input_ids"], inputs["input_ids"])
        states = T5EncoderModel.from_pretrained(folder)(**our_inputs).last_hidden_state
        torch.testing.assert_close(states, theirs.text_encoder(**inputs).last_hidden_state, atol=1e-4, rtol=1e-4)


def test_captions_are_known_words(folder: Path) -> None:
    tokenizer = MusicgenProcessor.from_pretrained(folder).tokenizer
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    assert [model.id_to_piece(index) for index in range(3)] == ["<pad>", "</s>", "<unk>"]
    captions = [caption for index in range(5000, 5040) for caption in captions_of(7, index)]
    captions += ["Any word, #1 'quoted' (at 97 BPM)!", "zydeco\txylophone"]
    for ids in tokenizer(captions)["input_ids"]:
        assert 2 not in ids
        assert len(ids) < 100


def test_different_captions_have_different_states(folder: Path) -> None:
    processor, encoder = MusicgenProcessor.from_pretrained(folder), T5EncoderModel.from_pretrained(folder)
    texts = ["slow sad jazz", "fast sad jazz", "slow happy jazz", "slow sad rock"]
    with torch.no_grad():
        states = [encoder(**processor(text=[text], return_tensors="pt")).last_hidden_state.mean(1) for text in texts]
    distances = torch.pdist(torch.cat(states))
    assert distances.min() > 0.05 * torch.cat(states).norm(dim=1).mean()


def test_a_second_call_keeps_the_folder(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert demo_encoders(folder, 3, fitting_clips=CLIPS, held_out_clips=0) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_settings_need_another_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"holds encoders made with seed 3 \(asked for: 4\)"):
        demo_encoders(folder, 4, fitting_clips=CLIPS, held_out_clips=0)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["encoders", str(tmp_path)]) == 1
    assert "already holds something else (config.json); give another folder" in capsys.readouterr().err


def test_too_little_music_for_the_codebooks(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="500 frames of audio are too few for codebooks of 2048 entries; give 6144 or more, which are 123 s",
    ):
        demo_encoders(tmp_path / "e", fitting_clips=1)
    assert not (tmp_path / "e").exists()


# The codec


def test_the_encoder_is_a_cosine_transform() -> None:
    codec = EncodecModel(demo_codec_config()).eval()
    weights = torch.linspace(0.5, 2, BANDS)
    write_transform(codec, weights)
    audio = 0.3 * clip(2, 3.0)
    latents = latents_of(codec, [audio])
    # Frame t's window starts 40 samples into the reach of its 16 blocks, which start 368 samples before it.
    start = 368 - 40
    padded = torch.nn.functional.pad(audio.double(), (start, 2 * HOP))
    samples = np.arange(2 * HOP) + 0.5
    waves = np.cos(np.pi / HOP * (samples[:, None] + HOP / 2) * (np.arange(BANDS) + 0.5))
    expected = np.sqrt(2 / HOP) * np.sin(np.pi * samples / 2 / HOP)[:, None] * waves
    frames = padded.unfold(0, 2 * HOP, HOP)[: len(latents)].numpy() @ expected
    inside = slice(2, -3)
    assert si_sdr(torch.from_numpy(frames)[inside].flatten(), (latents / weights).double()[inside].flatten()) > 25


def test_the_decoder_inverts_the_encoder() -> None:
    codec = EncodecModel(demo_codec_config()).eval()
    write_transform(codec, torch.linspace(2, 0.5, BANDS))
    # Everything below 3 kHz is kept.
    time = torch.arange(32_000) / 32_000
    frequencies = torch.tensor([110.0, 440.0, 1234.0, 2750.0])
    audio = 0.05 * torch.sin(2 * math.pi * frequencies[:, None] * time).sum(0)
    with torch.no_grad():
        decoded = codec.decoder(codec.encoder(audio.view(1, -1, 1)))[0, :, 0]
    assert si_sdr(audio[2000:-2000], decoded[2000:-2000]) > 25


def test_the_window_is_orthonormal_with_its_neighbours() -> None:
    hop = 10
    window = mdct_window(hop)
    three = torch.zeros(4 * hop, 3 * hop, dtype=torch.float64)
    for frame in range(3):
        three[frame * hop : (frame + 2) * hop, frame * hop : (frame + 1) * hop] = window
    torch.testing.assert_close(three.t() @ three, torch.eye(3 * hop, dtype=torch.float64))


def test_round_trip(codec: EncodecModel) -> None:
    for length in (1, 639, 640, 641, 7777):
        audio = clip(3)[None, None, 30_000 : 30_000 + length]
        output = codec(audio)
        assert output.audio_codes.shape == (1, 1, 4, math.ceil(length / HOP))
        assert output.audio_values.shape == audio.shape


def test_the_round_trip_is_the_music(codec: EncodecModel) -> None:
    # Held-out tracks, and codebooks fitted to two minutes: the real folder does better.
    for index, style in enumerate(("house", "rock", "folk")):
        track = make_track(401, index, 16.0, style=style, brightness="dark")
        audio = torch.from_numpy(track.audio)[None]
        decoded = codec(audio).audio_values[0, 0].detach().numpy()
        assert si_sdr(audio[0, 0], torch.from_numpy(decoded)) > 2
        assert hearing.key(decoded) == (track.metadata["key"], track.metadata["mode"])
        assert hearing.tempo(decoded) == pytest.approx(hearing.tempo(track.audio[0]), rel=0.03)


def test_codebooks_are_used(codec: EncodecModel) -> None:
    quality = measure(codec, [clip(index, 6.0) for index in range(6)])
    # So few frames can name about half of the entries at best.
    assert quality.frames == 1800
    assert min(quality.used) > 0.2
    assert min(quality.perplexity) > 200


def test_silence_stays_silent(codec: EncodecModel) -> None:
    output = codec(torch.zeros(1, 1, 6400))
    assert torch.all(output.audio_codes == 0)
    assert output.audio_values.abs().max() < 1e-6


# Its parts, against computations by hand


def test_clusters_are_means_of_what_is_nearest() -> None:
    torch.manual_seed(1)
    data = torch.randn(300, 3)
    found = fit_vectors(data, 7, 60, torch.Generator().manual_seed(5))
    members = torch.cdist(data, found).argmin(1)
    torch.testing.assert_close(found, torch.stack([data[members == entry].mean(0) for entry in range(7)]))


def test_entries_that_nothing_is_near_to_move() -> None:
    # Two places for three entries: with equal draws one of them would stay unused.
    data = torch.tensor([[0.0], [0.0], [0.0], [5.0]]).repeat(20, 1)
    assert set(fit_vectors(data, 3, 9, torch.Generator().manual_seed(0)).flatten().tolist()) == {0.0, 5.0}


def test_nearest_by_brute_force() -> None:
    torch.manual_seed(2)
    data, entries = torch.randn(1301, 7), torch.randn(11, 7)
    assert torch.equal(nearest(data, entries), torch.cdist(data, entries).argmin(1))


def test_si_sdr_by_hand() -> None:
    reference = torch.tensor([1.0, 0.0, 2.0, 0.0])
    noise = torch.tensor([0.0, 0.5, 0.0, 0.0])
    assert si_sdr(reference, 3 * (reference + noise)) == pytest.approx(10 * math.log10(5 / 0.25))


def test_mel_distance_of_a_gain_is_that_gain() -> None:
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(4)) * 0.1
    assert mel_distance(noise, noise) == 0
    assert mel_distance(noise, 0.5 * noise) == pytest.approx(20 * math.log10(2), abs=1e-3)
    bands = mel_bands(80, 1025, 32_000)
    assert torch.allclose(bands.sum(1), torch.ones(80))
    assert (bands.argmax(1).diff() >= 0).all()


def test_same_seed_same_files_with_or_without_measuring(folder: Path, tmp_path: Path) -> None:
    again = demo_encoders(tmp_path / "again", 3, fitting_clips=CLIPS, held_out_clips=1)
    for path in folder.iterdir():
        if path.name != "demo_encoders.json":
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    quality = quality_of(again)
    assert quality is not None
    assert quality["frames"] == 500
    assert len(quality["used"]) == len(quality["perplexity"]) == 4
    assert quality_of(folder) is None
    assert json.loads((again / "demo_encoders.json").read_text())["seed"] == 3
