"""The loaders of a training run."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch.utils.data import Dataset

from musicgen_train.data.batch import Batch, Example, collate
from musicgen_train.data.keyed_random import uniform
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.data.loader import LastingLoader, TimedLoader
from musicgen_train.data.mix import MixOrder, MixPart, require_compatible
from musicgen_train.data.stream import (
    Draw,
    MicroBatch,
    MicroBatchSampler,
    StepStream,
    Stretch,
    micro_batches_per_step,
)
from musicgen_train.latents.manifest import Manifest

# The share of padding is estimated on this many steps.
_STEPS_LOOKED_AT = 128


@dataclass(kw_only=True)
class DataSettings:
    """Which latents are trained on, and how they are batched."""

    path: str | None
    """The latent dataset's folder; None for a mix."""
    mix: list[Any] | None = None
    """Several latent datasets, each as {path: FOLDER, weight: NUMBER} and maybe a name; see `MixPart`."""
    crop_seconds: float | None
    """Longer clips are cut to this length at a random place; None for whole clips."""
    global_batch_size: int
    """Clips per optimizer step, over all devices and micro-batches."""
    micro_batch_size: int | None
    """Clips that a device computes on at once; None for the global batch divided among the devices."""
    cfg_dropout: float
    """The probability that a clip is trained without its caption, for classifier-free guidance."""
    validation_clips: int | None
    """At most so many clips are validated on; None for all."""
    workers: int
    """Worker processes that read; 0 reads in the training process."""

    def __post_init__(self) -> None:
        self.parts = self._parts()
        """The datasets of the mix; a single one if `path` is given."""
        if not 0 <= self.cfg_dropout <= 1:
            raise ValueError(f"data.cfg_dropout is {self.cfg_dropout}; it must be 0 to 1")
        if self.crop_seconds is not None and self.crop_seconds <= 0:
            raise ValueError(f"data.crop_seconds is {self.crop_seconds}; it must be above 0, or null for whole clips")
        if self.global_batch_size < 1:
            raise ValueError(f"data.global_batch_size is {self.global_batch_size}; it must be 1 or more")
        if self.validation_clips is not None and self.validation_clips < 0:
            raise ValueError(f"data.validation_clips is {self.validation_clips}; it must be 0 or more, or null for all")

    def _parts(self) -> list[MixPart]:
        if (self.path is None) == (self.mix is None):
            raise ValueError("give either data.path=LATENTS for one dataset, or data=mix with data.mix for several")
        if self.path is not None:
            return [MixPart(path=self.path)]
        parts = [MixPart.from_config(values) for values in self.mix or []]
        names = [part.name for part in parts]
        if len(set(names)) < max(1, len(names)):
            raise ValueError(
                f"data.mix has the datasets {', '.join(names) or '(none)'}; it needs one or more, each with a name of "
                "its own: add name: NAME where folders are called alike"
            )
        return parts

    def micro_batch(self, world_size: int) -> int:
        """Clips that each device computes on at once.

        Raises:
            ValueError: the micro-batches of `world_size` devices do not add up to the global batch.
        """
        if self.micro_batch_size is None:
            if self.global_batch_size % world_size:
                raise ValueError(
                    f"data.global_batch_size={self.global_batch_size} cannot be divided among {world_size} devices; "
                    f"use a multiple of {world_size}"
                )
            return self.global_batch_size // world_size
        micro_batches_per_step(self.global_batch_size, self.micro_batch_size, world_size)
        return self.micro_batch_size

    def accumulate(self, world_size: int) -> int:
        """Micro-batches per optimizer step on each device."""
        return micro_batches_per_step(self.global_batch_size, self.micro_batch(world_size), world_size)


