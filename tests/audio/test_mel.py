"""Tests log-mel spectrograms and their pictures against plain numpy ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from musicgen_train.audio.mel import log_mel, mel_picture, mel_settings


def sine(frequency: float, rate: int, seconds: float, amplitude: float = 1.0) -> torch.Tensor:
    return amplitude * torch.sin(2 * torch.pi * frequency * torch.arange(int(rate * seconds)) / rate)


def numpy_log_mel(audio: np.ndarray, rate: int, window: int, hop: int, bands: int) -> np.ndarray:
    """Compute the definition, frame by frame and band by band."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(audio, window // 2)
    edges_mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), bands + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    bins = np.arange(window // 2 + 1) * rate / window
    frames = []
    for start in range(0, len(audio) + 1, hop):
        power = np.abs(np.fft.rfft(padded[start : start + window] * hann) / (hann.sum() / 2)) ** 2
        values = []
        for low, centre, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
            triangle = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(min=0)
            values.append((triangle * power).sum())
        frames.append(values)
    return 10 * np.log10(np.maximum(np.array(frames).T, 1e-10))


@pytest.mark.parametrize("rate", [320, 16_000, 32_000])
def test_it_is_the_definition(rate: int) -> None:
    audio = torch.randn(2, rate // 3 + 7) * 0.1
    settings = mel_settings(rate)
    expected = np.stack([numpy_log_mel(channel, rate, *settings) for channel in audio.double().numpy()])
    ours = log_mel(audio, rate)
    assert ours.shape == (2, settings.bands, audio.shape[1] // settings.hop + 1)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("rate", [320, 8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_no_band_is_empty_at_any_rate(rate: int) -> None:
    # torchaudio warns of an empty band, and warnings are errors here.
    assert log_mel(torch.rand(1, 3 * mel_settings(rate).window) - 0.5, rate).amax(dim=(0, 2)).min() > -60


def test_settings_at_32_khz() -> None:
    assert mel_settings(32_000) == (2048, 512, 96)


def test_levels_and_pitch() -> None:
    rate = 32_000
    loud = log_mel(sine(1000, rate, 0.5)[None], rate)[0, :, 5:-5].mean(dim=1)
    quiet = log_mel(sine(1000, rate, 0.5, amplitude=0.01)[None], rate)[0, :, 5:-5].mean(dim=1)
    assert loud.max().item() == pytest.approx(0, abs=2)
    assert (loud - quiet).max().item() == pytest.approx(40, abs=1e-3)
    # The band whose triangle is around 1 kHz: 1000 mel of 3575 mel in 97 steps.
    centre_mel = (loud.argmax().item() + 1) * 2595 * np.log10(1 + 16_000 / 700) / 97
    assert 700 * (10 ** (centre_mel / 2595) - 1) == pytest.approx(1000, rel=0.03)
    assert log_mel(torch.zeros(1, 500), rate).unique().tolist() == [-100.0]


def read_png(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return indices `(height, width)` and palette `(colours, 3)` of a PNG file."""
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "P")
    return np.asarray(image), np.array(image.getpalette(), np.uint8).reshape(-1, 3)


def test_picture_has_the_pixels_of_the_definition() -> None:
    rate = 16_000
    window, hop, bands = mel_settings(rate)
    audio = torch.randn(2, 40 * hop) * torch.linspace(1e-4, 1, 40 * hop)
    decibels = np.stack([numpy_log_mel(channel, rate, window, hop, bands) for channel in audio.double().numpy()])
    mean = 10 * np.log10((10 ** (decibels / 10)).mean(axis=0))
    # 0 dB is the last colour, -80 dB and less the first, in steps of 1 dB; low bands are at the bottom.
    steps = np.clip(mean + 80, 0, 80)[::-1]
    magma = np.array([[0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100],
                      [251, 135, 97], [254, 194, 135], [252, 253, 191]])  # fmt: skip
    picture = Image.open(io.BytesIO(mel_picture(audio, rate, width=41, height=bands))).convert("RGB")
    colours = np.stack(
        [np.interp(np.round(steps) / 80, np.linspace(0, 1, len(magma)), channel) for channel in magma.T], axis=-1
    )
    # Levels halfway between two steps may go to either.
    clear = np.abs(steps % 1 - 0.5) > 0.01
    assert clear.mean() > 0.9
    assert np.abs(np.asarray(picture)[clear] - colours[clear]).max() <= 0.5 + 1e-4


def test_picture_of_a_tone_after_silence() -> None:
    rate = 32_000
    audio = torch.cat([torch.zeros(rate), sine(500, rate, 1.0)])[None]
    pixels, palette = read_png(mel_picture(audio, rate, width=101, height=48))
    assert pixels.shape == (48, 101)
    assert len(palette) == 81
    assert palette[0].tolist() == [0, 0, 4]
    assert palette[-1].tolist() == [252, 253, 191]
    assert pixels[:, :45].max() == 0
    # 500 Hz is 607 of 3575 mel, from below: row 47 - 8 of 48.
    assert abs(int(pixels[:, 75].argmax()) - 39) <= 1
    assert pixels[:, 75].max() > 70


@pytest.mark.parametrize(("samples", "width", "height"), [(1, 7, 3), (90_000, 640, 160), (5_000, 301, 200)])
def test_picture_has_the_size_asked_for(samples: int, width: int, height: int) -> None:
    pixels, palette = read_png(mel_picture(torch.randn(2, samples), 32_000, width=width, height=height))
    assert pixels.shape == (height, width)
    assert pixels.max() < len(palette)


def test_channels_are_averaged_in_power() -> None:
    one = sine(700, 16_000, 0.4)[None]
    opposite = torch.cat([one, -one])
    assert mel_picture(opposite, 16_000, width=30, height=20) == mel_picture(one, 16_000, width=30, height=20)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"audio is \[5\]; expected \(channels, samples\)"):
        log_mel(torch.zeros(5), 16_000)
    with pytest.raises(ValueError, match=r"audio is \[1, 0\]"):
        log_mel(torch.zeros(1, 0), 16_000)
    with pytest.raises(ValueError, match="sampling rate of 0 Hz"):
        log_mel(torch.zeros(1, 9), 0)
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        mel_picture(torch.zeros(1, 9), 16_000, width=0, height=5)
