"""Measure a codec on held-out music, and write some of it before and after the round trip to listen to and look at.

    python scripts/demo_model/codec_quality.py OUTPUT

Axis letters: B batch, K codebooks, T frames, V codes of a codebook, C channels, L samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from codec_design import clip_batches

from musicgen_train.audio.analysis import onset_strength
from musicgen_train.audio.io import write_audio
from musicgen_train.audio.mel import log_mel, mel_picture
from musicgen_train.demo.corpus import CorpusTrack, make_track
from musicgen_train.demo.hearing import Hearing, key_is_relative, tempo_is_near
from musicgen_train.demo.small_model import SHIPPED
from musicgen_train.demo.synthesis import SAMPLE_RATE
from musicgen_train.files import write_json
from musicgen_train.models.codec.encodec import EncodecModel

_MEL_BANDS = 80
_GAP = 0.3  # seconds of silence between before and after in a picture
_SHOWN = 6.0  # seconds of each in a picture


@dataclass(frozen=True)
class CodecQuality:
    """What a round trip does to held-out audio.

    Args:
        si_sdr: scale-invariant signal-to-distortion ratio in dB, over all clips together.
        mel_distance: mean absolute difference of log mel spectrograms in dB.
        used: for each codebook, the share of its entries that occur.
        perplexity: for each codebook, e to the entropy of its codes: how many equally frequent ones that would be.
        frames: the number of coded frames.
    """

    si_sdr: float
    mel_distance: float
    used: list[float]
    perplexity: list[float]
    frames: int


@torch.no_grad()
def measure_codec(codec: EncodecModel, audio: Sequence[torch.Tensor]) -> CodecQuality:
    """Encode and decode clips, each float32 `(samples,)` at 32 kHz, and measure what comes back."""
    codes_BKT, decoded = [], []
    for rows in clip_batches(audio):
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


def codec_quality(codec: EncodecModel, tracks: Sequence[CorpusTrack]) -> dict[str, Any]:
    """The fields of `CodecQuality` and the result of `heard_again`, for mono tracks of the corpus."""
    quality = measure_codec(codec, [torch.from_numpy(track.audio[0]) for track in tracks])
    return {**dataclasses.asdict(quality), **heard_again(codec, tracks)}


@torch.no_grad()
def heard_again(codec: EncodecModel, tracks: Sequence[CorpusTrack]) -> dict[str, float]:
    """Compare what an analysis hears in the music before and after a round trip.

    Returns:
        Shares of tracks for which the same is heard before and after: `tempo_kept` within 4 %, `key_kept` (tonic and
        mode), `relative_key_kept` (or the key with the same notes), `drums_kept`, `brightness_kept`; and
        `onset_correlation`, the correlation of the onset strength over time, as the mean over tracks.
    """
    hearing = Hearing.load()
    kept = dict.fromkeys(("tempo_kept", "key_kept", "relative_key_kept", "drums_kept", "brightness_kept"), 0.0)
    correlation = 0.0
    for track in tracks:
        before_CL = torch.from_numpy(track.audio[:1])
        after_CL = codec(before_CL[None], bandwidth=codec.config.target_bandwidths[-1]).audio_values[0]
        before, after = (hearing.hear(audio_CL, SAMPLE_RATE) for audio_CL in (before_CL, after_CL))
        kept["tempo_kept"] += tempo_is_near(before["bpm"], after["bpm"])
        kept["key_kept"] += (before["key"], before["mode"]) == (after["key"], after["mode"])
        kept["relative_key_kept"] += key_is_relative(before, after)
        kept["drums_kept"] += before["drums"] == after["drums"]
        kept["brightness_kept"] += before["brightness"] == after["brightness"]
        rises = torch.stack([onset_strength(audio_CL, SAMPLE_RATE).sum(0) for audio_CL in (before_CL, after_CL)])
        correlation += float(torch.corrcoef(rises)[0, 1])
    return {
        **{name: count / len(tracks) for name, count in kept.items()},
        "onset_correlation": correlation / len(tracks),
    }


def si_sdr(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., "SDR - half-baked or well done?", 2019).

    Args:
        reference: `(samples,)`.
        estimate: the same shape.
    """
    reference, estimate = reference.double(), estimate.double()
    target = reference * (estimate @ reference) / (reference @ reference).clamp_min(1e-20)
    distortion = estimate - target
    return 10 * math.log10(float(target @ target + 1e-20) / float(distortion @ distortion + 1e-20))


def mel_distance(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    """Mean absolute difference in dB between the log mel spectrograms of two signals `(samples,)` at 32 kHz."""
    before, after = (log_mel(audio[None], SAMPLE_RATE, bands=_MEL_BANDS) for audio in (reference, estimate))
    return float((before - after).abs().mean())


def _perplexity(counts: torch.Tensor) -> float:
    shares = counts[counts > 0].double() / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def write_round_trip(
    folder: str | os.PathLike[str], codec: EncodecModel, *, tracks: int = 44, seed: int = 202, kept: int = 4
) -> dict[str, Any]:
    """Encode and decode tracks of the corpus, and write what came of them.

    Args:
        folder: made if need be. It gets `quality.json`, and for each of the first `kept` tracks
            `track-00000-before.wav`, `-after.wav` and a `.png` that shows six seconds before on the left and after on
            the right.
        codec: a codec for 32 kHz mono.
        tracks: number of tracks, of 15.36 s each; 11 have one of each style.
        seed: seed of the corpus. The codec that ships was trained on 101.
        kept: number of tracks that are written as sound and pictures.

    Returns:
        The result of `codec_quality`.

    Raises:
        ValueError: the codec is for another rate or for stereo.
    """
    config = codec.config
    if (config.sampling_rate, config.audio_channels) != (SAMPLE_RATE, 1):
        raise ValueError(
            f"the codec is for {config.audio_channels} channel(s) at {config.sampling_rate} Hz; the corpus is mono at "
            f"{SAMPLE_RATE} Hz"
        )
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    music = [make_track(seed, index, 15.36) for index in range(tracks)]
    for index, track in enumerate(music[:kept]):
        before_CL = torch.from_numpy(track.audio)
        with torch.no_grad():
            after_CL = codec(before_CL[None], bandwidth=config.target_bandwidths[-1]).audio_values[0]
        stem = target / f"track-{index:05d}"
        write_audio(stem.with_name(f"{stem.name}-before.wav"), before_CL, SAMPLE_RATE)
        write_audio(stem.with_name(f"{stem.name}-after.wav"), after_CL, SAMPLE_RATE)
        shown, gap = round(_SHOWN * SAMPLE_RATE), torch.zeros(1, round(_GAP * SAMPLE_RATE))
        both_CL = torch.cat((before_CL[:, :shown], gap, after_CL[:, :shown]), dim=1)
        stem.with_suffix(".png").write_bytes(mel_picture(both_CL, SAMPLE_RATE, width=960, height=200))
    quality = codec_quality(codec, music)
    write_json(target / "quality.json", quality)
    return quality


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", help="the folder")
    parser.add_argument("--encoders", default=SHIPPED, help="a folder with the codec (default: the one that ships)")
    parser.add_argument("--tracks", type=int, default=44, help="number of tracks (default: 44)")
    parser.add_argument("--seed", type=int, default=202, help="of the music; trained on was 101 (default: 202)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    codec = EncodecModel.from_pretrained(options.encoders)
    for name, value in write_round_trip(options.output, codec, tracks=options.tracks, seed=options.seed).items():
        values = value if isinstance(value, list) else [value]
        print(f"{name}: {', '.join(f'{number:.3g}' for number in values)}")


if __name__ == "__main__":
    main()
