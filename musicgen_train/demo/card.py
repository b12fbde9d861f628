"""The model card of what ships, written from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT = """---
library_name: musicgen_train
pipeline_tag: text-to-audio
license: apache-2.0
---

# MusicGen, demo size

A complete small MusicGen for trying out, teaching and testing: an EnCodec, a T5 encoder with its vocabulary, and a
decoder, all trained on procedural music that `musicgen_train.demo` makes from seeds. It knows that music and no other:
eleven styles, their instruments, tempos from 60 to 150, all keys. No recording of anybody was used.

## Codec

EnCodec for 32 kHz mono at 50 frames/s with 4 codebooks of {entries} entries ({bandwidth:g} kbit/s), {codec_weights:,}
numbers in float32. The encoder is written down in closed form, the codebooks are fitted by k-means and moving averages,
the decoder is trained by gradients for {steps} steps on {clips} tracks of 15.36 s. Each codebook stands for a part of
the spectrum (below 200, 450 and 1100 Hz by waveform; above, the loudness of 20 bands), so a generic recording comes out
recognisable and rough. Made in {codec_minutes:.0f} minutes on {threads}.

On {held_out} held-out tracks:

| measure | |
| --- | --- |
| SI-SDR | {si_sdr:.1f} dB |
| log mel distance (80 bands, mean absolute) | {mel_distance:.1f} dB |
| entries used, per codebook | {used} |
| perplexity of codes, per codebook, of {entries} | {perplexity} |
| tempo heard as before, within 4 % | {tempo_kept:.0%} of tracks |
| key and mode heard as before | {key_kept:.0%} |
| key or its relative | {relative_key_kept:.0%} |
| drums or none, as before | {drums_kept:.0%} |
| brightness as before | {brightness_kept:.0%} |
| correlation of onsets, over time | {onset_correlation:.2f} |

## Text encoder

T5 of {text_weights:,} weights in float16 with a case-folded vocabulary of 600 pieces, taught to say what a caption
says. Made in {text_seconds} s on one core. What it tells of held-out captions, and of free prompts in other words:

| | style | tempo | key | mode | brightness | drums |
| --- | --- | --- | --- | --- | --- | --- |
| captions | {captions} |
| free prompts | {prompts} |

## Decoder

{decoder_weights:,} weights in float16, trained on 2000 tracks with `configs/experiment/demo_model.yaml` (4000 steps of
80 s of music, five seconds at a time), then `demo_model_long.yaml` (1000 steps of 92 s, 15 seconds at a time), then on
other tracks of ten seconds with `demo_model_more.yaml`, each from the track's start: 3,479 of them (1947 steps of 82
s), then 3,000 more beside those (2152 steps); then in pieces of 1.28 s with `demo_model_short.yaml` (572 steps of 82
s), and 240 steps of ten seconds again. What it does with held-out captions is measured by the control test: see
`docs/demo.md` of the project.

## Made by

    make demo-model

which runs `python -m musicgen_train.demo train-encoders`, then the project's own scripts. `encoders.json` has the
settings, times and all figures; torch {torch}.
"""


def card(record: Mapping[str, Any], weights: Mapping[str, int]) -> str:
    """The text of README.md.

    Args:
        record: as in `encoders.json`.
        weights: numbers in `text_encoder`, `audio_encoder` and `decoder`.
    """
    quality, text = record["codec"]["quality"], record["text_encoder"]["quality"]
    accuracy, free = text["accuracy"], text["free"]
    settings = record["settings"]
    kept = {name: quality[name] for name in quality if name.endswith("_kept")}
    names = ("style", "tempo", "key", "mode", "brightness", "drums")
    return _TEXT.format(
        **kept,
        captions=" | ".join(f"{accuracy[name]:.1%}" for name in names),
        prompts=" | ".join(f"{free[name]:.1%}" for name in names),
        entries=record["codec"]["entries"],
        bandwidth=record["codec"]["bandwidth"],
        codec_weights=weights["audio_encoder"],
        text_weights=weights["text_encoder"],
        decoder_weights=weights["decoder"],
        steps=settings["codec"]["steps"],
        clips=settings["clips"],
        held_out=settings["held_out_clips"],
        codec_minutes=record["codec"]["seconds"] / 60,
        threads=record["codec"]["machine"],
        si_sdr=quality["si_sdr"],
        mel_distance=quality["mel_distance"],
        used=", ".join(f"{share:.0%}" for share in quality["used"]),
        perplexity=", ".join(f"{count:.0f}" for count in quality["perplexity"]),
        onset_correlation=quality["onset_correlation"],
        text_seconds=record["text_encoder"]["seconds"],
        torch=record["torch"],
    )
