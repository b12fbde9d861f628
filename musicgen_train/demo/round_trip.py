"""What a codec makes of music it has not seen: to listen to, to look at, and in numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from musicgen_train.audio.io import write_audio
from musicgen_train.audio.mel import mel_picture
from musicgen_train.demo.corpus import Track, make_track
from musicgen_train.demo.quality import codec_quality
from musicgen_train.files import write_json
from musicgen_train.models.codec.encodec import EncodecModel

_GAP = 0.3  # seconds of silence between before and after
_SHOWN = 6.0  # seconds of each in a picture


def round_trip(
    folder: str | os.PathLike[str], codec: EncodecModel, *, tracks: int = 44, seed: int = 202, kept: int = 4
) -> dict[str, Any]:
    """Code and decode tracks of the corpus.

    Args:
        folder: made if need be. Of the first `kept` tracks it gets `track-00000-before.wav`, `-after.wav` and a `.png`
            that shows six seconds before on the left, and after on the right; of all of them, `quality.json`.
        codec: for 32 kHz mono.
        tracks: how many, of 15.36 s; 11 are one of each style.
        seed: of the corpus. The codec that ships has heard 101.
        kept: of how many sound and pictures are written.

    Returns:
        As `codec_quality`.

    Raises:
        ValueError: the codec is for another rate or for stereo.
    """
    config = codec.config
    if (config.sampling_rate, config.audio_channels) != (32_000, 1):
        raise ValueError(
            f"the codec is for {config.audio_channels} channel(s) at {config.sampling_rate} Hz; the corpus is mono at "
            "32000 Hz"
        )
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    music: Sequence[Track] = [make_track(seed, index, 15.36) for index in range(tracks)]
    for index, track in enumerate(music[:kept]):
        before_CL = torch.from_numpy(track.audio)
        with torch.no_grad():
            after_CL = codec(before_CL[None], bandwidth=config.target_bandwidths[-1]).audio_values[0]
        stem = target / f"track-{index:05d}"
        write_audio(stem.with_name(f"{stem.name}-before.wav"), before_CL, config.sampling_rate)
        write_audio(stem.with_name(f"{stem.name}-after.wav"), after_CL, config.sampling_rate)
        shown, gap = round(_SHOWN * config.sampling_rate), torch.zeros(1, round(_GAP * config.sampling_rate))
        both_CL = torch.cat((before_CL[:, :shown], gap, after_CL[:, :shown]), dim=1)
        stem.with_suffix(".png").write_bytes(mel_picture(both_CL, config.sampling_rate, width=960, height=200))
    quality = codec_quality(codec, music)
    write_json(target / "quality.json", quality)
    return quality
