"""A batch of clips, padded to the longest.

Most of what reading costs is not reading but moving: a batch is filled in one process and used in another. So it goes
there packed, in one block of numbers that are as small as they are on disk.

Axes: B batch, K codebooks, T frames, L text length, D text width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import get_worker_info

from musicgen_train.data.shared_block import SharedBlock, take_block
from musicgen_train.models.delay_pattern import training_labels
from musicgen_train.models.loss import IGNORE


@dataclass(frozen=True)
class Example:
    """One clip with the caption it is trained on."""

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
    """int64: the lengths of all clips of the optimizer step that this batch is a part of, over micro-batches and ranks.
    None outside training."""
    index: int = 0
    """Number of this micro-batch in the run."""
    clips: tuple[tuple[int, int], ...] = ()
    """Of each clip the number of its dataset in the mix and its row there."""
    dataset: int = 0
    """Number in the mix of the dataset that a validation batch is of."""

    def __len__(self) -> int:
        return self.codes.shape[0]

    def labels(self, delays: Sequence[int], special_id: int) -> torch.Tensor:
        """What the decoder is trained on, `(B, T, K)`; see `delay_pattern.training_labels`.

        Each clip is scored as if it were alone: codebook k on its first `frames - delay` codes. Without that cut a
        clip would be scored on up to `delay` codes more where a longer clip is in its batch, and the loss would
        depend on how clips are put together.
        """
        labels_BTK = training_labels(self.codes, list(delays), special_id)
        steps_T = torch.arange(labels_BTK.shape[1], device=labels_BTK.device)
        beyond_BT = steps_T >= self.frames[:, None]
        return labels_BTK.masked_fill(beyond_BT[..., None], IGNORE)

    def to(self, device: torch.device | str) -> Self:
        """The batch on a device; copies from pinned memory to a GPU run beside the computation.

        Elsewhere a copy is waited for: to Apple's MPS it may read memory that is given to others by then (pytorch issue
        189690), and back to the CPU the values would not be there yet.
        """
        beside = torch.device(device).type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=beside))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory; the loader asks for it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **tensors)


@dataclass
class PackedBatch:
    """A batch on its way: what is pickled as this is a `Batch` where it is unpickled."""

    block: torch.Tensor | SharedBlock
    """uint8: the states `(B, L, D)` in `states_dtype`, then the codes `(B, K, T)` as int16, padded as in `Batch`.
    Shared where the batch is on its way to another process."""
    states_dtype: torch.dtype
    text_width: int
    num_codebooks: int
    lengths: list[int]
    """Frames of each clip."""
    texts: list[int]
    """Text states of each clip."""
    step_frames: np.ndarray | None = None
    index: int = 0
    clips: tuple[tuple[int, int], ...] = ()
    dataset: int = 0

    @property
    def states(self) -> torch.Tensor:
        """`(B, L, D)`, a view of the block."""
        # At least one position, so that attention has something to be masked from.
        shape = (len(self.texts), max(1, *self.texts), self.text_width)
        return self._content[: self._states_bytes].view(self.states_dtype).view(shape)

    @property
    def codes(self) -> torch.Tensor:
        """`(B, K, T)`, a view of the block."""
        # Of at least one frame, so that a model can run on it.
        shape = (len(self.lengths), self.num_codebooks, max(1, *self.lengths))
        return self._content[self._states_bytes : self.bytes].view(torch.int16).view(shape)

    @property
    def _content(self) -> torch.Tensor:
        return self.block.bytes if isinstance(self.block, SharedBlock) else self.block

    @property
    def _states_bytes(self) -> int:
        return len(self.texts) * max(1, *self.texts) * self.text_width * self.states_dtype.itemsize

    @property
    def bytes(self) -> int:
        """What the block must hold."""
        return self._states_bytes + 2 * len(self.lengths) * self.num_codebooks * max(1, *self.lengths)

    def unpack(self) -> Batch:
        """The batch, in memory of its own."""
        texts_B = torch.tensor(self.texts)
        states_BLD = self.states
        return Batch(
            codes=self.codes.long(),
            text_states=states_BLD.to(torch.float32, copy=True),
            text_mask=torch.arange(states_BLD.shape[1]) < texts_B[:, None],
            frames=torch.tensor(self.lengths),
            step_frames=None if self.step_frames is None else torch.tensor(self.step_frames, dtype=torch.long),
            index=self.index,
            clips=self.clips,
            dataset=self.dataset,
        )

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        return _unpacked, tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def _unpacked(*values: Any) -> Batch:
    packed = PackedBatch(*values)
    batch = packed.unpack()
    if isinstance(packed.block, SharedBlock):
        packed.block.busy = False
    return batch


def pack(examples: Sequence[Example], text_width: int) -> PackedBatch:
    """Pad clips and texts to the longest of each.

    Args:
        examples: at least one; all with the same number of codebooks.
        text_width: D, which a batch of nothing but null conditions does not show.
    """
    dtypes = {example.states_LD.dtype for example in examples if example.states_LD is not None}
    packed = PackedBatch(
        block=torch.empty(0),
        states_dtype=functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float16,
        text_width=text_width,
        num_codebooks=examples[0].codes_KT.shape[0],
        lengths=[example.codes_KT.shape[1] for example in examples],
        texts=[0 if example.states_LD is None else len(example.states_LD) for example in examples],
    )
    packed.block = _block(packed.bytes)
    states_BLD, codes_BKT = packed.states, packed.codes.numpy()
    for row, (example, frames, text) in enumerate(zip(examples, packed.lengths, packed.texts, strict=True)):
        codes_BKT[row, :, :frames] = example.codes_KT
        codes_BKT[row, :, frames:] = IGNORE
        if example.states_LD is not None:
            states_BLD[row, :text] = example.states_LD
        states_BLD[row, text:] = 0
    return packed


def collate(examples: Sequence[Example], text_width: int) -> Batch:
    """`pack`, for this process."""
    return pack(examples, text_width).unpack()


def delivered(packed: PackedBatch) -> PackedBatch | Batch:
    """What a loader takes from its dataset: a batch, or what becomes one where it arrives."""
    return packed.unpack() if get_worker_info() is None else packed


def _block(size: int) -> torch.Tensor | SharedBlock:
    # Through a pipe, a worker could not end any more where nobody reads what it has sent.
    return torch.empty(size, dtype=torch.uint8) if get_worker_info() is None else take_block(size)
