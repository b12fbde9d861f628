"""Plain signal analysis, to hear what is in a recording without asking the code that made it.

Axis letters: T frames, N frequencies. Audio is float, `(samples,)` at 32 kHz.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

RATE = 32_000
KEYS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
HOP = 320

# How much each step above the tonic belongs to a key: the tonic chord most, then the rest of the scale.
TEMPLATES = {
    "major": np.array([4, 0, 2, 0, 3, 2, 0, 3, 0, 2, 0, 2.0]),
    "minor": np.array([4, 0, 2, 3, 0, 2, 0, 3, 2, 0, 1, 1.5]),
}

Array = np.ndarray[Any, Any]


def spectrogram(audio: Array, size: int, hop: int) -> Array:
    """Magnitudes `(T, N)`."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(audio, size // 2), size)[::hop]
    return np.abs(np.fft.rfft(windows * np.hanning(size), axis=1))


def rises(audio: Array) -> Array:
    """How much louder it gets at each frame, in four bands of frequency, `(4, T)`."""
    frames = np.log1p(30 * spectrogram(audio, 1024, HOP))
    louder = np.maximum(np.diff(frames, axis=0), 0)
    edges = (0, 6, 20, 80, 513)
    return np.stack([louder[:, low:high].sum(1) for low, high in itertools.pairwise(edges)])


def tempo(audio: Array) -> float:
    """Beats per minute: the period at which the rises repeat, with its multiples, near 120 if in doubt."""
    bands = rises(audio)
    total = np.zeros(bands.shape[1])
    for band in bands:
        band = band - band.mean()
        size = 1 << (2 * len(band) - 1).bit_length()
        correlation = np.fft.irfft(np.abs(np.fft.rfft(band, size)) ** 2, size)[: len(band)]
        correlation /= np.arange(len(band), 0, -1)
        total += correlation / (correlation[0] + 1e-9)
    candidates = np.arange(55, 165, 0.5)
    periods = 60 * RATE / HOP / candidates
    lags = np.arange(len(total))
    score = sum(
        weight * np.interp(periods * times, lags, total) for times, weight in ((0.5, 0.3), (1, 1), (2, 0.7), (4, 0.7))
    )
    return float(candidates[np.argmax(score * np.exp(-0.5 * (np.log2(candidates / 120) / 0.6) ** 2))])


def key(audio: Array) -> tuple[str, str]:
    """Tonic and mode whose template fits the pitch classes of the spectral peaks best."""
    size = 8192
    frequency = np.fft.rfftfreq(size, 1 / RATE)
    heard = (frequency > 45) & (frequency < 1000)
    frames = spectrogram(audio, size, 1600)[:, heard]
    peaks = np.zeros_like(frames)
    middle = frames[:, 1:-1]
    peaks[:, 1:-1] = np.where((middle > frames[:, :-2]) & (middle > frames[:, 2:]), middle, 0)
    # Each frame counts the same, however loud.
    weight = (peaks / (peaks.sum(1, keepdims=True) + 1e-9)).sum(0)
    classes = np.round(69 + 12 * np.log2(frequency[heard] / 440)).astype(int) % 12
    chroma = np.array([weight[classes == pitch].sum() for pitch in range(12)])
    fits = [
        (np.corrcoef(np.roll(template, tonic), chroma)[0, 1], KEYS[tonic], mode)
        for mode, template in TEMPLATES.items()
        for tonic in range(12)
    ]
    _, tonic, mode = max(fits)
    return tonic, mode


def brightness(audio: Array) -> float:
    """Mean frequency of the spectrum, in Hz."""
    mean = spectrogram(audio, 2048, 1024).mean(0)
    return float((mean * np.fft.rfftfreq(2048, 1 / RATE)).sum() / mean.sum())


def attack(audio: Array) -> float:
    """How sudden the sounds are: the strongest rises above 2.5 kHz beside the mean level there."""
    return float(np.percentile(rises(audio)[3], 98))
