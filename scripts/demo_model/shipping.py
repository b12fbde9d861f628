"""Put a trained composite into the package, in as few bytes as keep its codes, with a model card.

python scripts/demo_model/shipping.py RUN/composite ENCODERS/composite
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from encoder_training import ENCODER_RECORD_NAME

from musicgen_train.demo.small_model import SHIPPED
from musicgen_train.files import atomic_folder, read_json, write_json
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.processing.musicgen_processor import MusicgenProcessor

_FROZEN = ("audio_encoder.", "text_encoder.")
_CARD = """---
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
numbers in float32. The encoder's weights are computed in closed form, the codebooks are fitted by k-means and moving
averages, the decoder is trained by gradients for {steps} steps on {clips} tracks of 15.36 s. Each codebook stands for a
part of the spectrum (below 200, 450 and 1100 Hz by waveform; above, the loudness of 20 bands), so a generic recording
comes out recognisable and rough. Made in {codec_minutes:.0f} minutes on {threads}.

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

{decoder_weights:,} weights in float16, trained on 2000 tracks with `demo_model.yaml` (4000 steps of 80 s of music, five
seconds at a time), then `demo_model_long.yaml` (1000 steps of 92 s, 15 seconds at a time), then on other tracks of ten
seconds with `demo_model_more.yaml`, each from the track's start: 3,479 of them (1947 steps of 82 s), then 3,000 more
beside those (2152 steps); then in pieces of 1.28 s with `demo_model_short.yaml` (572 steps of 82 s), and 240 steps of
ten seconds again. What it does with held-out captions is measured by the control test: see `docs/demo.md` of the
project.

## Made by

    make demo-model

which runs `scripts/demo_model/recipe.py`; the configs named above are in its folder. `encoders.json` has the settings,
times and all figures; torch {torch}.
"""


def ship(composite: str | os.PathLike[str], encoders: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write a composite with the codec in float32 and all other weights in float16.

    The codec's weights span more than float16 can hold, and codes must not change; the text encoder was rounded to
    float16 before it was used. The decoder's weights are rounded to the seven bits of mantissa that bfloat16 has.

    Args:
        composite: the composite of a run that was trained on latents of these encoders.
        encoders: the result of `train_encoders`.
        folder: the result; replaced if it is there.

    Returns:
        The folder.

    Raises:
        ValueError: the composite has another codec or text encoder.
    """
    source, target = Path(composite), Path(folder)
    model = MusicgenForConditionalGeneration.from_pretrained(source)
    frozen = MusicgenForConditionalGeneration.from_pretrained(Path(encoders))
    for part in ("audio_encoder", "text_encoder"):
        ours, theirs = getattr(model, part).state_dict(), getattr(frozen, part).state_dict()
        if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
            raise ValueError(f"the {part} of {source} is not that of {encoders}")
    # Frozen parts come first and fill files of their own, which do not change when the decoder is trained anew, so that
    # a repository stores them once.
    named = sorted(model.state_dict().items(), key=lambda entry: not entry[0].startswith(_FROZEN))
    state = {name: _shrunk(name, value) for name, value in named}
    frozen_bytes = sum(value.nbytes for name, value in state.items() if name.startswith(_FROZEN))
    # So small a model keeps time better at a lower temperature.
    model.generation_config.temperature = 0.7
    if target.exists():
        shutil.rmtree(target)
    with atomic_folder(target) as staging:
        model.save_pretrained(staging, state_dict=state, max_shard_size=frozen_bytes)
        # save_pretrained writes the dtype of most weights, float16, and transformers would load the codec in it.
        config = read_json(staging / "config.json")
        write_json(staging / "config.json", _with_float32(config))
        MusicgenProcessor.from_pretrained(source).save_pretrained(staging)
        shutil.copyfile(Path(encoders) / ENCODER_RECORD_NAME, staging / ENCODER_RECORD_NAME)
        sizes = {
            part: sum(value.numel() for value in getattr(model, part).state_dict().values())
            for part in ("text_encoder", "audio_encoder", "decoder")
        }
        (staging / "README.md").write_text(model_card(read_json(staging / ENCODER_RECORD_NAME), sizes))
    return target


def _shrunk(name: str, value: torch.Tensor) -> torch.Tensor:
    if name.startswith("audio_encoder.") or not value.is_floating_point():
        return value
    return value.half() if name.startswith(_FROZEN) else value.bfloat16().half()


def _with_float32(config: dict[str, Any]) -> dict[str, Any]:
    parts = {key: _with_float32(value) if isinstance(value, dict) else value for key, value in config.items()}
    return {**parts, **{key: "float32" for key in ("dtype", "torch_dtype") if key in parts}}


def model_card(record: Mapping[str, Any], weights: Mapping[str, int]) -> str:
    """The model card, the text of README.md.

    Args:
        record: the content of `encoders.json`.
        weights: the number of weights in `text_encoder`, `audio_encoder` and `decoder`.
    """
    quality, text = record["codec"]["quality"], record["text_encoder"]["quality"]
    accuracy, free = text["accuracy"], text["free"]
    settings = record["settings"]
    kept = {name: quality[name] for name in quality if name.endswith("_kept")}
    names = ("style", "tempo", "key", "mode", "brightness", "drums")
    return _CARD.format(
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("composite", help="of a run trained on latents of these encoders")
    parser.add_argument("encoders", help="the composite that encoder_training.py made")
    options = parser.parse_args(arguments)
    folder = ship(options.composite, options.encoders, SHIPPED)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB")


if __name__ == "__main__":
    main()
