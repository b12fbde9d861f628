"""The built-in embedder, and how others take its place."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from musicgen_train.audio.mel import log_mel
from musicgen_train.evaluation.tables import frechet_table
from musicgen_train.metrics.embedders import LogMelStatistics, embed_clips, load_embedder, metric_key

RATE = 16_000


def notes(pitch: float, seconds: float = 3.0, rate: int = RATE, seed: int = 0) -> torch.Tensor:
    """Decaying harmonic tones, four a second, at pitches around `pitch`."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(rate // 4) / rate
    parts = []
    for _ in range(int(4 * seconds)):
        frequency = pitch * 2 ** (torch.randint(0, 12, (), generator=generator) / 12)
        tone = sum(torch.sin(2 * torch.pi * frequency * k * time) / k for k in range(1, 6))
        parts.append(0.2 * tone * torch.exp(-8 * time))
    return torch.cat(parts)[None]


def test_first_statistics_by_hand() -> None:
    audio = torch.randn(1, RATE)
    embedded = LogMelStatistics().embed(audio)
    decibels = log_mel(audio, RATE, bands=64)[0].clamp(min=-80) / 10
    bands, frames = decibels.shape
    # Coefficient 1 of an orthonormal DCT-II, over one window: 62 frames of 16 ms are one second.
    angles = torch.pi * (torch.arange(bands) + 0.5) / bands
    coefficient = (2 / bands) ** 0.5 * (torch.cos(angles)[:, None] * decibels).sum(dim=0)[:62]
    assert frames == 63
    assert embedded.shape == (1, 60)
    torch.testing.assert_close(embedded[0, 1], coefficient.mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedded[0, 21], coefficient.std(correction=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedded[0, 41], coefficient.diff().abs().mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("seconds", "windows"), [(0.01, 1), (0.5, 1), (1.0, 1), (1.6, 2), (3.0, 5)])
def test_number_of_windows(seconds: float, windows: int) -> None:
    embedded = LogMelStatistics().embed(torch.randn(2, int(seconds * RATE)))
    assert embedded.shape == (windows, 60)
    assert embedded.isfinite().all()


def test_it_is_deterministic_and_mixes_channels() -> None:
    audio = notes(220)
    first = LogMelStatistics().embed(audio)
    assert torch.equal(first, LogMelStatistics().embed(audio))
    torch.testing.assert_close(first, LogMelStatistics().embed(torch.cat([audio * 2, audio * 0])))


def test_what_is_alike_is_near() -> None:
    clips = {
        "same pitches": [notes(220, seed=seed) for seed in range(10, 16)],
        "two octaves up": [notes(880, seed=seed) for seed in range(20, 26)],
    }
    table = frechet_table(LogMelStatistics(), [notes(220, seed=seed) for seed in range(6)], clips, RATE, "six clips")
    distances = {row.label: row.values["distance"] or 0.0 for row in table.rows}
    assert list(distances) == ["same pitches", "two octaves up", "white noise", "silence"]
    assert 5 * distances["same pitches"] < distances["two octaves up"] < distances["white noise"]
    assert 5 * distances["same pitches"] < distances["silence"]
    assert distances["silence"] != pytest.approx(distances["white noise"], rel=0.1)
    assert table.key == "frechet_audio_distance/log-mel-statistics-v1"
    assert any("too high" in finding for finding in table.findings)


def test_a_set_is_at_no_distance_from_itself() -> None:
    clips = [notes(330, seed=seed) for seed in range(3)]
    table = frechet_table(LogMelStatistics(), clips, {"itself": clips}, RATE, "three clips")
    assert table.rows[0].values["distance"] == pytest.approx(0, abs=1e-6)
    assert table.rows[0].values["windows"] == 15


def test_clips_are_resampled() -> None:
    at_32_khz, expected = notes(220, rate=32_000), LogMelStatistics().embed(notes(220))
    embedded = embed_clips(LogMelStatistics(), [at_32_khz, at_32_khz], 32_000)
    assert embedded.shape == (2 * len(expected), 60)
    # Resampling touches what is near the end of the band only.
    torch.testing.assert_close(embedded[: len(expected), 0], expected[:, 0], rtol=0.05, atol=0.5)


class Loudness:
    """An embedder of somebody else's."""

    name, version, sampling_rate = "loudness", "2026-11", 8_000

    def embed(self, audio_CS: torch.Tensor) -> torch.Tensor:
        return audio_CS.square().mean(dim=1, keepdim=True)


def test_an_embedder_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys")
    module.Loudness = Loudness  # type: ignore[attr-defined]
    module.Wrong = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys", module)
    embedder = load_embedder("somebodys:Loudness")
    assert metric_key(embedder) == "frechet_audio_distance/loudness-v2026-11"
    assert embed_clips(embedder, [torch.ones(2, 800)], 8_000).tolist() == [[1.0], [1.0]]
    assert isinstance(load_embedder("log-mel-statistics"), LogMelStatistics)
    with pytest.raises(ValueError, match="it has no name, version, sampling_rate, embed"):
        load_embedder("somebodys:Wrong")
    with pytest.raises(ValueError, match="cannot be loaded: module 'somebodys' has no attribute 'Missing'"):
        load_embedder("somebodys:Missing")
    with pytest.raises(ValueError, match="cannot be loaded: No module named 'nobodys'"):
        load_embedder("nobodys:Missing")
    with pytest.raises(ValueError, match="there is no embedder 'vggish'; give 'log-mel-statistics' or module:Class"):
        load_embedder("vggish")


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no clips to embed"):
        embed_clips(LogMelStatistics(), [], RATE)

    class OneVector(Loudness):
        def embed(self, audio_CS: torch.Tensor) -> torch.Tensor:
            return audio_CS[0]

    with pytest.raises(ValueError, match=r"gave \[800\]; expected \(windows, width\)"):
        embed_clips(OneVector(), [torch.ones(1, 800)], 8_000)
