"""Train the frozen encoders that ship; killed, the same command resumes.

python scripts/demo_model/encoder_training.py OUTPUT
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from codec_quality import codec_quality
from codec_training import CodecTraining, train_codec
from text_training import TEXT_RECORD_NAME, TextTraining, make_trained_text_encoder

from musicgen_train.demo.corpus import make_track
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

ENCODER_RECORD_NAME = "encoders.json"

# Seeds of the corpora that the codec is trained and measured on; the decoder is trained on others.
_TRAINING_SEED, _HELD_OUT_SEED = 101, 202
_SECONDS = 15.36  # a whole number of frames


@dataclasses.dataclass(frozen=True)
class EncoderTraining:
    """How the encoders are trained.

    Args:
        clips: number of clips of 15.36 s that the codec is trained on.
        held_out_clips: number of other clips that it is measured on; 44 are four of each style.
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
    """Train codec and text encoder; after a kill, the same call resumes.

    Args:
        folder: made if need be. `work` in it holds checkpoints, `composite` the result: a hub folder with a decoder of
            random weights, and `encoders.json` with settings, times and quality.
        settings: None for the default ones.
        report: called with a line of progress now and then.

    Returns:
        The folder `composite`.

    Raises:
        ValueError: the folder was begun with other settings.
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
    if not (work / "text_encoder" / TEXT_RECORD_NAME).is_file():
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
        "text_encoder": read_json(work / "text_encoder" / TEXT_RECORD_NAME),
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
        write_json(staging / ENCODER_RECORD_NAME, record)
    return composite


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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", help="the folder; the result is `composite` in it")
    parser.add_argument("--seed", type=int, default=0, help="of weights, texts and order (default: 0)")
    parser.add_argument("--clips", type=int, default=360, help="number of clips for the codec (default: 360)")
    parser.add_argument("--steps", type=int, default=3000, help="of the codec's decoder (default: 3000)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    options = parser.parse_args(arguments)
    # The networks are too small to share: where other work uses a core, threads that wait for each other at every frame
    # of an LSTM take twenty times as long as one.
    torch.set_num_threads(options.threads)
    settings = EncoderTraining(
        clips=options.clips,
        codec=CodecTraining(seed=options.seed, steps=options.steps),
        text=TextTraining(seed=options.seed),
    )
    folder = train_encoders(options.output, settings, lambda line: print(line, flush=True))
    print(f"{folder}: encoders in the hub's layout, with an untrained decoder")


if __name__ == "__main__":
    main()
