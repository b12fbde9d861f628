"""What is looked at before a run: does the data sound right, does the model begin where it should, will it fit?

Most of "it trains, but I get noise" is seen here, before an hour of training is spent.
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
    """What is checked before fit."""

    enabled: bool
    """False leaves all of it out."""
    round_trips: int
    """Clips of the training split that are decoded back to audio."""
    batches: int
    """Batches whose cross-entropy is taken before the first step."""

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
    """Decode some clips of the data back to audio, with their captions in `captions.txt`: listen to them.

    What is heard is the best that any model trained on this data can sound like.
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
    """What the model makes of some validation batches (training ones where there is no validation split) before the
    first step, in eval mode."""
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
    """The first cross-entropies beside what knowing nothing gives, and what that means."""
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
    """Round trips, first cross-entropies; `say` prints a line of what was found."""
    paths = []
    for part, dataset in zip(data.settings.parts, data.train_clips.datasets, strict=True):
        of_part = folder if len(data.settings.parts) == 1 else folder / part.name
        paths += write_round_trips(composite, dataset, settings.round_trips, of_part)
    say(f"{len(paths)} training clips decoded back to audio in {folder}: listen, no model will sound better")
    scores = first_scores(module, data, settings.batches)
    say(describe_scores(scores, data.manifest.codebook_size))
    return scores
