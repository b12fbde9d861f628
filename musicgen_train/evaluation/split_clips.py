"""The part of a latent dataset that is evaluated: which clips, with which captions, in which batches.

Axes: K codebooks, T frames, L text length, D text width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from musicgen_train.data.batch import Batch, Example, collate
from musicgen_train.data.latent_dataset import Clip, LatentDataset
from musicgen_train.latents.manifest import Manifest

Condition = Literal["own", "another clip's", "none"]
"""The caption that a clip is scored with."""

# Where no split is named, one that was not trained on is preferred.
_PREFERRED = ("validation", "test", "train")


def choose_split(manifest: Manifest, asked: str | None) -> str:
    """The split to evaluate: the one asked for, or the first of validation, test and train that has clips.

    Raises:
        ValueError: there is no such split, or it has no clips.
    """
    filled = [name for name, split in manifest.splits.items() if split.clips > 0]
    if asked is None:
        named = [name for name in _PREFERRED if name in filled] + filled
        if not named:
            raise ValueError("no split of the dataset has clips; preprocess again")
        return named[0]
    if asked not in filled:
        raise ValueError(f"data.split is {asked!r}; splits with clips are: {', '.join(filled) or 'none'}")
    return asked


class SplitClips:
    """Some clips of a split, each with its first caption, cut to a length.

    Args:
        dataset: the split.
        rows: which of its clips.
        max_frames: the frames of a clip beyond this are left out.
    """

    def __init__(self, dataset: LatentDataset, rows: Sequence[int], max_frames: int) -> None:
        self.dataset = dataset
        self.rows = list(rows)
        self._max_frames = max_frames
        self._captions = [next(iter(dataset[row].captions), None) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def codes(self, number: int) -> torch.Tensor:
        """Codes of the clip with this number in `rows`, int64 `(K, T)`."""
        return torch.from_numpy(self._codes(number).astype(np.int64))

    def clip(self, number: int) -> Clip:
        """The row as it is stored."""
        return self.dataset[self.rows[number]]

    def caption(self, number: int) -> str:
        """The clip's first caption, "" where it has none."""
        caption = self._captions[number]
        return "" if caption is None else self.dataset.caption(caption)

    def states(self, number: int, condition: Condition = "own") -> torch.Tensor | None:
        """Stored text states `(L, D)`; None for the null condition."""
        caption = {"own": self._captions[number], "none": None, "another clip's": self._other_caption(number)}[
            condition
        ]
        return None if caption is None else self.dataset.states(caption)

    def batches(self, batch_size: int, condition: Condition = "own") -> Iterator[Batch]:
        """All clips in order, in batches of at most `batch_size`."""
        for start in range(0, len(self), batch_size):
            numbers = range(start, min(start + batch_size, len(self)))
            examples = [Example(self._codes(number), self.states(number, condition)) for number in numbers]
            yield collate(examples, self.dataset.manifest.text_width)

    def has_other_captions(self) -> bool:
        """Tells whether captions differ, so that "another clip's" means something."""
        return len({caption for caption in self._captions if caption is not None}) > 1

    def _codes(self, number: int) -> np.ndarray:
        return self.clip(number).codes_KT[:, : self._max_frames]

    def _other_caption(self, number: int) -> int | None:
        """The first caption that differs from the clip's own, going on from the clip halfway around."""
        own, count = self._captions[number], len(self)
        for step in range(count):
            other = self._captions[(number + max(1, count // 2) + step) % count]
            if other is not None and other != own:
                return other
        return own


def spread_clips(dataset: LatentDataset, wanted: int | None, max_frames: int) -> SplitClips:
    """At most `wanted` clips of a split, evenly spread; all of them for None."""
    total = len(dataset)
    return SplitClips(dataset, spread_rows(total, total if wanted is None else wanted), max_frames)


def spread_rows(total: int, wanted: int) -> list[int]:
    """At most `wanted` of `total` rows, evenly spread, the first among them."""
    count = min(total, wanted)
    return [number * total // count for number in range(count)]
