"""Measures music so that tempo, key and timbre can be judged: repetition of onsets, pitch classes, mel statistics.

Nothing here is learned; `demo/hearing.py` weighs the measurements. All of them mix down to one channel and work at 32
kHz, so that numbers from audio of any sampling rate compare.

Axes: C channels, S samples, B bands, T frames, N frequencies, P pitch classes.
"""

from __future__ import annotations

import math

import torch

from musicgen_train.audio.io import resample
from musicgen_train.audio.mel import log_mel

SAMPLING_RATE = 32_000
"""All audio is resampled to this rate, in Hz, before it is measured."""
SHORTEST_SECONDS = 2.0
"""Shorter audio cannot be analysed: this is two beats of slow music."""
SILENCE_DB = -60.0
"""Below this RMS level, in dB of full scale, there is nothing to hear."""

_ONSET_WINDOW, _ONSET_HOP = 1024, 320
ONSET_RATE = SAMPLING_RATE / _ONSET_HOP
"""`onset_strength` returns this many frames per second."""
# The bands of kick and bass; chords; snare and voices; cymbals.
_ONSET_BANDS_HZ = (0.0, 190.0, 625.0, 2500.0, SAMPLING_RATE / 2)
# Amplitudes below 1/2000 of the largest count in proportion, those above by their logarithm, as they are heard.
_COMPRESSION = 2000.0
# A correlation over less music than this says nothing.
_LEAST_OVERLAP_SECONDS = 0.5

_PITCH_WINDOW, _PITCH_HOP = 8192, 3200
# Between the lowest bass note and where harmonics outweigh fundamentals.
_PITCH_LOWEST_HZ, _PITCH_HIGHEST_HZ = 45.0, 1000.0

_TIMBRE_BANDS = 32
_TIMBRE_RANGE_DB = 60.0
_ROLLOFFS = (0.85, 0.95)
TIMBRE_FEATURES = 3 * _TIMBRE_BANDS + 5
"""`timbre` returns this many numbers."""
LEVEL = TIMBRE_FEATURES - 1
"""Index of the level among them, the only number that gain changes."""


def level_db(audio_CS: torch.Tensor) -> float:
    """Return the RMS over all channels and samples in dB of full scale; -120 for digital silence.

    Args:
        audio_CS: `(channels, samples)`, full scale 1.
    """
    return 10 * math.log10(max(1e-12, audio_CS.double().square().mean().item()))


