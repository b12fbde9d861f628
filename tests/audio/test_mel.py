"""Log-mel spectrograms against a plain numpy one, and PNG files read back by hand."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch

from musicgen_train.audio.mel import log_mel, mel_picture, mel_settings


def sine(frequency: float, rate: int, seconds: float, amplitude: float = 1.0) -> torch.Tensor:
    return amplitude * torch.sin(2 * torch.pi * frequency * torch.arange(int(rate * seconds)) / rate)


def numpy_log_mel(audio: np.ndarray, rate: int, window: int, hop: int, bands: int) -> np.ndarray:
    """The definition, frame by frame and band by band."""
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
    """Indices `(height, width)` and palette `(colours, 3)` of a PNG with 8-bit palette and no row filters."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + content),)
        chunks[kind] = content
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 3, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:], np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)


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
