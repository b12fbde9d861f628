"""Makes what ships: the frozen encoders, and the folder that holds them beside the decoder trained on their latents.

`make demo-model` runs all of it. The encoders come first (`train_encoders`), since everything after depends on their
codes; then the project's own scripts preprocess a corpus and train the decoder; `ship` puts both into one folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from musicgen_train.demo.card import card
from musicgen_train.demo.codec_training import CodecTraining, train_codec
from musicgen_train.demo.corpus import make_track
from musicgen_train.demo.quality import codec_quality
from musicgen_train.demo.text_training import RECORD_NAME, TextTraining, make_trained_text_encoder
from musicgen_train.files import atomic_folder, read_json, write_json
from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.feature_extractor import EncodecFeatureExtractor
from musicgen_train.processing.musicgen_processor import MusicgenProcessor
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

RECORD = "encoders.json"

# The corpora that the codec is trained and measured on, and not those that the decoder is.
_TRAINING_SEED, _HELD_OUT_SEED = 101, 202
_FROZEN = ("audio_encoder.", "text_encoder.")
_SECONDS = 15.36  # whole frames


@dataclasses.dataclass(frozen=True)
class EncoderTraining:
    """How the encoders are made.

    Args:
        clips: of music of 15.36 s that the codec is trained on.
        held_out_clips: others, of four times as many styles as there are, that it is measured on.
        codec: how the codec is trained.
        text: how the text encoder is trained.
    """

    clips: int = 360
    held_out_clips: int = 44
    codec: CodecTraining = dataclasses.field(default_factory=CodecTraining)
    text: TextTraining = dataclasses.field(default_factory=TextTraining)


def train_encoders(
    folder: str | os.PathLike[str],
    settings: EncoderTraining | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Train codec and text encoder; killed, the same call goes on.

    Args:
        folder: made if need be. `work` in it holds what is done so far, `composite` the result: a hub folder with a
            decoder of random weights, and `encoders.json` with settings, times and quality.
        settings: how.
        report: called with a line of text now and then.

    Returns:
        The folder `composite`.

    Raises:
        ValueError: the folder was made with other settings.
    """
    settings = settings or EncoderTraining()
    target, work = Path(folder).expanduser(), Path(folder).expanduser() / "work"
    composite = target / "composite"
    asked = json.loads(json.dumps(dataclasses.asdict(settings)))
    work.mkdir(parents=True, exist_ok=True)
    if (work / "settings.json").is_file():
        if (found := read_json(work / "settings.json")) != asked:
            raise ValueError(f"{target} was begun with {found}; asked for now: {asked}. Give another folder")
    else:
        write_json(work / "settings.json", asked)
    if composite.is_dir():
        return composite

    started = time.monotonic()
    report(f"making {settings.clips} clips of music")
    codec = train_codec(_music(_TRAINING_SEED, settings.clips), work, settings.codec, report=report)
    codec_seconds = time.monotonic() - started
    if not (work / "text_encoder" / RECORD_NAME).is_file():
        make_trained_text_encoder(work / "text_encoder", settings.text, report)
    report(f"measuring the codec on {settings.held_out_clips} other clips")
    quality = codec_quality(codec, [make_track(_HELD_OUT_SEED, i, _SECONDS) for i in range(settings.held_out_clips)])
    record = {
        "settings": asked,
        "codec": {
            "entries": codec.config.codebook_size,
            "bandwidth": codec.config.target_bandwidths[-1],
            "seconds": round(codec_seconds),
            "machine": f"{torch.get_num_threads()} thread(s) of {os.cpu_count()} cores",
            "quality": quality,
        },
        "text_encoder": read_json(work / "text_encoder" / RECORD_NAME),
        "torch": torch.__version__,
    }
    model = MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel.from_pretrained(work / "text_encoder"),
        audio_encoder=codec,
        decoder=_untrained_decoder(codec, settings.codec.seed),
    )
    model.generation_config = GenerationConfig.for_decoder(model.decoder.config)
    with atomic_folder(composite) as staging:
        model.save_pretrained(staging)
        _processor(codec, work / "text_encoder", staging).save_pretrained(staging)
        write_json(staging / RECORD, record)
    return composite


def ship(composite: str | os.PathLike[str], encoders: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Put a trained composite into as few bytes as keep its codes: the codec in float32, all else in float16.

    The codec's weights span more than float16 can hold, and codes must not change; the text encoder was rounded to
    float16 before it was used. The decoder keeps no more than the seven bits of mantissa that bfloat16 has.

    Args:
        composite: of a run that was trained on latents of these encoders.
        encoders: as `train_encoders` made them.
        folder: where to; replaced if it is there.

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
    # Frozen parts first, in a file of their own: it stays as it is when the decoder is trained anew, and a repository
    # keeps it once.
    named = sorted(model.state_dict().items(), key=lambda entry: not entry[0].startswith(_FROZEN))
    state = {name: _shrunk(name, value) for name, value in named}
    frozen_bytes = sum(value.nbytes for name, value in state.items() if name.startswith(_FROZEN))
    # So small a model keeps time better where its unlikely codes are less likely still.
    model.generation_config.temperature = 0.7
    if target.exists():
        shutil.rmtree(target)
    with atomic_folder(target) as staging:
        model.save_pretrained(staging, state_dict=state, max_shard_size=frozen_bytes)
        # Most numbers are float16, and would tell transformers to load the codec in it.
        config = read_json(staging / "config.json")
        write_json(staging / "config.json", _with_float32(config))
        MusicgenProcessor.from_pretrained(source).save_pretrained(staging)
        shutil.copyfile(Path(encoders) / RECORD, staging / RECORD)
        sizes = {
            part: sum(value.numel() for value in getattr(model, part).state_dict().values())
            for part in ("text_encoder", "audio_encoder", "decoder")
        }
        (staging / "README.md").write_text(card(read_json(staging / RECORD), sizes))
    return target


def _shrunk(name: str, value: torch.Tensor) -> torch.Tensor:
    if name.startswith("audio_encoder.") or not value.is_floating_point():
        return value
    return value.half() if name.startswith(_FROZEN) else value.bfloat16().half()


def _music(seed: int, clips: int) -> list[torch.Tensor]:
    return [torch.from_numpy(make_track(seed, index, _SECONDS).audio[0]) for index in range(clips)]


def _untrained_decoder(codec: EncodecModel, seed: int) -> MusicgenForCausalLM:
    size = codec.config.codebook_size
    config = MusicgenDecoderConfig(
        vocab_size=size,
        pad_token_id=size,
        bos_token_id=size,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        ffn_dim=768,
        dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MusicgenForCausalLM(config).eval()


def _processor(codec: EncodecModel, text_encoder: Path, staging: Path) -> MusicgenProcessor:
    extractor = EncodecFeatureExtractor(
        feature_size=codec.config.audio_channels, sampling_rate=codec.config.sampling_rate, padding_side="left"
    )
    shutil.copyfile(text_encoder / "spiece.model", staging / "spiece.model")
    return MusicgenProcessor(extractor, T5Tokenizer.from_pretrained(text_encoder))


def _with_float32(config: dict[str, Any]) -> dict[str, Any]:
    parts = {key: _with_float32(value) if isinstance(value, dict) else value for key, value in config.items()}
    return {**parts, **{key: "float32" for key in ("dtype", "torch_dtype") if key in parts}}
