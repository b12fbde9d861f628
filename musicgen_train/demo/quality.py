"""How good a codec is: measures of its round trip and of the use of its codebooks.

Axis letters: B batch, K codebooks, T frames, V codes of a codebook, M mel bands, N frequencies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from musicgen_train.audio.analysis import onset_strength
from musicgen_train.demo.codec import batches
from musicgen_train.demo.corpus import Track
from musicgen_train.demo.hearing import Hearing, key_is_relative, tempo_is_near
from musicgen_train.demo.synthesis import SAMPLE_RATE
from musicgen_train.models.codec.encodec import EncodecModel

_WINDOW, _HOP, _BANDS = 2048, 512, 80
_FLOOR = 1e-5  # of a mel band's magnitude; 100 dB below full scale


@dataclass(frozen=True)
class CodecQuality:
    """What a round trip does to held-out audio.

    Args:
        si_sdr: scale-invariant signal-to-distortion ratio in dB, over all clips together.
        mel_distance: mean absolute difference of log mel spectrograms in dB.
        used: for each codebook, the share of its entries that occur.
        perplexity: for each codebook, e to the entropy of its codes: how many equally frequent ones that would be.
        frames: how many frames were coded.
    """

    si_sdr: float
    mel_distance: float
    used: list[float]
    perplexity: list[float]
    frames: int


@torch.no_grad()
def measure(codec: EncodecModel, audio: Sequence[torch.Tensor]) -> CodecQuality:
    """Code and decode clips, each float32 `(samples,)`."""
    codes_BKT, decoded = [], []
    for rows in batches(audio):
        output = codec(rows, bandwidth=codec.config.target_bandwidths[-1])
        codes_BKT.append(output.audio_codes[0])
        decoded += list(output.audio_values[:, 0])
    codes = torch.cat([codes.transpose(0, 1).flatten(1) for codes in codes_BKT], dim=1)
    counts = [torch.bincount(row, minlength=codec.config.codebook_size) for row in codes]
    distances = [mel_distance(before, after) for before, after in zip(audio, decoded, strict=True)]
    return CodecQuality(
        si_sdr=si_sdr(torch.cat(list(audio)), torch.cat(decoded)),
        mel_distance=sum(distances) / len(distances),
        used=[float((count > 0).float().mean()) for count in counts],
        perplexity=[_perplexity(count) for count in counts],
        frames=codes.shape[1],
    )


def codec_quality(codec: EncodecModel, tracks: Sequence[Track]) -> dict[str, Any]:
    """The fields of `CodecQuality` and of `survival` for tracks of the corpus, mono."""
    quality = measure(codec, [torch.from_numpy(track.audio[0]) for track in tracks])
    return {**dataclasses.asdict(quality), **survival(codec, tracks)}


@torch.no_grad()
def survival(codec: EncodecModel, tracks: Sequence[Track]) -> dict[str, float]:
    """What of the music an analysis still hears after a round trip.

    Returns:
        Shares of tracks of which the same is heard before and after: `tempo_kept` within 4 %, `key_kept` (tonic and
        mode), `relative_key_kept` (or the key with the same notes), `drums_kept`, `brightness_kept`; and
        `onset_correlation`, that of how much louder it gets at each moment, the mean over tracks.
    """
    hearing = Hearing.load()
    kept = dict.fromkeys(("tempo_kept", "key_kept", "relative_key_kept", "drums_kept", "brightness_kept"), 0.0)
    correlation = 0.0
    for track in tracks:
        before_CS = torch.from_numpy(track.audio[:1])
        after_CS = codec(before_CS[None], bandwidth=codec.config.target_bandwidths[-1]).audio_values[0]
        before, after = (hearing.hear(audio_CS, SAMPLE_RATE) for audio_CS in (before_CS, after_CS))
        kept["tempo_kept"] += tempo_is_near(before["bpm"], after["bpm"])
        kept["key_kept"] += (before["key"], before["mode"]) == (after["key"], after["mode"])
        kept["relative_key_kept"] += key_is_relative(before, after)
        kept["drums_kept"] += before["drums"] == after["drums"]
        kept["brightness_kept"] += before["brightness"] == after["brightness"]
        rises = torch.stack([onset_strength(audio_CS, SAMPLE_RATE).sum(0) for audio_CS in (before_CS, after_CS)])
        correlation += float(torch.corrcoef(rises)[0, 1])
    return {
        **{name: count / len(tracks) for name, count in kept.items()},
        "onset_correlation": correlation / len(tracks),
    }


def si_sdr(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., "SDR - half-baked or well done?", 2019).

    Args:
        reference: `(samples,)`.
        estimate: of the same shape.
    """
    reference, estimate = reference.double(), estimate.double()
    target = reference * (estimate @ reference) / (reference @ reference).clamp_min(1e-20)
    distortion = estimate - target
    return 10 * math.log10(float(target @ target + 1e-20) / float(distortion @ distortion + 1e-20))


def mel_distance(reference: torch.Tensor, estimate: torch.Tensor, sampling_rate: int = 32_000) -> float:
    """Mean absolute difference in dB between log mel spectrograms of two signals `(samples,)`."""
    return float((_log_mel(reference, sampling_rate) - _log_mel(estimate, sampling_rate)).abs().mean())


def _log_mel(audio: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(audio, _WINDOW, _HOP, window=window, pad_mode="constant", return_complex=True)
    magnitudes = mel_bands(_BANDS, _WINDOW // 2 + 1, sampling_rate) @ (spectrum.abs() / window.sum())
    return 20 * magnitudes.clamp_min(_FLOOR).log10()


def mel_bands(bands: int, frequencies: int, sampling_rate: int) -> torch.Tensor:
    """Triangles that are evenly spaced in mel (2595 log10(1 + f / 700)), each summing to one; `(M, N)`."""
    top = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    frequency = torch.linspace(0, sampling_rate / 2, frequencies, dtype=torch.float64)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = torch.minimum((frequency - low) / (middle - low), (high - frequency) / (high - middle)).clamp_min(0)
    # The lowest bands may fall between two frequencies; they then hear the nearest one.
    empty = triangles.sum(1) == 0
    nearest = (frequency - middle).abs().argmin(1)
    triangles[empty, nearest[empty]] = 1.0
    return (triangles / triangles.sum(1, keepdim=True)).float()


def _perplexity(counts: torch.Tensor) -> float:
    shares = counts[counts > 0].double() / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))
