"""A tiny latent dataset, and the tiny composite whose encoders it is of, both on disk and made in a moment.

All sizes differ from each other, so that a swapped axis cannot pass.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sentencepiece_models import write_t5_tokenizer_folder

from musicgen_train import (
    EncodecConfig,
    EncodecFeatureExtractor,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)
from musicgen_train.latents.format import CAPTION_FEATURES, CLIP_FEATURES, pack_codes, pack_states
from musicgen_train.latents.manifest import EncoderRecord, Manifest, SplitRecord
from musicgen_train.models.fingerprint import fingerprint

CODES = 64
TEXT_WIDTH = 12
FRAME_RATE = 40  # the codec's: 320 Hz, 8 samples a frame
DECODER: dict[str, Any] = {
    "vocab_size": CODES,
    "pad_token_id": CODES,
    "bos_token_id": CODES,
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 28,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}


@dataclass(frozen=True)
class ClipSpec:
    """What a clip of the made dataset is like."""

    frames: int
    captions: tuple[int, ...] = (0,)


def composite_config(**decoder: Any) -> MusicgenConfig:
    """Of the tiny composite; the arguments change its decoder."""
    return MusicgenConfig(
        text_encoder=T5Config(vocab_size=512, d_model=TEXT_WIDTH, d_kv=5, d_ff=18, num_layers=1, num_heads=3),
        audio_encoder=EncodecConfig(
            sampling_rate=320,
            target_bandwidths=[0.96],  # 4 codebooks of 6 bits, 40 frames a second
            codebook_size=CODES,
            hidden_size=16,
            codebook_dim=16,
            num_filters=4,
            upsampling_ratios=[4, 2],
            num_lstm_layers=1,
            use_causal_conv=False,
            use_conv_shortcut=False,
            normalize=False,
        ),
        decoder=MusicgenDecoderConfig(**{**DECODER, **decoder}),
    )


@functools.cache
def _made_composite(**decoder: Any) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny-composite-"))
    torch.manual_seed(7)
    model = MusicgenForConditionalGeneration(composite_config(**decoder))
    with torch.no_grad():
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    model.generation_config = model.generation_config.replace(max_length=30)
    model.save_pretrained(folder)
    write_t5_tokenizer_folder(folder / "tokenizer")
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=320)
    MusicgenProcessor(extractor, T5Tokenizer.from_pretrained(folder / "tokenizer")).save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    return folder


def write_composite(folder: Path, **decoder: Any) -> Path:
    """A composite with processor and generation config in the hub's layout; the same weights every time."""
    shutil.copytree(_made_composite(**decoder), folder)
    return folder


def write_latents(
    folder: Path,
    composite: Path,
    train: Sequence[ClipSpec],
    validation: Sequence[ClipSpec] = (),
    *,
    captions: Sequence[str] = ("drums and bass", "a quiet flute"),
    num_codebooks: int = 4,
    audio_channels: int = 1,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A latent dataset of random codes, with text states as the composite's text encoder would be as wide.

    `changes` go into the manifest.
    """
    model = MusicgenForConditionalGeneration.from_pretrained(composite)
    random = torch.Generator().manual_seed(seed)
    splits = {"train": train, **({"validation": validation} if validation else {})}
    for name, specs in splits.items():
        rows = []
        for number, spec in enumerate(specs):
            codes = torch.randint(0, CODES, (num_codebooks, spec.frames), generator=random)
            rows.append(
                {
                    "codes": pack_codes(codes),
                    "frames": spec.frames,
                    "captions": list(spec.captions),
                    "track": f"{name}/{number}.wav",
                    "start_seconds": 0.25 * number,
                    "silent": False,
                    "metadata": "{}",
                }
            )
        _save(rows, CLIP_FEATURES, folder / name)
    texts = [
        {"text": text, "states": pack_states(states, "float16"), "length": len(states)}
        for text, states in (
            (text, torch.randn(3 + 2 * i, TEXT_WIDTH, generator=random)) for i, text in enumerate(captions)
        )
    ]
    _save(texts, CAPTION_FEATURES, folder / "captions")
    (folder / "dataset_dict.json").write_text('{"splits": ["' + '", "'.join(splits) + '"]}')
    values: dict[str, Any] = {
        "text_encoder": EncoderRecord(name=str(composite), fingerprint=fingerprint(model.text_encoder)),
        "audio_encoder": EncoderRecord(name=str(composite), fingerprint=fingerprint(model.audio_encoder)),
        "sampling_rate": 320,
        "frame_rate": float(FRAME_RATE),
        "num_codebooks": num_codebooks,
        "codebook_size": CODES,
        "audio_channels": audio_channels,
        "text_width": TEXT_WIDTH,
        "states_dtype": "float16",
        "splits": {
            name: SplitRecord(
                clips=len(specs), tracks=len(specs), hours=sum(spec.frames for spec in specs) / FRAME_RATE / 3600
            )
            for name, specs in splits.items()
        },
        "captions": len(captions),
        "counts": {"files": len(train)},
        "settings": {},
        "command": "tests",
        "versions": {},
        "created": "2026-11-22T00:00:00Z",
    }
    Manifest(**{**values, **changes}).save(folder)
    return folder


def codes_of(folder: Path, split: str, row: int) -> np.ndarray:
    """The codes of a clip through plain `datasets`, int16 `(4, frames)`."""
    packed = datasets.load_from_disk(str(folder / split))[row]["codes"]
    return np.frombuffer(packed, dtype="<i2").reshape(4, -1)


def _save(rows: list[dict[str, Any]], features: datasets.Features, folder: Path) -> None:
    if not rows:
        return
    columns = {name: [row[name] for row in rows] for name in features}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
