"""The demo's frozen encoders: a complete composite in the hub's layout, made from a seed.

The folder holds a T5 with the vocabulary of the corpus' captions, an EnCodec fitted to its sound, a decoder with random
weights, and the processor. `preprocess.py encoders=FOLDER` and `train.py init_from=FOLDER` both take it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from musicgen_train.demo.codec import make_codec
from musicgen_train.demo.corpus import make_track
from musicgen_train.demo.quality import CodecQuality, measure
from musicgen_train.demo.text import make_text_encoder, make_tokenizer
from musicgen_train.hub.folder import atomic_folder, read_json, write_json
from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.models.decoder import MusicgenForCausalLM
from musicgen_train.models.encodec import EncodecModel
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.processing.feature_extractor import EncodecFeatureExtractor
from musicgen_train.processing.musicgen_processor import MusicgenProcessor

SETTINGS_NAME = "demo_encoders.json"

# Goes up whenever the same settings give other weights.
_VERSION = 1
# The corpora that encoders are fitted to and measured on: far from the seeds people take for theirs.
_FITTING_SEED, _HELD_OUT_SEED = 1_000_000, 2_000_000
_CLIP_SECONDS = 10.0


def demo_encoders(
    folder: str | os.PathLike[str],
    seed: int = 0,
    *,
    fitting_clips: int = 88,
    held_out_clips: int = 22,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Make the encoders' folder, or find it there.

    Args:
        folder: where to; it appears complete or not at all.
        seed: of all random weights, and of the music that the codec is fitted to.
        fitting_clips: clips of 10 s that the codec is fitted to.
        held_out_clips: clips of 10 s that it is measured on; the result is in `demo_encoders.json`. 0 for no measuring.
        report: called with a line of text on what is being done.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something else, or encoders of other settings; or there are too few clips.
        NotADirectoryError: it is a file.
    """
    target = Path(folder).expanduser()
    settings: dict[str, Any] = {
        "version": _VERSION,
        "seed": seed,
        "fitting_clips": fitting_clips,
        "held_out_clips": held_out_clips,
    }
    if _holds(target, settings):
        return target
    say = report or (lambda line: None)
    say(f"making {fitting_clips} clips of music")
    music = list(_clips(_FITTING_SEED + seed, fitting_clips))
    say("fitting the codec's codebooks to them")
    codec = make_codec(music, seed)
    settings["quality"] = None
    if held_out_clips:
        say(f"measuring the codec on {held_out_clips} other clips")
        quality = measure(codec, list(_clips(_HELD_OUT_SEED + seed, held_out_clips)))
        settings["quality"] = _rounded(quality)
    model = _make_composite(codec, seed)
    with atomic_folder(target) as staging:
        model.save_pretrained(staging)
        tokenizer = make_tokenizer(staging)
        extractor = EncodecFeatureExtractor(
            feature_size=codec.config.audio_channels,
            sampling_rate=codec.config.sampling_rate,
            padding_side="left",
        )
        MusicgenProcessor(extractor, tokenizer).save_pretrained(staging)
        write_json(staging / SETTINGS_NAME, settings)
    return target


def quality_of(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `demo_encoders` measured, as `CodecQuality`'s fields; None where it did not."""
    quality: dict[str, Any] | None = read_json(Path(folder).expanduser() / SETTINGS_NAME)["quality"]
    return quality


def _make_composite(codec: EncodecModel, seed: int) -> MusicgenForConditionalGeneration:
    config = MusicgenDecoderConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=512,
        dropout=0.0,
    )
    text_encoder = make_text_encoder(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = MusicgenForCausalLM(config).eval()
        model = MusicgenForConditionalGeneration(text_encoder=text_encoder, audio_encoder=codec, decoder=decoder)
    model.generation_config = GenerationConfig.for_decoder(config)
    return model


def _clips(seed: int, count: int) -> Iterator[torch.Tensor]:
    for index in range(count):
        yield torch.from_numpy(make_track(seed, index, _CLIP_SECONDS).audio[0])


def _holds(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds these encoders; False where it may be written to."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder for the encoders")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if SETTINGS_NAME not in names:
        if names:
            raise ValueError(f"{folder} already holds something else ({', '.join(_first(names))}); give another folder")
        return False
    found = read_json(folder / SETTINGS_NAME)
    different = [
        f"{name} {found.get(name)!r} (asked for: {value!r})"
        for name, value in settings.items()
        if found.get(name) != value
    ]
    if different:
        raise ValueError(f"{folder} holds encoders made with {', '.join(different)}; give another folder")
    return True


def _first(names: Iterable[str], count: int = 5) -> list[str]:
    names = list(names)
    return names[:count] + ["..."] * (len(names) > count)


def _rounded(quality: CodecQuality) -> dict[str, Any]:
    def shorten(value: Any) -> Any:
        if isinstance(value, list):
            return [shorten(item) for item in value]
        return round(value, 3) if isinstance(value, float) else value

    return {name: shorten(value) for name, value in dataclasses.asdict(quality).items()}
