"""Pads clips to a batch.

Axes: B batch, K codebooks, T frames, L text length, D text width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from musicgen_train.models.delay_pattern import training_labels
from musicgen_train.models.loss import IGNORE


@dataclass(frozen=True)
class Example:
    """One clip and the text states it is trained with."""

    codes_KT: np.ndarray
    """int16, aligned."""
    states_LD: torch.Tensor | None
    """Text states in any floating-point type; None for the null condition."""


@dataclass
class Batch:
    """Clips of one batch."""

    codes: torch.Tensor
    """int64 `(B, K, T)`, aligned; -100 on frames of padding."""
    text_states: torch.Tensor
    """float32 `(B, L, D)`, before the projection; zeros on padding."""
    text_mask: torch.Tensor
    """bool `(B, L)`; a row of False is the null condition."""
    frames: torch.Tensor
    """int64 `(B,)`, the length of each clip."""
    step_frames: torch.Tensor | None = None
    """int64: the lengths of all clips of the optimizer step that this batch belongs to, over micro-batches and ranks;
    None outside training."""
    index: int = 0
    """The number of this micro-batch in the run."""
    clips: tuple[tuple[int, int], ...] = ()
    """For each clip, the number of its dataset in the mix and its row there."""
    dataset: int = 0
    """The number in the mix of the dataset that a validation batch comes from."""

    def __len__(self) -> int:
        return self.codes.shape[0]

    def labels(self, delays: Sequence[int], special_id: int) -> torch.Tensor:
        """Delayed labels, int64 `(B, T, K)`; see `delay_pattern.training_labels`.

        Each clip is scored as if it were alone: codebook k on its first `frames - delay` codes. Without that cut a
        clip beside a longer one would be scored on up to `delay` codes more, and the loss would depend on which clips
        share a batch.
        """
        labels_BTK = training_labels(self.codes, list(delays), special_id)
        steps_T = torch.arange(labels_BTK.shape[1], device=labels_BTK.device)
        beyond_BT = steps_T >= self.frames[:, None]
        return labels_BTK.masked_fill(beyond_BT[..., None], IGNORE)

    def to(self, device: torch.device | str) -> Self:
        """Copy the batch to a device; copies from pinned memory to a CUDA device are asynchronous.

        All others are synchronous: a copy to Apple's MPS may otherwise read memory that has been given to others
        (pytorch issue 189690), and a copy to the CPU would return before the values have arrived.
        """
        beside = torch.device(device).type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=beside))

    def pin_memory(self) -> Self:
        """Copy the batch to page-locked memory; torch's loader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **tensors)


def collate(examples: Sequence[Example], text_width: int) -> Batch:
    """Pad clips and texts to the longest of each.

    Args:
        examples: at least one; all have the same number of codebooks.
        text_width: D, which a batch of null conditions alone does not show.
    """
    frames = [example.codes_KT.shape[1] for example in examples]
    texts = [0 if example.states_LD is None else len(example.states_LD) for example in examples]
    # At least one frame, so that a model can run on it, and one position, so that attention has something to mask.
    codes_BKT = torch.full((len(examples), examples[0].codes_KT.shape[0], max(1, *frames)), IGNORE)
    states_BLD = torch.zeros(len(examples), max(1, *texts), text_width)
    for row, example in enumerate(examples):
        # Through numpy: torch warns about arrays that cannot be written to.
        codes_BKT.numpy()[row, :, : frames[row]] = example.codes_KT
        if example.states_LD is not None:
            states_BLD[row, : texts[row]] = example.states_LD
    return Batch(
        codes=codes_BKT,
        text_states=states_BLD,
        text_mask=torch.arange(states_BLD.shape[1]) < torch.tensor(texts)[:, None],
        frames=torch.tensor(frames),
    )
