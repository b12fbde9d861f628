"""Builders of a tiny composite and of a latent dataset made with its encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from sentencepiece_models import write_t5_tokenizer_folder
from tiny import CODEC, DECODER, SPECIAL, TEXT

from musicgen_train import (
    EncodecConfig,
    EncodecFeatureExtractor,
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)
from musicgen_train.evaluation.requests import encode_texts
from musicgen_train.latents.format import CAPTION_FEATURES, CAPTIONS_FOLDER, CLIP_FEATURES, pack_codes, pack_states
from musicgen_train.latents.manifest import EncoderRecord, Manifest, SplitRecord
from musicgen_train.models.fingerprint import fingerprint

CAPTIONS = ["jazz guitar", "lofi beat, slow", "a drum solo 120 bpm"]
FRAMES = [23, 31, 17, 29, 31]
"""Lengths of the clips of the validation split."""
FRAME_RATE = 40


def make_composite(seed: int = 0, **decoder: Any) -> MusicgenForConditionalGeneration:
    """All weights matter: logits of a few units, codebooks that differ. The arguments change the decoder's config."""
    torch.manual_seed(seed)
    config = MusicgenConfig.from_sub_models_config(
        T5Config(**{**TEXT, "vocab_size": 500}), EncodecConfig(**CODEC), MusicgenDecoderConfig(**{**DECODER, **decoder})
    )
    model = MusicgenForConditionalGeneration(config)
    with torch.no_grad():
        for part in (model.decoder, model.enc_to_dec_proj):
            assert part is not None
            for name, parameter in part.named_parameters():
                if "norm" not in name:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
        for name, buffer in model.audio_encoder.named_buffers():
            if name.endswith("embed"):
                buffer.normal_()
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=20, max_length=40, guidance_scale=3.0, pad_token_id=SPECIAL, bos_token_id=SPECIAL
    )
    return model.eval()


def save_composite(model: MusicgenForConditionalGeneration, folder: Path) -> Path:
    """A hub folder with its processor."""
    write_t5_tokenizer_folder(folder)
    model.save_pretrained(folder)
    extractor = EncodecFeatureExtractor(
        feature_size=1, sampling_rate=model.config.audio_encoder.sampling_rate, padding_side="left"
    )
    MusicgenProcessor(extractor, T5Tokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


def save_dataset(
    model: MusicgenForConditionalGeneration,
    composite: Path,
    folder: Path,
    clips: Sequence[torch.Tensor],
    captions: Sequence[Sequence[int]],
    split: str = "validation",
) -> Path:
    """A latent dataset of clips of codes `(K, T)`, each with rows of `CAPTIONS`."""
    states = [row for row in encode_texts(CAPTIONS, model, str(composite)) if row is not None]
    rows = {
        "codes": [pack_codes(clip) for clip in clips],
        "frames": [clip.shape[1] for clip in clips],
        "captions": [list(numbers) for numbers in captions],
        "track": [f"folder/track {number}.wav" for number in range(len(clips))],
        "start_seconds": [0.5 * number for number in range(len(clips))],
        "silent": [False] * len(clips),
        "metadata": ["{}"] * len(clips),
    }
    datasets.Dataset.from_dict(rows, features=CLIP_FEATURES).save_to_disk(folder / split)
    texts = {
        "text": CAPTIONS,
        "states": [pack_states(row, "float32") for row in states],
        "length": [len(row) for row in states],
    }
    datasets.Dataset.from_dict(texts, features=CAPTION_FEATURES).save_to_disk(folder / CAPTIONS_FOLDER)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    codec = model.config.audio_encoder
    Manifest(
        text_encoder=EncoderRecord(name=str(composite), fingerprint=fingerprint(model.text_encoder)),
        audio_encoder=EncoderRecord(name=str(composite), fingerprint=fingerprint(model.audio_encoder)),
        sampling_rate=codec.sampling_rate,
        frame_rate=codec.sampling_rate / codec.hop_length,
        num_codebooks=model.config.decoder.num_codebooks,
        codebook_size=codec.codebook_size,
        audio_channels=model.config.decoder.audio_channels,
        text_width=model.config.text_encoder.hidden_size,
        states_dtype="float32",
        splits={split: SplitRecord(clips=len(clips), tracks=len(clips), hours=0.1)},
        captions=len(CAPTIONS),
        counts={},
        settings={},
        command="tests",
        versions={},
        created="2026-01-01T00:00:00+00:00",
    ).save(folder)
    return folder


@dataclass
class World:
    """A composite and a dataset that tests share; none of them writes into it."""

    model: MusicgenForConditionalGeneration
    composite: Path
    latents: Path
    clips: list[torch.Tensor]
    captions: list[list[int]]
