"""Simple measurements of a piece of audio, and warnings that say in plain words what is wrong with it.

Axes: C channels, S samples, K codebooks, T frames of codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from musicgen_train.audio.mel import mel_settings

SILENCE_DBFS = -60.0
"""Blocks of audio quieter than this count as silent."""

_LOWEST_DBFS = -120.0
_NOTHING = 1e-12  # a whole spectrum of less power is as good as none
_BLOCK_SECONDS = 0.05
# Steady noise is above 0.85 whatever its colour; the densest music is below 0.5. Drums alone are noise too, but not of
# a steady level.
_NOISE = 0.65
_STEADY_DB = 6.0
_BINS_PER_BAND = 16
# The flatness of many bins of noise, whose powers are exponentially distributed: exp(-Euler's constant).
_FLATNESS_OF_NOISE = 0.5615
_MOSTLY = 0.5
_LOOP_MATCH = 0.98
_LONGEST_LOOP_SECONDS = 4.0


@dataclass(kw_only=True)
class SignalStatistics:
    """Measurements of one sample, taken before it is turned down for the file."""

    peak_dbfs: float
    """The largest sample, in dB of full scale; above 0 it would clip."""
    rms_dbfs: float
    """The mean power, in dB of full scale."""
    silent_share: float
    """Share of 50 ms blocks below -60 dBFS."""
    centroid_hz: float
    """Brightness: the mean frequency, weighted by power; 0 for silence."""
    noisiness: float
    """Near 0 for tones, near 1 for noise of any colour: the spectral flatness within narrow bands and short windows,
    weighted by their power, in relation to that of noise."""
    level_spread_db: float
    """Standard deviation of the level of 50 ms blocks."""
    held_share: float
    """Share of frames whose codes all equal those of the frame before."""
    loop_seconds: float | None
    """The shortest time after which the codes repeat throughout; None where they do not."""
    finite: bool
    """True if no sample is NaN or infinite."""


def measure_signal(
    audio_CS: torch.Tensor, sampling_rate: int, codes_KT: torch.Tensor | None = None, frame_rate: float | None = None
) -> SignalStatistics:
    """Measure one sample.

    Args:
        audio_CS: `(channels, samples)`, full scale 1.
        sampling_rate: in Hz.
        codes_KT: the codes it was made from, if they are known, with their `frame_rate` per second.
        frame_rate: see `codes_KT`.

    Raises:
        ValueError: the audio has not two axes or no samples.
    """
    if audio_CS.dim() != 2 or audio_CS.numel() == 0:
        raise ValueError(f"audio is {list(audio_CS.shape)}; expected (channels, samples), both above 0")
    finite = bool(audio_CS.isfinite().all())
    audio = torch.nan_to_num(audio_CS.detach().cpu().double(), nan=0.0, posinf=0.0, neginf=0.0)
    levels_db = _block_levels(audio, sampling_rate)
    held, loop = (0.0, None) if codes_KT is None or frame_rate is None else _repetition(codes_KT.cpu(), frame_rate)
    return SignalStatistics(
        peak_dbfs=_decibels(audio.abs().max().square().item()),
        rms_dbfs=_decibels(audio.square().mean().item()),
        silent_share=(levels_db < SILENCE_DBFS).double().mean().item(),
        centroid_hz=_centroid(audio, sampling_rate),
        noisiness=_noisiness(audio, sampling_rate),
        level_spread_db=levels_db.std(correction=0).item(),
        held_share=held,
        loop_seconds=loop,
        finite=finite,
    )


def warnings_of(statistics: SignalStatistics) -> list[str]:
    """What is wrong with a sample, in plain words; nothing for an ordinary one."""
    found = []
    if not statistics.finite:
        found.append(
            "This sample holds values that are not numbers (NaN or infinite); they were written as silence. Try "
            "dtype=float32."
        )
    if statistics.rms_dbfs < SILENCE_DBFS:
        return [*found, "This sample is silent."]
    if statistics.silent_share > _MOSTLY:
        found.append(f"{statistics.silent_share:.0%} of this sample is silent.")
    if statistics.noisiness > _NOISE and statistics.level_spread_db < _STEADY_DB:
        found.append(
            f"This sample looks like steady noise: hardly any tones or beats ({statistics.noisiness:.2f} on a scale "
            "where noise is 1 and music below 0.5)."
        )
    if statistics.peak_dbfs > 0:
        found.append(
            f"This sample exceeded full scale by {statistics.peak_dbfs:.1f} dB; it was turned down, so the file does "
            "not clip."
        )
    if statistics.held_share > _MOSTLY:
        found.append(f"This sample hardly changes: {statistics.held_share:.0%} of its frames repeat the one before.")
    elif statistics.loop_seconds is not None:
        found.append(f"This sample is a loop of {statistics.loop_seconds:.2f} s.")
    return found


def _decibels(power: float) -> float:
    return max(_LOWEST_DBFS, 10 * math.log10(power)) if power > 0 else _LOWEST_DBFS


def _block_levels(audio_CS: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Mean power of each block of 50 ms, in dB."""
    blocks = audio_CS.square().mean(dim=0).split(max(1, round(_BLOCK_SECONDS * sampling_rate)))
    return torch.tensor([_decibels(block.mean().item()) for block in blocks], dtype=torch.float64)


def _centroid(audio_CS: torch.Tensor, sampling_rate: int) -> float:
    # Without the constant part, which is no sound.
    power = _powers(audio_CS, sampling_rate).mean(dim=(0, 1))[1:]
    if power.sum() <= _NOTHING:
        return 0.0
    frequencies = torch.arange(1, len(power) + 1, dtype=power.dtype) * sampling_rate / (2 * len(power))
    return ((frequencies * power).sum() / power.sum()).item()


def _noisiness(audio_CS: torch.Tensor, sampling_rate: int) -> float:
    powers = _powers(audio_CS, sampling_rate)[..., 1:]
    width = min(_BINS_PER_BAND, powers.shape[-1])
    bands = powers[..., : powers.shape[-1] // width * width].unflatten(-1, (-1, width))
    means = bands.mean(dim=-1)
    if means.sum() <= _NOTHING:
        return 0.0
    tiny = 1e-12 * means.max()
    geometric = (bands + tiny).log().mean(dim=-1).exp()
    weighted = geometric.sum() / (means + tiny).sum()  # each band's flatness, weighted by its power
    return weighted.item() / _FLATNESS_OF_NOISE


def _powers(audio_CS: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Power spectra of Hann windows that overlap by half, `(channels, windows, bins)`."""
    size = mel_settings(sampling_rate).window
    padded = F.pad(audio_CS, (0, max(0, size - audio_CS.shape[-1])))
    windows = padded.unfold(1, size, size // 2) * torch.hann_window(size, dtype=audio_CS.dtype)
    return torch.fft.rfft(windows).abs().square()


def _repetition(codes_KT: torch.Tensor, frame_rate: float) -> tuple[float, float | None]:
    """The share of frames that equal the one before, and the length of the loop that the codes are, in seconds."""
    frames = codes_KT.shape[1]
    if frames < 2:
        return 0.0, None
    held = (codes_KT[:, 1:] == codes_KT[:, :-1]).all(dim=0).double().mean().item()
    # A loop has to be heard three times to be one.
    for lag in range(1, min(frames // 3, round(_LONGEST_LOOP_SECONDS * frame_rate)) + 1):
        same = (codes_KT[:, lag:] == codes_KT[:, :-lag]).all(dim=0).double().mean().item()
        if same >= _LOOP_MATCH:
            return held, lag / frame_rate
    return held, None
