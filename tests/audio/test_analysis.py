"""Tests measurements of signals whose answers are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from musicgen_train.audio.analysis import (
    ONSET_RATE,
    TIMBRE_FEATURES,
    level_db,
    onset_repetition,
    onset_strength,
    pitch_classes,
    timbre,
)

RATE = 32_000


def tones(frequencies: list[float], seconds: float = 3.0, rate: int = RATE, amplitude: float = 0.2) -> torch.Tensor:
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return amplitude * sum(torch.sin(2 * math.pi * f * time) for f in frequencies)[None].float()  # type: ignore[index]


def clicks(period: float, seconds: float = 8.0, rate: int = RATE) -> torch.Tensor:
    """Make short bursts of noise, the first at a quarter of a second."""
    audio = torch.zeros(1, round(seconds * rate))
    burst = 0.5 * torch.randn(rate // 50, generator=torch.Generator().manual_seed(0))
    for start in np.arange(0.25, seconds - 0.1, period):
        place = round(start * rate)
        audio[0, place : place + len(burst)] = burst
    return audio


def noise(seconds: float = 3.0) -> torch.Tensor:
    return 0.1 * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(1))


def test_onsets_are_where_sounds_begin() -> None:
    strength = onset_strength(clicks(0.5, 4.0), RATE)
    assert strength.shape[0] == 4
    assert strength.dtype == torch.float64
    total = strength.sum(0)
    strongest = {round(frame / ONSET_RATE, 1) for frame in total.topk(8).indices.tolist()}
    assert strongest <= {round(0.2 + 0.5 * n + extra, 1) for n in range(8) for extra in (0.0, 0.1)}


def test_onsets_fall_into_the_band_of_their_frequency() -> None:
    for frequency, band in ((100.0, 0), (400.0, 1), (1500.0, 2), (6000.0, 3)):
        audio = tones([frequency], 3.0)
        audio[:, :RATE] = 0
        # A smooth start: a step would be heard in all bands.
        audio[:, RATE : RATE + 3200] *= torch.linspace(0, 1, 3200)
        audio[:, -3200:] *= torch.linspace(1, 0, 3200)
        assert int(onset_strength(audio, RATE).sum(1).argmax()) == band


def test_repetition_is_the_autocorrelation_of_the_onsets() -> None:
    audio = clicks(0.37, 4.0) + noise(4.0)[:, : 4 * RATE]
    strength = onset_strength(audio, RATE).numpy()
    strength = strength - strength.mean(axis=1, keepdims=True)
    lags = [0, 7, 37, 74, 120]
    expected = [
        sum(np.mean(band[lag:] * band[: len(band) - lag]) / np.mean(band * band) for band in strength) for lag in lags
    ]
    found = onset_repetition(audio, RATE, torch.tensor(lags, dtype=torch.float64) / ONSET_RATE)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    halfway = onset_repetition(audio, RATE, torch.tensor([7.5], dtype=torch.float64) / ONSET_RATE)
    neighbours = onset_repetition(audio, RATE, torch.tensor([7.0, 8.0], dtype=torch.float64) / ONSET_RATE)
    assert halfway.item() == pytest.approx(neighbours.mean().item())


@pytest.mark.parametrize("rate", [22_050, 32_000, 48_000])
def test_a_regular_pulse_repeats_after_its_period(rate: int) -> None:
    times = torch.arange(0.2, 0.7, 0.01, dtype=torch.float64)
    repetition = onset_repetition(clicks(0.5, rate=rate), rate, times)
    assert times[repetition.argmax()].item() == pytest.approx(0.5, abs=0.011)
    assert repetition.max() > 3  # of four bands
    assert repetition[10].abs() < 0.5  # 0.3 s


def test_gain_does_not_change_when_onsets_repeat() -> None:
    audio, times = clicks(0.5, 4.0) + noise(4.0), torch.arange(0.2, 1.0, 0.1, dtype=torch.float64)
    torch.testing.assert_close(
        onset_repetition(0.05 * audio, RATE, times), onset_repetition(audio, RATE, times), atol=1e-5, rtol=0
    )


def test_nothing_is_said_of_times_as_long_as_the_recording() -> None:
    assert onset_repetition(clicks(0.5, 3.0), RATE, torch.tensor([2.8], dtype=torch.float64)).item() == 0


def test_pitch_classes_of_a_triad() -> None:
    # C major, E flat major (a third higher in all notes), both a little out of tune.
    c_major = [130.81, 329.63, 392.0]
    for step in (0, 3):
        for cents in (-20, 0, 20):
            audio = tones([f * 2 ** ((step + cents / 100) / 12) for f in c_major])
            profile = pitch_classes(audio, RATE)
            assert profile.sum().item() == pytest.approx(1)
            assert profile[[step, 4 + step, 7 + step]].min() > 0.3


def test_low_notes_a_semitone_apart_are_told_apart() -> None:
    for pitch in range(31, 48):  # G1 to B2: closer than the bins of the transform
        profile = pitch_classes(tones([440 * 2 ** ((pitch - 69) / 12)]), RATE)
        assert int(profile.argmax()) == pitch % 12
        assert profile.max() > 0.9


def test_pitch_classes_do_not_depend_on_level_and_silence_has_none() -> None:
    audio = tones([220.0, 277.18])
    torch.testing.assert_close(pitch_classes(audio, RATE), pitch_classes(0.1 * audio, RATE), atol=1e-3, rtol=0)
    assert pitch_classes(torch.zeros(1, 3 * RATE), RATE).tolist() == [1 / 12] * 12


def test_timbre_of_a_tone_and_of_noise() -> None:
    tone, hiss = timbre(tones([1000.0]), RATE), timbre(noise(), RATE)
    assert tone.shape == hiss.shape == (TIMBRE_FEATURES,)
    power, _, low, high, level = tone[-5:].tolist()
    assert power == pytest.approx(math.log2(1000), abs=0.01)
    assert low == high == pytest.approx(math.log2(1000), abs=0.05)
    assert level == pytest.approx(20 * math.log10(0.2 / math.sqrt(2)), abs=0.01)
    # White noise: half of its power is below 8 kHz, 85 % below 13.6 kHz.
    assert hiss[-5].item() == pytest.approx(math.log2(8000), abs=0.02)
    assert hiss[-3].item() == pytest.approx(math.log2(0.85 * 16_000), abs=0.02)


def test_timbre_but_for_the_level_does_not_depend_on_gain() -> None:
    audio = clicks(0.4, 3.0) + noise()
    torch.testing.assert_close(timbre(0.3 * audio, RATE)[:-1], timbre(audio, RATE)[:-1], atol=1e-3, rtol=1e-5)
    assert (timbre(audio, RATE)[-1] - timbre(0.3 * audio, RATE)[-1]).item() == pytest.approx(10.458, abs=1e-3)


def test_beats_move_and_drones_do_not() -> None:
    drone, beats = timbre(tones([110.0, 220.0]), RATE), timbre(clicks(0.4, 3.0), RATE)
    assert beats[32:64].mean() > 5 * drone[32:64].mean()


def test_levels() -> None:
    assert level_db(torch.full((2, 10), 0.1)) == pytest.approx(-20)
    assert level_db(torch.zeros(1, 10)) == -120


def test_channels_are_mixed() -> None:
    left, right = tones([220.0]), tones([330.0])
    torch.testing.assert_close(pitch_classes(torch.cat([left, right]), RATE), pitch_classes((left + right) / 2, RATE))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(1, RATE), "at least 2 s"),
        (torch.zeros(3 * RATE), r"expected \(channels, samples\)"),
        (torch.full((1, 3 * RATE), math.nan), "NaN or infinite"),
    ],
)
def test_what_cannot_be_analysed(audio: torch.Tensor, message: str) -> None:
    for analyse in (onset_strength, pitch_classes, timbre):
        with pytest.raises(ValueError, match=message):
            analyse(audio, RATE)
