"""Which clips each optimizer step is made of: an endless stream that follows from the seed alone.

The stream is the rows of the split in a new random order for every pass, one pass after the other. Step s takes the
next `global_batch` of them, wherever passes begin. So nothing but the number of steps says where a run is, whatever
the number of workers, ranks and micro-batches.

Steps are planned in windows: the rows of some steps are sorted by length and cut into steps anew, whose order is then
random again. Clips of a step are thereby of about one length, and little of a batch is padding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

# Enough for the lengths of a step to be close to each other; fewer than a quarter of a pass, so that it stays random.
_WINDOW_STEPS = 64
# Which random choice a generator is for.
_ORDER, _WINDOW = 0, 1


class Draw(NamedTuple):
    """One clip of the stream."""

    row: int
    position: int
    """Number of this draw in the stream: what seeds the choices that are made for it."""


@dataclass(frozen=True)
class MicroBatch:
    """The clips that one rank takes at once."""

    draws: tuple[Draw, ...]
    step_frames: np.ndarray
    """Lengths of all clips of the optimizer step, int64."""
    index: int
    """Number of the micro-batch in the run; the same on all ranks."""


class StepStream:
    """The clips of every optimizer step.

    Args:
        frames: int `(clips,)`, the length of each clip as it is trained on.
        global_batch: clips per optimizer step, over ranks and micro-batches.
        seed: where the order comes from.

    Raises:
        ValueError: there are no clips, or `global_batch` is below 1.
    """

    def __init__(self, frames: np.ndarray, global_batch: int, seed: int) -> None:
        if not len(frames):
            raise ValueError("there are no clips to train on")
        if global_batch < 1:
            raise ValueError(f"global_batch is {global_batch}; it must be 1 or more clips")
        self.frames = np.asarray(frames, dtype=np.int64)
        self.global_batch = global_batch
        self.seed = seed
        self.window_steps = max(1, min(_WINDOW_STEPS, len(frames) // (4 * global_batch)))
        # Two of each: a step at the border of two windows or passes looks at both.
        self._order = functools.lru_cache(maxsize=2)(self._shuffled_rows)
        self._window = functools.lru_cache(maxsize=2)(self._planned_window)

    def step(self, step: int) -> list[Draw]:
        """The clips of an optimizer step, the shortest first."""
        window, within = divmod(step, self.window_steps)
        return self._window(window)[within]

    def lengths(self, step: int) -> np.ndarray:
        """The lengths of those clips, int64 `(global_batch,)`."""
        return self.frames[[draw.row for draw in self.step(step)]]

    def padding_share(self, micro_batch: int, steps: int) -> float:
        """The share of padding in the batches of the first steps, 0 to 1."""
        held = padded = 0
        for step in range(steps):
            for part in self.lengths(step).reshape(-1, micro_batch):
                held += int(part.sum())
                padded += int(part.max()) * len(part)
        return 1 - held / padded

    def _planned_window(self, window: int) -> list[list[Draw]]:
        size = self.window_steps * self.global_batch
        draws = [Draw(self._row(position), position) for position in range(window * size, (window + 1) * size)]
        draws.sort(key=lambda draw: self.frames[draw.row])  # stable: clips of one length stay in random order
        steps = [draws[first : first + self.global_batch] for first in range(0, size, self.global_batch)]
        order = np.random.default_rng([self.seed, _WINDOW, window]).permutation(len(steps))
        return [steps[index] for index in order]

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.frames))
        return int(self._order(epoch)[index])

    def _shuffled_rows(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.frames))


class MicroBatchSampler(Sampler[MicroBatch]):
    """One rank's part of every step of a run, from where it stands to its end.

    Args:
        stream: of all ranks.
        micro_batch: clips that a rank takes at once.
        rank, world_size: of how many ranks which one.
        total_steps: optimizer steps of the whole run.
        steps_done: steps to leave out, for a run that is resumed.

    Raises:
        ValueError: the global batch is no multiple of what all ranks take at once.
    """

    def __init__(
        self,
        stream: StepStream,
        *,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        total_steps: int,
        steps_done: int = 0,
    ) -> None:
        self.accumulate = micro_batches_per_step(stream.global_batch, micro_batch, world_size)
        self._stream = stream
        self._micro_batch = micro_batch
        self._rank, self._world_size = rank, world_size
        self._total_steps, self._steps_done = total_steps, steps_done

    def __len__(self) -> int:
        """Micro-batches of the whole run, those of the steps left out included."""
        return self._total_steps * self.accumulate

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self._steps_done, self._total_steps):
            draws = self._stream.step(step)
            step_frames = self._stream.lengths(step)
            for part in range(self.accumulate):
                # Ranks side by side, so that they have clips of one length and wait little for each other.
                first = (part * self._world_size + self._rank) * self._micro_batch
                yield MicroBatch(
                    draws=tuple(draws[first : first + self._micro_batch]),
                    step_frames=step_frames,
                    index=step * self.accumulate + part,
                )


def micro_batches_per_step(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Over how many micro-batches a rank accumulates gradients.

    Raises:
        ValueError: they do not add up to the global batch.
    """
    at_once = micro_batch * world_size
    if micro_batch < 1 or global_batch % at_once:
        raise ValueError(
            f"data.global_batch_size={global_batch} is no multiple of data.micro_batch_size={micro_batch} times "
            f"{world_size} device(s); use a multiple of {max(at_once, 1)}, or another data.micro_batch_size"
        )
    return global_batch // at_once