class LatentDataModule(lightning.LightningDataModule):
    """Gives batches for training and validation.

    The place of a run in its data is the number of optimizer steps it has made, and with which global batches;
    checkpoints hold it. A resumed run continues there, also in the middle of a pass, with any number of workers and
    devices, and with another global batch if asked for: no clip of a pass is repeated or left out.

    Args:
        settings: see `DataSettings`.
        seed: decides order, crops, captions and caption dropout.
        total_steps: optimizer steps of the run.
        world_size: devices that train.

    Raises:
        FileNotFoundError, ValueError: there is no dataset, it is damaged, datasets of a mix do not belong together, or
            the batch sizes do not fit.
    """

    def __init__(self, settings: DataSettings, *, seed: int, total_steps: int, world_size: int = 1) -> None:
        super().__init__()
        self.settings = settings
        self.total_steps = total_steps
        self.micro_batch = settings.micro_batch(world_size)
        self.accumulate = settings.accumulate(world_size)
        self._seed = seed
        self._world_size = world_size
        self._steps_done = 0
        mix = MixOrder([part.weight for part in settings.parts])
        self.shares: list[float] = mix.shares.tolist()
        """The share of each dataset among the clips that are trained on."""
        train = [LatentDataset(part.path, "train") for part in settings.parts]
        self.manifest: Manifest = train[0].manifest
        """The manifest of the first dataset; all datasets of a mix agree in what a model has to fit."""
        for part, dataset in zip(settings.parts, train, strict=True):
            require_compatible(self.manifest, settings.parts[0].path, dataset.manifest, part.path)
        self.train_clips = TrainingClips(train, self.crop_frames, settings.cfg_dropout, seed)
        self.validation_clips = self._validation_clips()
        self._make_stream = functools.partial(
            StepStream, self.train_clips.frames_of, settings.global_batch_size, seed, mix=mix
        )
        self.stream = self._make_stream()

    @property
    def crop_frames(self) -> int | None:
        seconds = self.settings.crop_seconds
        return None if seconds is None else max(1, round(seconds * self.manifest.frame_rate))

    @property
    def padding_share(self) -> float:
        """The share of padding in training batches, estimated on the first steps."""
        return self.stream.padding_share(self.micro_batch, min(self.total_steps, _STEPS_LOOKED_AT))

    def probe(self, frames: int) -> Batch:
        """A batch of one: the beginning of a training clip with its first caption, cheap to run a model on."""
        clips = self.train_clips.datasets[0]
        clip = clips[0]
        states = clips.states(clip.captions[0]) if clip.captions else None
        return collate([Example(clip.codes_KT[:, :frames], states)], self.manifest.text_width)

    def train_dataloader(self) -> TimedLoader:
        rank = 0 if self.trainer is None else self.trainer.global_rank
        sampler = MicroBatchSampler(
            self.stream,
            micro_batch=self.micro_batch,
            rank=rank,
            world_size=self._world_size,
            total_steps=self.total_steps,
            steps_done=self._steps_done,
        )
        return TimedLoader(self.train_clips, sampler=sampler, **self._loading())

    def val_dataloader(self) -> LastingLoader | list[Any]:
        if self.validation_clips is None:
            return []
        rank = 0 if self.trainer is None else self.trainer.global_rank
        batches = self.validation_clips.batches(self.micro_batch, rank, self._world_size)
        return LastingLoader(self.validation_clips, sampler=batches, **self._loading())

    @property
    def validation_losses(self) -> dict[int, str]:
        """The names under which the losses of a mix's datasets are logged, by number; empty for a single dataset."""
        if self.validation_clips is None or len(self.settings.parts) == 1:
            return {}
        return {number: f"val/loss_{self.settings.parts[number].name}" for number in self.validation_clips.datasets}

    def passes(self, steps: int) -> float:
        """The number of passes over the clips of all datasets together in the first `steps` steps."""
        draws = sum(stretch.steps * stretch.global_batch for stretch in self.stream.done(steps))
        return draws / sum(len(dataset) for dataset in self.train_clips.datasets)

    def describe_mix(self) -> list[str]:
        """A line per dataset of a mix: its share and the number of passes over it; empty for a single dataset."""
        if len(self.settings.parts) == 1:
            return []
        draws = self.total_steps * self.settings.global_batch_size
        return [
            f"data: {share:.1%} of the clips from {part.name} ({part.path}): {len(dataset)} clips, "
            f"{dataset.seconds / 3600:.2f} h, {draws * share / len(dataset):.1f} passes"
            for part, dataset, share in zip(self.settings.parts, self.train_clips.datasets, self.shares, strict=True)
        ]

    def describe_clips(self, clips: Iterable[tuple[int, int]]) -> list[str]:
        """Describe training clips for people: dataset, row, track and second; see `Batch.clips`."""
        return [self.train_clips.describe(dataset, row) for dataset, row in clips]

    def state_dict(self) -> dict[str, Any]:
        # Workers prefetch, so the number of fetched batches says nothing about the steps that were made.
        steps = self._steps_done if self.trainer is None else self.trainer.global_step
        return {"steps": steps, "done": [list(stretch) for stretch in self.stream.done(steps)], **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the place in the data that a checkpoint holds.

        Raises:
            ValueError: the run to resume had other data, another seed, or other shares.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the run to resume has {name}={state.get(name)}, this one {value}: its place in the data would be "
                    "lost. Resume with what it was started with, or start a new run with init_from"
                )
        self._steps_done = state["steps"]
        done = [Stretch(*stretch) for stretch in state["done"]]
        if done and done[-1].global_batch == self.settings.global_batch_size:
            # The last stretch continues, with the windows of a run that was never interrupted.
            done.pop()
        self.stream = self._make_stream(history=done)

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "clips": [len(dataset) for dataset in self.train_clips.datasets],
            "shares": self.shares,
            "data": [dataset.fingerprint() for dataset in self.train_clips.datasets],
        }

    def _validation_clips(self) -> ValidationClips | None:
        limit = self.settings.validation_clips
        found = []
        for number, dataset in enumerate(self.train_clips.datasets):
            split = dataset.manifest.splits.get("validation")
            if split is not None and split.clips and limit != 0:
                found.append((number, LatentDataset(dataset.folder, "validation")))
        return ValidationClips(dict(found), self.crop_frames, limit) if found else None

    def _loading(self) -> dict[str, Any]:
        workers = self.settings.workers
        return {
            # A sampler's index is a whole micro-batch, so the dataset gives batches and nothing is left to collate.
            "batch_size": None,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }


