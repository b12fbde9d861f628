"""The loaders of a training run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
from torch.utils.data import DataLoader, Dataset

from musicgen_train.data.batch import Batch, Example, collate, nothing
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.data.stream import MicroBatch, MicroBatchSampler, StepStream, micro_batches_per_step
from musicgen_train.latents.manifest import Manifest

# Keeps the generators of clips apart from those of the stream's order.
_CLIP = 2


@dataclass(kw_only=True)
class DataSettings:
    """What is read, and how it is cut into batches."""

    path: str
    """The latent dataset's folder."""
    crop_seconds: float | None
    """Longer clips are cut to this length at a random place; None for whole clips."""
    global_batch_size: int
    """Clips per optimizer step, over all devices and micro-batches."""
    micro_batch_size: int | None
    """Clips that a device takes at once; None for the global batch divided among the devices."""
    cfg_dropout: float
    """How often a clip is trained without its caption, for guidance."""
    validation_clips: int | None
    """At most so many clips are validated on; None for all."""
    workers: int
    """Processes that read; 0 reads in the training process."""

    def __post_init__(self) -> None:
        if not 0 <= self.cfg_dropout <= 1:
            raise ValueError(f"data.cfg_dropout is {self.cfg_dropout}; it must be 0 to 1")
        if self.crop_seconds is not None and self.crop_seconds <= 0:
            raise ValueError(f"data.crop_seconds is {self.crop_seconds}; it must be above 0, or null for whole clips")
        if self.global_batch_size < 1:
            raise ValueError(f"data.global_batch_size is {self.global_batch_size}; it must be 1 or more")
        if self.validation_clips is not None and self.validation_clips < 0:
            raise ValueError(f"data.validation_clips is {self.validation_clips}; it must be 0 or more, or null for all")

    def micro_batch(self, world_size: int) -> int:
        """Clips that each of so many devices takes at once.

        Raises:
            ValueError: they cannot make up the global batch.
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
    """Batches for training and validation.

    Where a run stands in its data is the number of optimizer steps it has made; that is saved in its checkpoints, and
    the loader goes on from there, mid-pass or not.

    Args:
        settings: see `DataSettings`.
        seed: where order, crops, captions and caption dropout come from.
        total_steps: optimizer steps of the run.
        world_size: devices that train.

    Raises:
        FileNotFoundError, ValueError: there is no dataset, it is damaged, or the batch sizes do not fit.
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
        train = LatentDataset(settings.path, "train")
        self.manifest: Manifest = train.manifest
        self.train_clips = TrainingClips(train, self.crop_frames, settings.cfg_dropout, seed)
        self.validation_clips = self._validation_clips()
        self.stream = StepStream(self.train_clips.frames, settings.global_batch_size, seed)

    @property
    def crop_frames(self) -> int | None:
        seconds = self.settings.crop_seconds
        return None if seconds is None else max(1, round(seconds * self.manifest.frame_rate))

    @property
    def padding_share(self) -> float:
        """The share of padding in training batches, estimated on the first steps."""
        return self.stream.padding_share(self.micro_batch, min(self.total_steps, 2 * self.stream.window_steps))

    def probe(self, frames: int) -> Batch:
        """The beginning of one training clip with its first caption, as a batch of one: cheap to run a model on."""
        clips = self.train_clips.dataset
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

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        if self.validation_clips is None:
            return []
        rank = 0 if self.trainer is None else self.trainer.global_rank
        batches = self.validation_clips.batches(self.micro_batch, rank, self._world_size)
        return DataLoader(self.validation_clips, sampler=batches, **self._loading())

    def state_dict(self) -> dict[str, Any]:
        steps = self._steps_done if self.trainer is None else self.trainer.global_step
        return {"steps": steps, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a run was.

        Raises:
            ValueError: the run drew from other data, or in another way.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(
                    f"the run to resume has {name}={state[name]}, this one {value}: its place in the data would be "
                    "lost. Resume with what it was started with, or start a new run with init_from"
                )
        self._steps_done = state["steps"]

    def _identity(self) -> dict[str, Any]:
        return {
            "global_batch_size": self.settings.global_batch_size,
            "seed": self._seed,
            "clips": len(self.train_clips.dataset),
        }

    def _validation_clips(self) -> ValidationClips | None:
        split = self.manifest.splits.get("validation")
        if split is None or not split.clips or self.settings.validation_clips == 0:
            return None
        dataset = LatentDataset(self.settings.path, "validation")
        return ValidationClips(dataset, self.crop_frames, self.settings.validation_clips)

    def _loading(self) -> dict[str, Any]:
        workers = self.settings.workers
        return {
            # A sampler's index is a whole micro-batch, so the dataset gives batches and nothing is left to collate.
            "batch_size": None,
            "collate_fn": _as_it_is,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }


class TrainingClips(Dataset[Batch]):
    """Micro-batches of clips, each cut, captioned or not as its position in the stream says."""

    def __init__(self, dataset: LatentDataset, crop_frames: int | None, cfg_dropout: float, seed: int) -> None:
        self.dataset = dataset
        self.frames = _cropped(dataset.frames, crop_frames)
        self._cfg_dropout = cfg_dropout
        self._seed = seed

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        examples = [self._example(draw.row, draw.position) for draw in micro_batch.draws]
        batch = collate(examples, self.dataset.manifest.text_width)
        batch.step_frames = batch.frames.new_tensor(micro_batch.step_frames)
        batch.index = micro_batch.index
        return batch

    def _example(self, row: int, position: int) -> Example:
        # One generator per draw: it does not matter which process makes it, or when.
        random = np.random.default_rng([self._seed, _CLIP, position])
        which, where, null = random.random(3)
        clip, frames = self.dataset[row], int(self.frames[row])
        first = int(where * (clip.codes_KT.shape[1] - frames + 1))
        states = None
        if clip.captions and null >= self._cfg_dropout:
            states = self.dataset.states(clip.captions[int(which * len(clip.captions))])
        return Example(clip.codes_KT[:, first : first + frames], states)


class ValidationClips(Dataset[Batch]):
    """Batches of clips, always the same: each one's beginning, under its first caption."""

    def __init__(self, dataset: LatentDataset, crop_frames: int | None, limit: int | None) -> None:
        self.dataset = dataset
        self.frames = _cropped(dataset.frames[:limit], crop_frames)

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
        """The rows of each of a rank's batches, sorted by length so that little is padding.

        All ranks have equally many batches, since they run the model together; one too many has no rows.
        """
        rows = np.argsort(self.frames, kind="stable")
        count = -(-len(rows) // (size * world_size))
        mine = rows[rank::world_size]
        return [mine[first : first + size] for first in range(0, count * size, size)]

    def __getitem__(self, rows: np.ndarray) -> Batch:
        manifest = self.dataset.manifest
        if not len(rows):
            return nothing(manifest.num_codebooks, manifest.text_width)
        return collate([self._example(int(row)) for row in rows], manifest.text_width)

    def _example(self, row: int) -> Example:
        clip = self.dataset[row]
        states = self.dataset.states(clip.captions[0]) if clip.captions else None
        return Example(clip.codes_KT[:, : self.frames[row]], states)


class TimedLoader(DataLoader[Batch]):
    """A loader that knows how long it was waited for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waited = 0.0
        """Seconds that the training loop has spent in getting batches."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            begin = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - begin
            yield batch

    # The place in the data is the data module's to save; these tell Lightning that resuming is taken care of.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


def _cropped(frames: np.ndarray, crop_frames: int | None) -> np.ndarray:
    return np.minimum(frames, math.inf if crop_frames is None else crop_frames).astype(np.int64)


def _as_it_is(batch: Batch) -> Batch:
    return batch
