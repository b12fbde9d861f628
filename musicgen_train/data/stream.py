"""Decides which clips each optimizer step is made of: an endless stream that depends on the seed alone.

Every dataset has its own stream: its rows, shuffled anew for every pass, one pass after the other. An optimizer step
takes the next clips of each dataset, as many as the mix says. The place of a run in its data is therefore a number of
steps, whatever the number of workers, ranks and micro-batches.

Steps are planned in windows. Within a window and a quarter of a pass, clips trade places so that those of a step have
about the same length, and little of a batch is padding. No clip leaves its pass for that: none is drawn again before
all others of its dataset have been.

A run that is resumed with another global batch first takes the clips that its last window has left, then continues in
the stream.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from musicgen_train.data.mix import MixOrder

# With this many steps to choose from, the lengths within a step are close to each other.
_WINDOW_STEPS = 64
# Clips trade places within a quarter of a pass only, so that it stays random which of them share a step.
_PARTS_OF_PASS = 4
# Seeds of the two kinds of random choices: the order of rows, and the order of steps within a window.
_ORDER, _WINDOW = 0, 1


class Draw(NamedTuple):
    """One clip of the stream. Its crop, caption and caption dropout are seeded with these three numbers."""

    dataset: int
    """Number of the dataset in the mix; 0 where there is one."""
    row: int
    epoch: int
    """Passes over that dataset before this one."""


class Stretch(NamedTuple):
    """A number of consecutive steps that were made with the same global batch."""

    steps: int
    global_batch: int


@dataclass(frozen=True)
class MicroBatch:
    """The clips that one rank computes on at once."""

    draws: tuple[Draw, ...]
    step_frames: np.ndarray
    """Lengths of all clips of the optimizer step, int64."""
    index: int
    """The number of the micro-batch in the run; it is the same on all ranks."""


class StepStream:
    """Gives the clips of every optimizer step.

    Args:
        frames: per dataset int `(clips,)`, the length of each clip after cropping.
        global_batch: clips per optimizer step, over ranks and micro-batches.
        seed: decides the order.
        mix: the shares of the datasets; None if there is only one.
        history: the steps that were made with other global batches before, the earliest first.

    Raises:
        ValueError: a dataset has no clips, or `global_batch` is below 1.
    """

    def __init__(
        self,
        frames: Sequence[np.ndarray],
        global_batch: int,
        seed: int,
        *,
        mix: MixOrder | None = None,
        history: Sequence[Stretch] = (),
    ) -> None:
        if not all(len(lengths) for lengths in frames):
            raise ValueError("there are no clips to train on")
        if global_batch < 1:
            raise ValueError(f"global_batch is {global_batch}; it must be 1 or more clips")
        self.global_batch = global_batch
        self.history = tuple(history)
        rows = _ShuffledRows(frames, seed)
        mix = mix or MixOrder([1.0] * len(frames))
        batches = [*(stretch.global_batch for stretch in history), global_batch]
        plan = _Plan(rows, mix, seed, batches[0])
        for stretch, following in zip(history, batches[1:], strict=True):
            plan = plan.go_on(stretch.steps, following)
        self.first_step = plan.first_step
        """The first step that is made with this global batch; steps before it are not planned again."""
        self._plan = plan
        # Two windows are cached, for callers that look at the steps on both sides of a border.
        self._window = functools.lru_cache(maxsize=2)(plan.window)

    def step(self, step: int) -> list[Draw]:
        """The clips of an optimizer step, the shortest first."""
        window, within = self._place(step)
        return [Draw(*draw) for draw in self._window(window).draws[within].tolist()]

    def lengths(self, step: int) -> np.ndarray:
        """The lengths of those clips, int64 `(global_batch,)`."""
        window, within = self._place(step)
        return self._window(window).lengths[within]

    def padding_share(self, micro_batch: int, steps: int) -> float:
        """The share of padding in the batches of the first `steps` steps, 0 to 1."""
        held = padded = 0
        for step in range(self.first_step, self.first_step + steps):
            parts = self.lengths(step).reshape(-1, micro_batch)
            held += int(parts.sum())
            padded += int(parts.max(axis=1).sum()) * micro_batch
        return 1 - held / padded

    def done(self, steps: int) -> tuple[Stretch, ...]:
        """The history of a run after `steps` steps, from which it can be resumed with any global batch."""
        since = steps - self.first_step
        return (*self.history, Stretch(since, self.global_batch)) if since else self.history

    def _place(self, step: int) -> tuple[int, int]:
        assert step >= self.first_step, f"step {step} is before step {self.first_step}, where this stream begins"
        return divmod(step - self.first_step, _WINDOW_STEPS)


@dataclass(frozen=True)
class _Window:
    """The clips of some steps. Axes: S steps, G clips of a step."""

    draws: np.ndarray
    """int64 `(S, G, 3)`: see `Draw`."""
    positions: np.ndarray
    """int64 `(S, G)`: the position of each clip in the stream of its dataset."""
    lengths: np.ndarray
    """int64 `(S, G)`."""


@dataclass(frozen=True)
class _Plan:
    """Cuts the stream into windows and steps, beginning with one step.

    The mix says how many clips of each dataset any number of draws takes, which decides the step that draws clip number
    c of a dataset. That clip is at position c of the dataset's stream, except for the clips that were left over when
    the global batch changed: they come first.
    """

    rows: _ShuffledRows
    mix: MixOrder
    seed: int
    global_batch: int
    first_step: int = 0
    first_draw: int = 0
    """Clips drawn before the first step, of all datasets."""
    left: tuple[np.ndarray, ...] | None = None
    """Per dataset, the positions in its stream that earlier windows did not draw, sorted."""

    def window(self, window: int) -> _Window:
        """The clips of a window's steps, arranged so that those of a step have about the same length."""
        first = self.first_draw + window * _WINDOW_STEPS * self.global_batch
        drawn_SD = self.mix.counts(first + self.global_batch * np.arange(_WINDOW_STEPS + 1))
        length_rank = np.random.default_rng([self.seed, _WINDOW, first]).permutation(_WINDOW_STEPS)
        columns = [self._of_dataset(dataset, drawn, length_rank) for dataset, drawn in enumerate(drawn_SD.T)]
        steps, datasets, rows, epochs, positions, lengths = (
            np.concatenate(parts) for parts in zip(*columns, strict=True)
        )
        place = np.lexsort((lengths, steps))
        shape = (_WINDOW_STEPS, self.global_batch)
        draws = np.stack([datasets, rows, epochs], axis=-1)
        return _Window(draws[place].reshape(*shape, 3), positions[place].reshape(shape), lengths[place].reshape(shape))

    def go_on(self, steps: int, global_batch: int) -> _Plan:
        """The plan that continues after `steps` steps with another global batch: first the clips that are left over."""
        drawn = self.first_draw + steps * self.global_batch
        windows, within = divmod(steps, _WINDOW_STEPS)
        left = []
        for dataset, first in enumerate(self.mix.counts(drawn)):
            begun = self.mix.counts(drawn + (_WINDOW_STEPS - within) * self.global_batch)[dataset] if within else first
            beyond = self._positions(dataset, np.arange(begun, max(begun, self._fresh(dataset))))
            left.append(beyond)
        if within:
            window = self.window(windows)
            positions, datasets = window.positions[within:], window.draws[within:, :, 0]
            left = [np.concatenate([positions[datasets == number], beyond]) for number, beyond in enumerate(left)]
        return _Plan(
            *(self.rows, self.mix, self.seed, global_batch),
            first_step=self.first_step + steps,
            first_draw=drawn,
            left=tuple(np.sort(positions) for positions in left),
        )

    def _of_dataset(self, dataset: int, drawn: np.ndarray, length_rank: np.ndarray) -> tuple[np.ndarray, ...]:
        """The clips of one dataset that a window draws, as int64 arrays: step, dataset, row, epoch, position, length.

        Args:
            drawn: clips of the dataset drawn before each step of the window, and after the last.
            length_rank: the rank of each step by the length of its clips.
        """
        steps = np.repeat(np.arange(_WINDOW_STEPS), np.diff(drawn))
        positions = self._positions(dataset, np.arange(drawn[0], drawn[-1]))
        rows, epochs = self.rows.at(dataset, positions)
        lengths = self.rows.frames[dataset][rows].astype(np.int64)
        part = positions * _PARTS_OF_PASS // len(self.rows.frames[dataset])
        # Within each part of a pass, places are sorted by the rank of their step and clips by length, then matched.
        # Sorting is stable, so clips of equal length stay in random order.
        places, clips = np.lexsort((length_rank[steps], part)), np.lexsort((lengths, part))
        at = np.empty_like(clips)
        at[places] = clips
        return steps, np.full_like(rows, dataset), rows[at], epochs[at], positions[at], lengths[at]

    def _positions(self, dataset: int, numbers: np.ndarray) -> np.ndarray:
        """The positions in a dataset's stream of its clips with these numbers."""
        if self.left is None or not len(numbers):
            return numbers
        left = self.left[dataset]
        since = numbers - int(self.mix.counts(self.first_draw)[dataset])
        among = since < len(left)
        positions = numbers.copy()
        positions[among] = left[since[among]]
        return positions

    def _fresh(self, dataset: int) -> int:
        """The first clip number of a dataset that equals its position in the stream, past the left-over clips."""
        held = 0 if self.left is None else len(self.left[dataset])
        return int(self.mix.counts(self.first_draw)[dataset]) + held


