"""Checks before a run: does the data sound right, and is the first cross-entropy what it should be?

Most causes of "it trains, but I get noise" show here, before an hour of training is spent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from musicgen_train.audio.io import write_audio
from musicgen_train.data.datamodule import LatentDataModule
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.step.scores import Scores


@dataclass(kw_only=True)
class CheckSettings:
    """Which checks are made before training."""

    enabled: bool
    """False leaves all checks out."""
    round_trips: int
    """Number of training clips that are decoded back to audio."""
    batches: int
    """Number of batches whose cross-entropy is taken before the first step."""

    def __post_init__(self) -> None:
        if self.round_trips < 0:
            raise ValueError(f"checks.round_trips is {self.round_trips}; it must be a number of clips, or 0 for none")
        if self.batches < 1:
            raise ValueError(
                f"checks.batches is {self.batches}; it must be 1 or more. checks.enabled=false leaves all checks out"
            )


def write_round_trips(
    composite: MusicgenForConditionalGeneration, dataset: LatentDataset, count: int, folder: Path
) -> list[Path]:
    """Decode clips, spread over a dataset, back to audio files, with their captions in `captions.txt`.

    They are to be listened to: no model trained on this data can sound better.

    Returns:
        The paths of the audio files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    paths, lines = [], []
    for row in rows:
        clip = dataset[int(row)]
        codes = torch.from_numpy(clip.codes_KT.astype(np.int64))[None]
        with torch.inference_mode():
            audio_CS = composite.decode_audio(codes.to(composite.audio_encoder.device))[0]
        path = folder / f"row_{row:06d}.wav"
        write_audio(path, audio_CS, dataset.manifest.sampling_rate)
        captions = [dataset.caption(caption) for caption in clip.captions] or ["(no caption)"]
        lines.append(f"{path.name}\t{clip.track}\t{clip.start_seconds:.2f} s\t{' | '.join(captions)}")
        paths.append(path)
    (folder / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


@torch.no_grad()
def first_scores(module: MusicgenTraining, data: LatentDataModule, batches: int) -> Scores:
    """Score some batches in eval mode: of the validation split, or of the training split where there is none."""
    clips = data.validation_clips
    if clips is not None:
        rows = list(clips.batches(data.micro_batch))
        picked = [clips[rows[index]] for index in np.linspace(0, len(rows) - 1, min(batches, len(rows))).astype(int)]
    else:
        loader = data.train_dataloader()
        picked = [data.train_clips[part] for part in itertools.islice(loader.sampler, batches)]
    mode = module.training
    module.eval()
    scores = [module.score(packed.to(module.device)).detach() for packed in picked]
    module.train(mode)
    return sum(scores[1:], start=scores[0])


def describe_scores(scores: Scores, codebook_size: int) -> str:
    """A line that compares the first cross-entropies with those of uniform guessing, and says what that means."""
    per_codebook = (scores.sums_K / scores.counts_K).tolist()
    chance = math.log(codebook_size)
    values = ", ".join(f"q{number} {value:.3f}" for number, value in enumerate(per_codebook, start=1))
    loss = float(scores.loss)
    if loss > chance + 0.5:
        verdict = "worse than knowing nothing: weights and data do not belong together"
    elif loss > chance - 0.2:
        verdict = "as of a model that knows nothing, right for one from scratch and wrong for a trained one"
    else:
        verdict = "the model knows something of this data"
    return f"cross-entropy before the first step: {loss:.3f} ({values}); ln({codebook_size}) = {chance:.3f}. {verdict}"


def run_checks(
    settings: CheckSettings,
    module: MusicgenTraining,
    composite: MusicgenForConditionalGeneration,
    data: LatentDataModule,
    folder: Path,
    say: Callable[[str], None],
) -> Scores:
    """Make all checks.

    Args:
        settings: which checks.
        module: the module to be trained.
        composite: decodes clips to audio.
        data: the run's data.
        folder: the folder for the audio of the round trips.
        say: prints a line.

    Returns:
        The first scores.
    """
    paths = []
    for part, dataset in zip(data.settings.parts, data.train_clips.datasets, strict=True):
        of_part = folder if len(data.settings.parts) == 1 else folder / part.name
        paths += write_round_trips(composite, dataset, settings.round_trips, of_part)
    say(f"{len(paths)} training clips decoded back to audio in {folder}: listen, no model will sound better")
    scores = first_scores(module, data, settings.batches)
    say(describe_scores(scores, data.manifest.codebook_size))
    return scores
