"""Makes small encoders with transformers, and audio files with captions, for the preprocessing tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece_models
import soundfile
import tiny
import torch

from musicgen_train.preprocess.settings import PreprocessSettings

SettingsMaker = Callable[..., PreprocessSettings]

# 8 kHz, 160 samples a frame, 4 codebooks of 64.
RATE = 8000
CODEC: dict[str, Any] = {"sampling_rate": RATE, "upsampling_ratios": [8, 5, 4], "target_bandwidths": [1.2]}
TEXT = {**tiny.TEXT, "vocab_size": 500}


def write_encoders(folder: Path, decoder: dict[str, Any] | None = None, **codec: Any) -> Path:
    """Write a composite with its tokenizer in the hub's layout, as transformers saves it."""
    model = tiny.reference_composite(decoder=decoder, text=TEXT, **{**CODEC, **codec})
    _fit_codebooks(model.audio_encoder)
    model.save_pretrained(folder)
    sentencepiece_models.write_t5_tokenizer_folder(folder)
    return folder


def _fit_codebooks(codec: Any) -> None:
    """Fill the codebooks with outputs of the random encoder; with random ones, all sound would have the same codes."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(8 * RATE) / RATE
    sound = torch.sin(2 * torch.pi * (80 + 150 * time) * time) + 0.3 * torch.randn(len(time), generator=generator)
    with torch.no_grad():
        rest_TD = codec.encoder((0.5 * sound)[None, None])[0].T
        for layer in codec.quantizer.layers:
            table = layer.codebook.embed
            table.copy_(rest_TD[torch.randperm(len(rest_TD), generator=generator)[: len(table)]])
            rest_TD = rest_TD - table[torch.cdist(rest_TD, table).argmin(dim=1)]


def tone(seconds: float, rate: int = RATE, pitch: float = 220.0, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """Return a tone with a slow beat, a little different in each channel: float32 `(samples, channels)`."""
    time = np.arange(round(seconds * rate)) / rate
    sides = [np.sin(2 * np.pi * (pitch + 3 * side) * time) * (1 + 0.3 * np.sin(7 * time)) for side in range(channels)]
    return (level / 1.3 * np.stack(sides, axis=1)).astype(np.float32)


def write_track(path: Path, seconds: float, *, caption: str | dict[str, Any] | None = None, **options: Any) -> Path:
    """Write a tone as an audio file, and its caption beside it as .txt (a string) or .json (a dict)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = options.pop("subtype", None)
    rate = options.setdefault("rate", RATE)
    soundfile.write(path, tone(seconds, **options), rate, subtype=subtype)
    if isinstance(caption, dict):
        path.with_suffix(".json").write_text(json.dumps(caption), encoding="utf-8")
    elif caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path
