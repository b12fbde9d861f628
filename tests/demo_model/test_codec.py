"""The codec that ships, and how its weights are computed: against computations by hand, and by what is heard."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import hearing
import numpy as np
import pytest
import soundfile
import torch
from codec_design import (
    CODEBOOK_PARTS,
    CODEC_HOP,
    LOUDNESS_GROUPS,
    MDCT_BANDS,
    demo_codec_config,
    encoder_outputs,
    kmeans,
    make_codec,
    mdct_window,
    nearest_entries,
    write_transform,
)
from codec_quality import main, measure_codec, mel_distance, si_sdr

from musicgen_train import EncodecModel
from musicgen_train.demo import make_track
from musicgen_train.demo.small_model import SHIPPED

HELD_OUT = 202  # the seed of tracks that nothing was trained on


@pytest.fixture(scope="module")
def shipped() -> EncodecModel:
    return EncodecModel.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def written() -> EncodecModel:
    """A codec that has seen two minutes of music, untrained."""
    return make_codec([clip(index, 10.0) for index in range(13)], 3)


@functools.cache
def clip(index: int, seconds: float = 4.0) -> torch.Tensor:
    return torch.from_numpy(make_track(400, index, seconds).audio[0])


def test_the_card_tells_what_was_measured() -> None:
    record = json.loads((SHIPPED / "encoders.json").read_text())
    card = (SHIPPED / "README.md").read_text()
    quality = record["codec"]["quality"]
    assert f"{quality['si_sdr']:.1f} dB" in card
    for share in quality["used"]:
        assert f"{share:.0%}" in card


# The codec that ships


def test_every_codebook_is_used(shipped: EncodecModel) -> None:
    # As in the card, on fewer tracks: 33 of 15 s name more than 80 % of each codebook's 1024 entries.
    quality = measure_codec(shipped, [torch.from_numpy(make_track(HELD_OUT, i, 15.36).audio[0]) for i in range(33)])
    assert min(quality.used) > 0.8
    assert min(quality.perplexity) > 300
    assert quality.si_sdr > 4
    assert quality.mel_distance < 5


def test_the_round_trip_is_the_music(shipped: EncodecModel) -> None:
    for index, style in enumerate(("house", "rock", "folk")):
        track = make_track(401, index, 16.0, style=style, brightness="dark")
        audio = torch.from_numpy(track.audio)[None]
        decoded = shipped(audio).audio_values[0, 0].detach().numpy()
        assert si_sdr(audio[0, 0], torch.from_numpy(decoded)) > 3
        assert hearing.key(decoded) == (track.metadata["key"], track.metadata["mode"])
        assert hearing.tempo(decoded) == pytest.approx(hearing.tempo(track.audio[0]), rel=0.03)


# The codec as it is written


def test_the_encoder_is_a_cosine_transform() -> None:
    codec = EncodecModel(demo_codec_config()).eval()
    weights = torch.linspace(0.5, 2, MDCT_BANDS)
    write_transform(codec, weights, torch.ones(LOUDNESS_GROUPS))
    audio = 0.3 * clip(2, 3.0)
    latents = encoder_outputs(codec, [audio])[:, :MDCT_BANDS]
    # Frame t's window starts 40 samples into the reach of its 16 blocks, which start 368 samples before it.
    start = 368 - 40
    padded = torch.nn.functional.pad(audio.double(), (start, 2 * CODEC_HOP))
    samples = np.arange(2 * CODEC_HOP) + 0.5
    waves = np.cos(np.pi / CODEC_HOP * (samples[:, None] + CODEC_HOP / 2) * (np.arange(MDCT_BANDS) + 0.5))
    expected = np.sqrt(2 / CODEC_HOP) * np.sin(np.pi * samples / 2 / CODEC_HOP)[:, None] * waves
    frames = padded.unfold(0, 2 * CODEC_HOP, CODEC_HOP)[: len(latents)].numpy() @ expected
    inside = slice(2, -3)
    assert si_sdr(torch.from_numpy(frames)[inside].flatten(), (latents / weights).double()[inside].flatten()) > 25


def test_the_decoder_inverts_the_encoder_where_it_keeps_phases() -> None:
    codec = EncodecModel(demo_codec_config()).eval()
    # So loud a loudest that these sines have none in the groups above.
    write_transform(codec, torch.linspace(2, 0.5, MDCT_BANDS), torch.full((LOUDNESS_GROUPS,), 1e3))
    time = torch.arange(32_000) / 32_000
    frequencies = torch.tensor([110.0, 440.0, 700.0, 950.0])
    audio = 0.05 * torch.sin(2 * math.pi * frequencies[:, None] * time).sum(0)
    with torch.no_grad():
        decoded = codec.decoder(codec.encoder(audio.view(1, -1, 1)))[0, :, 0]
    assert si_sdr(audio[2000:-2000], decoded[2000:-2000]) > 20


def test_above_the_decoder_makes_noise_as_loud() -> None:
    codec = EncodecModel(demo_codec_config()).eval()
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(64_000, generator=generator)
    spectrum = torch.fft.rfft(noise)
    spectrum[: 64_000 * 2000 // 32_000] = 0
    noise = torch.fft.irfft(spectrum)
    write_transform(codec, torch.ones(MDCT_BANDS), torch.full((LOUDNESS_GROUPS,), 8.0))
    for gain in (1.0, 0.1, 0.03):
        with torch.no_grad():
            decoded = codec.decoder(codec.encoder(gain * noise.view(1, -1, 1)))[0, :, 0]
        # Within 3 dB over a range of 30.
        assert 0.7 < float(decoded.std() / (gain * noise).std()) < 1.4, gain


def test_codebooks_have_parts_of_their_own(written: EncodecModel) -> None:
    for layer, (first, last) in zip(written.quantizer.layers, CODEBOOK_PARTS, strict=True):
        outside = layer.codebook.embed.clone()
        outside[:, first:last] = 0
        assert torch.all(outside == 0)
    # So each code is the nearest entry in its part, whatever the codes before it.
    latents = encoder_outputs(written, [clip(5)])
    codes = written.encode(clip(5)[None, None]).audio_codes[0, 0]
    for layer, (first, last), row in zip(written.quantizer.layers, CODEBOOK_PARTS, codes, strict=True):
        expected = torch.cdist(latents[:, first:last], layer.codebook.embed[:, first:last]).argmin(1)
        assert (row == expected).float().mean() > 0.999


def test_too_little_music_for_the_codebooks() -> None:
    with pytest.raises(
        ValueError,
        match="200 frames of audio are too few for codebooks of 1024 entries; give 3072 or more, which are 61 s",
    ):
        make_codec([clip(0)], 0)


def test_untrained_it_is_the_music_already(written: EncodecModel) -> None:
    audio = clip(21, 8.0)
    decoded = written(audio[None, None]).audio_values[0, 0].detach()
    assert mel_distance(audio, decoded) < 9
    silence = written(torch.zeros(1, 1, 6400))
    assert torch.all(silence.audio_codes == 0)
    assert silence.audio_values.abs().max() < 1e-6


def test_the_window_is_orthonormal_with_its_neighbours() -> None:
    hop = 10
    window = mdct_window(hop)
    three = torch.zeros(4 * hop, 3 * hop, dtype=torch.float64)
    for frame in range(3):
        three[frame * hop : (frame + 2) * hop, frame * hop : (frame + 1) * hop] = window
    torch.testing.assert_close(three.t() @ three, torch.eye(3 * hop, dtype=torch.float64))


# Its parts, against computations by hand


def test_clusters_are_means_of_what_is_nearest() -> None:
    torch.manual_seed(1)
    data = torch.randn(300, 3)
    found = kmeans(data, 7, 60, torch.Generator().manual_seed(5))
    members = torch.cdist(data, found).argmin(1)
    torch.testing.assert_close(found, torch.stack([data[members == entry].mean(0) for entry in range(7)]))


def test_entries_that_nothing_is_near_to_move() -> None:
    # Two places for three entries: with equal draws one of them would stay unused.
    data = torch.tensor([[0.0], [0.0], [0.0], [5.0]]).repeat(20, 1)
    assert set(kmeans(data, 3, 9, torch.Generator().manual_seed(0)).flatten().tolist()) == {0.0, 5.0}


def test_nearest_by_brute_force() -> None:
    torch.manual_seed(2)
    data, entries = torch.randn(1301, 7), torch.randn(11, 7)
    assert torch.equal(nearest_entries(data, entries), torch.cdist(data, entries).argmin(1))


def test_si_sdr_by_hand() -> None:
    reference = torch.tensor([1.0, 0.0, 2.0, 0.0])
    noise = torch.tensor([0.0, 0.5, 0.0, 0.0])
    assert si_sdr(reference, 3 * (reference + noise)) == pytest.approx(10 * math.log10(5 / 0.25))


def test_mel_distance_of_a_gain_is_that_gain() -> None:
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(4)) * 0.1
    assert mel_distance(noise, noise) == 0
    assert mel_distance(noise, 0.5 * noise) == pytest.approx(20 * math.log10(2), abs=1e-3)


def test_the_round_trip_can_be_heard_and_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--tracks", "2"])
    printed = capsys.readouterr().out
    assert "si_sdr" in printed
    quality = json.loads((tmp_path / "quality.json").read_text())
    assert quality["frames"] == 2 * 768
    before, rate = soundfile.read(tmp_path / "track-00001-before.wav")
    after, _ = soundfile.read(tmp_path / "track-00001-after.wav")
    assert (rate, len(before)) == (32_000, len(after))
    assert np.allclose(before, make_track(202, 1, 15.36).audio[0], atol=2**-15)
    assert (tmp_path / "track-00001.png").read_bytes().startswith(b"\x89PNG")
