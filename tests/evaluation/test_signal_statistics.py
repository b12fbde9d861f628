"""Measurements of signals whose values are known, and the warnings they give."""

from __future__ import annotations

import pytest
import torch

from musicgen_train.metrics.signal_statistics import measure_signal, warnings_of

RATE = 8_000


def sine(frequency: float, seconds: float = 1.0, amplitude: float = 0.5) -> torch.Tensor:
    return amplitude * torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * RATE)) / RATE)[None]


def test_a_sine() -> None:
    found = measure_signal(sine(1000), RATE)
    assert found.peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert found.rms_dbfs == pytest.approx(-9.03, abs=0.01)
    assert found.silent_share == 0
    assert found.centroid_hz == pytest.approx(1000, rel=0.01)
    assert found.noisiness < 0.01
    assert found.level_spread_db < 0.1
    assert warnings_of(found) == []


def test_silence() -> None:
    found = measure_signal(torch.zeros(2, 3 * RATE), RATE)
    assert (found.peak_dbfs, found.rms_dbfs, found.silent_share) == (-120.0, -120.0, 1.0)
    assert (found.centroid_hz, found.noisiness, found.level_spread_db) == (0.0, 0.0, 0.0)
    assert warnings_of(found) == ["This sample is silent."]
    assert warnings_of(measure_signal(sine(300, amplitude=5e-4), RATE)) == ["This sample is silent."]


def test_mostly_silent() -> None:
    audio = torch.cat([sine(500, 0.3), torch.zeros(1, int(0.7 * RATE))], dim=1)
    found = measure_signal(audio, RATE)
    assert found.silent_share == pytest.approx(0.7)
    assert warnings_of(found) == ["70% of this sample is silent."]


@pytest.mark.parametrize("rate", [320, RATE, 32_000])
def test_noise(rate: int) -> None:
    found = measure_signal(0.1 * torch.randn(1, 4 * rate), rate)
    assert found.noisiness == pytest.approx(1.1, abs=0.1)
    assert found.centroid_hz == pytest.approx(rate / 4, rel=0.2)
    assert warnings_of(found) == [
        f"This sample looks like steady noise: hardly any tones or beats ({found.noisiness:.2f} on a scale where noise "
        "is 1 and music below 0.5)."
    ]


def test_coloured_noise_is_noise() -> None:
    # An average over 15 samples: most of the power is in the lowest fifteenth of the band.
    dark = torch.nn.functional.avg_pool1d(torch.randn(1, 1, 64_000), 15, 1)[0]
    found = measure_signal(dark, 32_000)
    assert found.centroid_hz < 2000
    assert found.noisiness == pytest.approx(1.05, abs=0.05)


def test_chords_and_drums_are_no_noise() -> None:
    chord = sum(sine(220 * 2 ** (step / 12), 2.0, 0.1) for step in (0, 4, 7))
    noise = 0.05 * torch.randn(1, 2 * RATE)
    assert measure_signal(chord + 0.1 * noise, RATE).noisiness < 0.4
    # Noise in bursts, four a second.
    drums = noise * torch.exp(-20 * (torch.arange(2 * RATE) % (RATE // 4)) / RATE)
    found = measure_signal(drums, RATE)
    assert found.noisiness > 0.9
    assert found.level_spread_db > 10
    assert not any("noise" in warning for warning in warnings_of(found))


def test_too_loud() -> None:
    found = measure_signal(sine(700, amplitude=2.0), RATE)
    assert found.peak_dbfs == pytest.approx(6.02, abs=0.01)
    assert warnings_of(found) == [
        "This sample exceeded full scale by 6.0 dB; it was turned down, so the file does not clip."
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(value: float) -> None:
    audio = sine(700)
    audio[0, 17] = value
    found = measure_signal(audio, RATE)
    assert not found.finite
    assert found.rms_dbfs == pytest.approx(-9.03, abs=0.01)
    assert "not numbers" in warnings_of(found)[0]


def test_held_codes() -> None:
    codes = torch.arange(20).repeat(3, 1)
    codes[:, 5:] = 7
    found = measure_signal(sine(400), RATE, codes, 50)
    assert found.held_share == 14 / 19
    assert warnings_of(found) == ["This sample hardly changes: 74% of its frames repeat the one before."]


def test_a_loop() -> None:
    codes = torch.randint(0, 64, (4, 11)).repeat(1, 5)
    found = measure_signal(sine(400), RATE, codes, 50)
    assert found.loop_seconds == pytest.approx(11 / 50)
    assert warnings_of(found) == ["This sample is a loop of 0.22 s."]
    # One codebook that repeats is no loop.
    half = torch.cat([codes[:1], torch.randint(0, 64, (3, 55))])
    assert measure_signal(sine(400), RATE, half, 50).loop_seconds is None
    # Heard twice is a repeat, not a loop.
    assert measure_signal(sine(400), RATE, codes[:, :22], 50).loop_seconds is None
    assert measure_signal(sine(400), RATE, torch.randint(0, 64, (4, 55)), 50).loop_seconds is None


@pytest.mark.parametrize("samples", [1, 3, 5, 100])
def test_short_audio(samples: int) -> None:
    found = measure_signal(torch.full((1, samples), 0.5), RATE, torch.zeros(4, 1, dtype=torch.long), 50)
    assert found.peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert found.held_share == 0


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"audio is \[7\]"):
        measure_signal(torch.zeros(7), RATE)
