"""Checks a latent dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.doctor.findings import Finding, note, ok, wrong
from musicgen_train.latents.manifest import Manifest

_TOPIC = "latents"
_ROWS_READ = 64


def look_at_latents(folder: Path) -> Iterator[Finding]:
    """Check the manifest, each split's hours, and 64 random rows of each split with their text states."""
    manifest = Manifest.load(folder)
    yield ok(
        _TOPIC,
        f"{folder}: {manifest.num_codebooks} codebooks of {manifest.codebook_size}, {manifest.frame_rate:g} frames/s "
        f"of {manifest.sampling_rate} Hz {'stereo' if manifest.audio_channels == 2 else 'mono'}; text states "
        f"{manifest.text_width} wide in {manifest.states_dtype}; made {manifest.created}",
    )
    for kind, encoder in (("text", manifest.text_encoder), ("audio", manifest.audio_encoder)):
        yield ok(_TOPIC, f"{kind} encoder {encoder.name}, fingerprint {encoder.fingerprint[:12]}")
    if "train" not in manifest.splits or not manifest.splits["train"].clips:
        yield wrong(
            _TOPIC, "there are no clips to train on", "preprocess more audio; split.* decide what is for training"
        )
    if "validation" not in manifest.splits or not manifest.splits["validation"].clips:
        yield note(_TOPIC, "no validation split: overfitting will not be seen", "preprocess with split.validation=0.05")
    for split, record in manifest.splits.items():
        if record.clips:
            yield from _look_at_split(folder, split)


def _look_at_split(folder: Path, split: str) -> Iterator[Finding]:
    dataset = LatentDataset(folder, split)
    stated = dataset.manifest.splits[split].hours
    hours = dataset.seconds / 3600
    # A clip has whole frames, the last one rounded up.
    slack = len(dataset) / dataset.manifest.frame_rate / 3600
    if not stated - 1e-6 <= hours <= stated + slack + 1e-6:
        yield wrong(
            _TOPIC, f"{split}: the frames are {hours:.4f} h, the manifest says {stated:.4f}", "preprocess again"
        )
    rows = np.random.default_rng(0).choice(len(dataset), min(_ROWS_READ, len(dataset)), replace=False)
    without_caption = 0
    for row in rows.tolist():
        clip = dataset[row]
        without_caption += not clip.captions
        for caption in clip.captions:
            if not 0 <= caption < dataset.manifest.captions:
                yield wrong(_TOPIC, f"{split}: row {row} has caption {caption} of {dataset.manifest.captions}")
                return
            if not math.isfinite(float(dataset.states(caption).float().abs().sum())):
                yield wrong(_TOPIC, f"{split}: the text states of caption {caption} are not finite", "preprocess again")
                return
    yield ok(
        _TOPIC,
        f"{split}: {len(dataset)} clips, {hours:.3f} h, fingerprint {dataset.fingerprint()[:12]}; read {len(rows)} of "
        "them at random",
    )
    if without_caption > len(rows) / 2:
        yield note(
            _TOPIC,
            f"{split}: {without_caption} of {len(rows)} have no caption",
            "docs/preprocessing.md: where captions are",
        )