class _ShuffledRows:
    """Shuffles the rows of each dataset anew for every pass.

    Args:
        frames: per dataset int `(clips,)`, the length of each clip.
        seed: decides the order.
    """

    def __init__(self, frames: Sequence[np.ndarray], seed: int) -> None:
        self.frames = frames
        self._seed = seed
        # Two orders per dataset are cached: around the border of two passes both are needed.
        self._order = functools.lru_cache(maxsize=2 * len(frames))(self._shuffled)

    def at(self, dataset: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and epoch at each position of a dataset's stream, int64."""
        epochs, places = np.divmod(positions, len(self.frames[dataset]))
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._order(dataset, int(epoch))[places[epochs == epoch]]
        return rows, epochs

    def _shuffled(self, dataset: int, epoch: int) -> np.ndarray:
        order = np.random.default_rng([self._seed, _ORDER, dataset, epoch]).permutation(len(self.frames[dataset]))
        return order.astype(np.int32)  # the cached orders are most of the memory that the data of a run takes


class MicroBatchSampler(Sampler[MicroBatch]):
    """Iterates over one rank's micro-batches of all steps that a run has still to make.

    Args:
        stream: the clips of all ranks.
        micro_batch: clips that a rank computes on at once.
        rank: the number of this rank.
        world_size: the number of ranks.
        total_steps: optimizer steps of the whole run.
        steps_done: the steps that a resumed run has made already.

    Raises:
        ValueError: the global batch is no multiple of `micro_batch * world_size`.
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
        """Micro-batches of the whole run, including those that were made before it was resumed."""
        return self._total_steps * self.accumulate

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self._steps_done, self._total_steps):
            draws = self._stream.step(step)
            step_frames = self._stream.lengths(step)
            for part in range(self.accumulate):
                # Ranks get neighbouring clips, of about the same length: they wait little for each other.
                first = (part * self._world_size + self._rank) * self._micro_batch
                yield MicroBatch(
                    draws=tuple(draws[first : first + self._micro_batch]),
                    step_frames=step_frames,
                    index=step * self.accumulate + part,
                )


def micro_batches_per_step(global_batch: int, micro_batch: int, world_size: int) -> int:
    """The number of micro-batches over which a rank accumulates gradients.

    Raises:
        ValueError: the micro-batches of all ranks do not add up to the global batch.
    """
    at_once = micro_batch * world_size
    if micro_batch < 1 or global_batch % at_once:
        raise ValueError(
            f"data.global_batch_size={global_batch} is no multiple of data.micro_batch_size={micro_batch} times "
            f"{world_size} device(s); use a multiple of {max(at_once, 1)}, or another data.micro_batch_size"
        )
    return global_batch // at_once
