"""`DecodeStep` as a CUDA graph: one launch for a step, whose kernels one by one take longer to launch than to run.

Axes: B batch, R rows (B, or 2 B under guidance), K codebooks, N heads, H head width, D width, S steps.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from musicgen_train.models.generation.decode_step import DecodeStep, StepWeights
from musicgen_train.models.kv_cache import KVCache

logger = logging.getLogger(__name__)

# Columns that a step reads are a multiple of this, but at the end of the window: every multiple makes a graph.
_BORDER = 256
# A graph takes about as long to make as so many steps save.
_STEPS_WORTH_A_GRAPH = 16
# Of logits, between a graph's first run and the same done kernel by kernel; in bfloat16 they have three digits.
_TOLERANCE = 0.02
# Graphs whose recording failed. torch's allocator may go on asking them for ever whether they are still being recorded
# (github.com/pytorch/pytorch/pull/180395), so they stay, and no other graph is begun.
_failed: list[torch.cuda.CUDAGraph] = []


class FixedStep(DecodeStep):
    """The same with all tensors where they were at the step before, and nothing that the host has to know.

    So a CUDA graph can be made of it. Attention reads the memory of some columns that are not there yet, up to a
    border, and does not see them; each border makes another graph.

    Args: see `DecodeStep`.
    """

    @torch.no_grad()
    def __init__(
        self,
        weights: StepWeights,
        cache: KVCache,
        steps: int,
        text_mask_BL: torch.Tensor | None,
        guided: bool,
    ) -> None:
        super().__init__(weights, cache, steps, text_mask_BL, guided)
        cache.reserve(steps - 1)  # the last column is never fed
        self._stored = [cache.buffers(layer) for layer in range(len(cache))]
        for both in self._stored:
            for stored in both:
                stored[:, :, cache.length :] = 0  # what is not seen counts nothing, unless it is not a number
        self._steps = steps
        self._capacity = self._stored[0][0].shape[2]
        device = weights.embeddings.device
        self._place_1 = torch.full((1,), cache.length, device=device)
        self._places_S = torch.arange(self._capacity, device=device)
        self._dtype = weights.embeddings.dtype
        if self._text_mask is not None:
            self._text_mask = _as_bias(self._text_mask, self._dtype)

    @property
    def border(self) -> int:
        """Columns whose memory the next step reads."""
        return min(-(-(self._cache.length + 1) // _BORDER) * _BORDER, self._capacity)

    @property
    def steps_to_border(self) -> int:
        """Steps until another border is next, or the window is full."""
        return min(self.border, self._steps - 1) - self._cache.length

    @torch.no_grad()
    def logits(self, ids_BK: torch.Tensor, border: int) -> torch.Tensor:
        """What a call returns. Nothing moves on: done twice, it gives the same."""
        self._read_S = slice(0, border)
        self._bias_S = _as_bias(self._places_S[self._read_S] <= self._place_1, self._dtype)
        return self._logits(ids_BK)

    def move_on(self) -> None:
        """Count the newest column as past."""
        self._cache.advance(1)
        self._place_1 += 1

    def __call__(self, ids_BK: torch.Tensor) -> torch.Tensor:
        logits = self.logits(ids_BK, self.border)
        self.move_on()
        return logits

    def _position(self) -> torch.Tensor:
        return self._positions_SD.index_select(0, self._place_1)

    def _attend(
        self, index: int, queries_RN1H: torch.Tensor, keys_RN1H: torch.Tensor, values_RN1H: torch.Tensor
    ) -> torch.Tensor:
        keys, values = self._stored[index]
        keys.index_copy_(2, self._place_1, keys_RN1H)
        values.index_copy_(2, self._place_1, values_RN1H)
        return F.scaled_dot_product_attention(
            queries_RN1H, keys[:, :, self._read_S], values[:, :, self._read_S], attn_mask=self._bias_S[None, None, None]
        )


def _as_bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What attention adds to its logits for a mask of bools, from which each layer would make it anew, by several
    kernels. Rows begin at multiples of eight, as attention on a GPU wants them."""
    length = seen.shape[-1]
    hidden = F.pad(~seen, (0, -length % 8), value=True)
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))[..., :length]


class GraphedStep:
    """Logits after one more column of ids, for one window of a request on a CUDA device.

    The first run of each graph is compared with the same step done kernel by kernel. Where a graph cannot be made, or
    differs, that is said once, and steps are done kernel by kernel.

    Args:
        step: that graphs are made of.
    """

    def __init__(self, step: FixedStep) -> None:
        self._step = step
        self._border = 0
        self._replay: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._can_graph = not _failed

    @torch.no_grad()
    def __call__(self, ids_BK: torch.Tensor) -> torch.Tensor:
        """Logits of the next column, float32 `(rows, codebooks, vocab_size)`, in memory that the next call uses again.

        Args:
            ids_BK: int64, the newest column.
        """
        border = self._step.border
        if border != self._border:
            self._border, self._replay = border, None
            if self._can_graph and self._step.steps_to_border >= _STEPS_WORTH_A_GRAPH:
                self._replay = self._graph(ids_BK, border)
        logits = self._step.logits(ids_BK, border) if self._replay is None else self._replay(ids_BK)
        self._step.move_on()
        return logits

    def _graph(self, ids_BK: torch.Tensor, border: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
        try:
            expected = self._step.logits(ids_BK, border).clone()
            replay = record(lambda ids: self._step.logits(ids, border), ids_BK)
            found = replay(ids_BK)
            difference = float((found - expected).norm() / expected.norm())
        except RuntimeError as error:
            # Ending the capture that an error has spoiled is an error of its own, which says less.
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            reason = " ".join(str(first).split())[:300]
        else:
            if difference <= _TOLERANCE:
                return replay
            reason = f"its logits differ by {difference:.2g} of their norm"
        self._can_graph = False
        logger.warning("generation goes on without a CUDA graph, several times slower: %s", reason)
        return None


def record(
    function: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that does all that `function` did on the device, by one launch, and returns the same memory each time.

    Args:
        function: of one tensor; must not wait for the device, and must read and write the same memory at every call.
        example: an argument.
    """
    argument = example.clone()
    here, aside = torch.cuda.current_stream(example.device), _aside(example.device)
    graph = torch.cuda.CUDAGraph()
    aside.wait_stream(here)
    try:
        # Goes back to the caller's stream also where recording cannot be ended; `torch.cuda.graph` alone then does not.
        with torch.cuda.stream(aside):
            # What libraries set up at a first call cannot be recorded.
            function(argument)
            result = _record_into(graph, lambda: function(argument), aside)
    finally:
        here.wait_stream(aside)

    def replay(given: torch.Tensor) -> torch.Tensor:
        argument.copy_(given)
        graph.replay()
        return result

    return replay


def _record_into(
    graph: torch.cuda.CUDAGraph, function: Callable[[], torch.Tensor], stream: torch.cuda.Stream
) -> torch.Tensor:
    try:
        # Threads that load data may use the device meanwhile.
        with (
            _default_generator_kept_out(stream.device),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            return function()
    except RuntimeError:
        _failed.append(graph)
        raise


@contextlib.contextmanager
def _default_generator_kept_out(device: torch.device) -> Iterator[None]:
    """Have a copy in the place of a device's default generator, which in torch 2.11 can draw no more once a recording
    has failed, and training with it."""
    generator = torch.cuda.default_generators[device.index]
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """The stream on which all graphs of a device are made: torch keeps memory for matrix products, up to tens of MB,
    for each stream that has ever had any."""
    return torch.cuda.Stream(device)