def onset_strength(audio_CS: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Measure how much louder it gets at each moment, in four bands.

    This is the flux of a compressed spectrogram (Bello et al., "A tutorial on onset detection in music signals", 2005).

    Args:
        audio_CS: `(channels, samples)`, full scale 1, at least `SHORTEST_SECONDS` long.
        sampling_rate: in Hz.

    Returns:
        float64 `(bands, frames)`, `ONSET_RATE` frames a second; bands end at 190, 625, 2500 and 16000 Hz.

    Raises:
        ValueError: the audio is too short or not finite.
    """
    audio_S = _mono(audio_CS, sampling_rate)
    amplitude_NT = _amplitudes(audio_S, _ONSET_WINDOW, _ONSET_HOP)
    # Relative to the loudest amplitude, so that gain does not matter.
    loudness_NT = torch.log1p(_COMPRESSION * amplitude_NT / amplitude_NT.max().clamp_min(1e-9))
    rises_NT = loudness_NT.diff(dim=1).clamp_min(0)
    frequency_N = _frequencies(_ONSET_WINDOW)
    # The upper end belongs to the last band.
    band_N = torch.bucketize(frequency_N, torch.tensor(_ONSET_BANDS_HZ[1:-1], dtype=torch.float64))
    strength_BT = rises_NT.new_zeros(len(_ONSET_BANDS_HZ) - 1, rises_NT.shape[1])
    return strength_BT.index_add_(0, band_N, rises_NT)


def onset_repetition(audio_CS: torch.Tensor, sampling_rate: int, seconds: torch.Tensor) -> torch.Tensor:
    """Measure how similar the onsets of a recording are to themselves some time later.

    Args:
        audio_CS, sampling_rate: as for `onset_strength`.
        seconds: the times (lags), float64 of any shape.

    Returns:
        float64 of the same shape: the autocorrelation of the onset strength at these times, in each band 1 at zero and
        about 0 where nothing repeats, summed over the bands; 0 at times for which the recording is too short.
    """
    strength_BT = onset_strength(audio_CS, sampling_rate)
    strength_BT = strength_BT - strength_BT.mean(dim=1, keepdim=True)
    frames = strength_BT.shape[1]
    size = 1 << (2 * frames - 1).bit_length()
    correlation_BT = torch.fft.irfft(torch.fft.rfft(strength_BT, size).abs().square(), size)[:, :frames]
    overlap_T = torch.arange(frames, 0, -1, dtype=torch.float64)
    correlation_BT = correlation_BT / overlap_T
    relative_T = (correlation_BT / (correlation_BT[:, :1] + 1e-9)).sum(dim=0)
    relative_T[overlap_T < _LEAST_OVERLAP_SECONDS * ONSET_RATE] = 0.0
    lag = (seconds * ONSET_RATE).clamp(0, frames - 1)
    before = lag.floor().long().clamp_max(frames - 2)
    return torch.lerp(relative_T[before], relative_T[before + 1], lag - before)


def pitch_classes(audio_CS: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Measure how much each pitch class sounds.

    These are the amplitudes of spectral peaks between 45 and 1000 Hz, in equal temperament at A = 440 Hz. Every moment
    counts the same, however loud. The idea is Fujishima's ("Realtime chord recognition of musical sound", 1999); peaks
    in place of bins keep percussion out.

    Args:
        audio_CS: `(channels, samples)`, at least `SHORTEST_SECONDS` long.
        sampling_rate: in Hz.

    Returns:
        float64 `(12,)` from C to B, summing to 1; all equal for silence.

    Raises:
        ValueError: the audio is too short or not finite.
    """
    magnitude_NT = _amplitudes(_mono(audio_CS, sampling_rate), _PITCH_WINDOW, _PITCH_HOP)
    log_NT = (magnitude_NT + 1e-12).log()
    below, middle, above = log_NT[:-2], log_NT[1:-1], log_NT[2:]
    is_peak = (middle > below) & (middle >= above) & (magnitude_NT[1:-1] > 1e-7)
    # A peak is the top of the parabola through three bins: low notes are less than a bin apart.
    curvature = torch.where(is_peak, below - 2 * middle + above, -1.0)
    offset = (0.5 * (below - above) / curvature).clamp(-0.5, 0.5)
    frequency = (torch.arange(1, len(log_NT) - 1)[:, None] + offset) * SAMPLING_RATE / _PITCH_WINDOW
    heard = is_peak & (frequency > _PITCH_LOWEST_HZ) & (frequency < _PITCH_HIGHEST_HZ)
    weight = torch.where(heard, magnitude_NT[1:-1], 0.0)
    weight = weight / weight.sum(dim=0, keepdim=True).clamp_min(1e-9)
    pitch = (69 + 12 * (frequency.clamp_min(1.0) / 440).log2()).round().long() % 12
    profile_P = torch.zeros(12, dtype=torch.float64).index_add_(0, pitch.flatten(), weight.flatten())
    total = profile_P.sum()
    return profile_P / total if total > 0 else torch.full((12,), 1 / 12, dtype=torch.float64)


def timbre(audio_CS: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Describe what a recording sounds like as a whole, in 101 numbers that hardly depend on time and pitch.

    Args:
        audio_CS: `(channels, samples)`, full scale 1, at least `SHORTEST_SECONDS` long.
        sampling_rate: in Hz.

    Returns:
        float64 `(TIMBRE_FEATURES,)`: for each of 32 mel bands the mean level, its standard deviation over time and its
        mean rise from frame to frame, in dB, with the loudest moment of all at 0 and nothing below -60; then octaves
        above 1 Hz of the spectrum's centroid by power, by amplitude, and of the frequencies below which 85 % and 95 %
        of the power lie; and the level in dB of full scale.

    Raises:
        ValueError: the audio is too short or not finite.
    """
    audio_S = _mono(audio_CS, sampling_rate)
    mel_BT = log_mel(audio_S[None], SAMPLING_RATE, bands=_TIMBRE_BANDS)[0].double()
    mel_BT = (mel_BT - mel_BT.max()).clamp_min(-_TIMBRE_RANGE_DB)
    rises_B = mel_BT.diff(dim=1).clamp_min(0).mean(dim=1)
    power_N = _amplitudes(audio_S, _ONSET_WINDOW, _ONSET_HOP).square().mean(dim=1) + 1e-20
    frequency_N = _frequencies(_ONSET_WINDOW)
    centroids = [(frequency_N * weight_N).sum() / weight_N.sum() for weight_N in (power_N, power_N.sqrt())]
    below_N = power_N.cumsum(0) / power_N.sum()
    rolloffs = [frequency_N[int((below_N < share).sum())] for share in _ROLLOFFS]
    octaves = torch.stack([*centroids, *rolloffs]).clamp_min(1.0).log2()
    level = torch.tensor([level_db(audio_CS)], dtype=torch.float64)
    return torch.cat([mel_BT.mean(dim=1), mel_BT.std(dim=1, correction=0), rises_B, octaves, level])


def _mono(audio_CS: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    if audio_CS.dim() != 2 or audio_CS.shape[1] < SHORTEST_SECONDS * sampling_rate:
        raise ValueError(
            f"audio is {list(audio_CS.shape)} at {sampling_rate} Hz; expected (channels, samples) and at least "
            f"{SHORTEST_SECONDS:g} s"
        )
    if not audio_CS.isfinite().all():
        raise ValueError("audio holds samples that are NaN or infinite")
    return resample(audio_CS.float().mean(dim=0, keepdim=True), sampling_rate, SAMPLING_RATE)[0]


def _amplitudes(audio_S: torch.Tensor, size: int, hop: int) -> torch.Tensor:
    """Return the magnitude spectrogram, float64 `(frequencies, frames)`; a sine of amplitude 1 has a peak of 1."""
    window = torch.hann_window(size, dtype=torch.float64)
    spectrum = torch.stft(audio_S.double(), size, hop, window=window, pad_mode="constant", return_complex=True)
    return spectrum.abs() / (window.sum() / 2)


def _frequencies(size: int) -> torch.Tensor:
    return torch.arange(size // 2 + 1, dtype=torch.float64) * SAMPLING_RATE / size