class TrainingClips(Dataset[Batch]):
    """Makes micro-batches; crop, caption and caption dropout of a clip depend on the seed, its epoch and its row."""

    def __init__(
        self, datasets: Sequence[LatentDataset], crop_frames: int | None, cfg_dropout: float, seed: int
    ) -> None:
        self.datasets = list(datasets)
        self.frames_of = [_cropped(dataset.frames, crop_frames) for dataset in datasets]
        """Per dataset int32 `(clips,)`, the length of each clip after cropping."""
        self._cfg_dropout = cfg_dropout
        self._seed = seed

    @property
    def frames(self) -> np.ndarray:
        """The lengths of all clips of all datasets, one after the other."""
        return self.frames_of[0] if len(self.frames_of) == 1 else np.concatenate(self.frames_of)

    @property
    def seconds(self) -> float:
        """Seconds of audio in all datasets."""
        return sum(dataset.seconds for dataset in self.datasets)

    def describe(self, dataset: int, row: int) -> str:
        """Describe a clip for people."""
        source = self.datasets[dataset]
        clip = source[row]
        return f"row {row} of {source.folder} ({clip.track} at {clip.start_seconds:g} s)"

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        examples = self.examples(micro_batch.draws)
        batch = collate(examples, self.datasets[0].manifest.text_width)
        batch.step_frames = torch.as_tensor(micro_batch.step_frames, dtype=torch.long)
        batch.index = micro_batch.index
        batch.clips = tuple((draw.dataset, draw.row) for draw in micro_batch.draws)
        return batch

    def examples(self, draws: Sequence[Draw]) -> list[Example]:
        """The clips of some draws; an example does not depend on the process or on the other draws."""
        choices_N3 = uniform(self._seed, np.array(draws, dtype=np.int64).reshape(-1, 3), count=3)
        return [self._example(draw, *choices) for draw, choices in zip(draws, choices_N3.tolist(), strict=True)]

    def _example(self, draw: Draw, which: float, where: float, null: float) -> Example:
        """One clip, given three random numbers from 0 to 1: for caption, place of the crop, and caption dropout."""
        dataset = self.datasets[draw.dataset]
        clip, frames = dataset[draw.row], int(self.frames_of[draw.dataset][draw.row])
        first = int(where * (clip.codes_KT.shape[1] - frames + 1))
        states = None
        if clip.captions and null >= self._cfg_dropout:
            states = dataset.states(clip.captions[int(which * len(clip.captions))])
        return Example(clip.codes_KT[:, first : first + frames], states)


class ValidationClips(Dataset[Batch]):
    """Makes validation batches, always the same ones: the beginning of each clip with its first caption.

    Args:
        datasets: the datasets by their number in the mix.
        crop_frames: longer clips are cut to this length.
        limit: at most so many clips of each dataset; None for all.
    """

    def __init__(self, datasets: Mapping[int, LatentDataset], crop_frames: int | None, limit: int | None) -> None:
        self.datasets = dict(datasets)
        self._frames_of = {
            number: _cropped(dataset.frames[:limit], crop_frames) for number, dataset in self.datasets.items()
        }

    @property
    def frames(self) -> np.ndarray:
        """The lengths of all clips that are validated on, int32."""
        return np.concatenate(list(self._frames_of.values()))

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> list[ValidationRows]:
        """The rows of each of a rank's batches, of one dataset each, sorted by length so that little is padding.

        All ranks have the same number of batches, since they run the model together; a surplus batch has no rows.
        """
        return [
            ValidationRows(number, rows)
            for number, frames in self._frames_of.items()
            for rows in _dealt(np.argsort(frames, kind="stable"), size, rank, world_size)
        ]

    def __getitem__(self, which: ValidationRows) -> Batch:
        dataset, frames = self.datasets[which.dataset], self._frames_of[which.dataset]
        manifest = dataset.manifest
        examples = []
        for row in which.rows.tolist():
            clip = dataset[row]
            states = dataset.states(clip.captions[0]) if clip.captions else None
            examples.append(Example(clip.codes_KT[:, : frames[row]], states))
        nothing = Example(np.zeros((manifest.num_codebooks, 0), dtype=np.int16), None)
        batch = collate(examples or [nothing], manifest.text_width)
        batch.clips = tuple((which.dataset, row) for row in which.rows.tolist())
        batch.dataset = which.dataset
        return batch


class ValidationRows(NamedTuple):
    """The rows of a validation batch."""

    dataset: int
    """The number of the dataset in the mix."""
    rows: np.ndarray
    """int64."""


def _dealt(rows: np.ndarray, size: int, rank: int, world_size: int) -> list[np.ndarray]:
    count = -(-len(rows) // (size * world_size))
    mine = rows[rank::world_size]
    return [mine[first : first + size] for first in range(0, count * size, size)]


def _cropped(frames: np.ndarray, crop_frames: int | None) -> np.ndarray:
    return frames if crop_frames is None else np.minimum(frames, np.int32(crop_frames))
