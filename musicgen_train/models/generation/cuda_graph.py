"""A step of generation as a CUDA graph: one launch, since its kernels take longer to launch one by one than to run.

Axes: B batch, R rows (B, or 2 B under guidance), K codebooks, N heads, H head width, D width, S steps, L text length,
I and O in- and outputs of a matrix.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.models.decoder import MusicgenDecoder, MusicgenDecoderLayer
from musicgen_train.models.kv_cache import FixedKVCache, KVCache
from musicgen_train.models.layers import AttentionMask, cross_attention_mask, sinusoidal_positions

_log = logging.getLogger(__name__)

# A step reads the cache of a multiple of this many columns, at most of the whole window. Each multiple needs a graph of
# its own.
_BORDER = 256
# Making a graph takes about as long as this many graphed steps save.
_STEPS_WORTH_A_GRAPH = 16
# The largest difference, as a share of the logits' norm, between a graph's first run and the same step done kernel by
# kernel. Logits in bfloat16 have three digits.
_TOLERANCE = 0.02
# Graphs whose capture failed. torch's allocator may keep asking them whether they are still being captured
# (github.com/pytorch/pytorch/pull/180395), so they must not be freed, and no other graph is captured.
_failed: list[torch.cuda.CUDAGraph] = []


class StepWeights:
    """Fuses a decoder's weights into as few matrices as possible, once per request.

    Queries, keys and values of a layer come from one matrix, and so do the logits of all codebooks. These matrices are
    copies; all other weights are the decoder's own.

    Args:
        decoder, heads: must be plain (`steps.is_plain`).
    """

    @torch.no_grad()
    def __init__(self, decoder: MusicgenDecoder, heads: nn.ModuleList) -> None:
        self.config = decoder.config
        # Row `k * (V + 1) + code` of this table is codebook k's embedding of a code.
        self.embeddings = torch.cat([cast(nn.Embedding, table).weight for table in decoder.embed_tokens])
        codes = self.config.vocab_size + 1
        self.offsets_K = torch.arange(self.config.num_codebooks, device=self.embeddings.device) * codes
        self.layers = [_FusedLayer(cast(MusicgenDecoderLayer, layer)) for layer in decoder.layers]
        self.final_norm = decoder.layer_norm
        self.heads_OI = torch.cat([cast(nn.Linear, head).weight for head in heads])


class _FusedLayer(MusicgenDecoderLayer):
    """Does the work of another decoder layer, whose modules it shares, with fewer kernels: queries, keys and values are
    one product, and each sum with the residual path is part of the product before it."""

    def __init__(self, layer: MusicgenDecoderLayer) -> None:
        nn.Module.__init__(self)
        self.training = False
        self.config, self.activation = layer.config, layer.activation
        for name, part in layer.named_children():
            self.add_module(name, part)
        own = layer.self_attn
        self.query_key_value_OI = torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])

    def project(self, normed_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        projected = F.linear(normed_BSD, self.query_key_value_OI).chunk(3, dim=-1)
        queries, keys, values = (self.self_attn.split_heads(states) for states in projected)
        return queries, keys, values

    def add_product(self, hidden_BSD: torch.Tensor, linear: nn.Module, states: torch.Tensor) -> torch.Tensor:
        weight_OI = cast(nn.Linear, linear).weight
        return torch.addmm(hidden_BSD.flatten(0, 1), states.flatten(0, 1), weight_OI.T).view_as(hidden_BSD)


class FixedStep:
    """Computes logits after one more column of ids, for one window; every call reads and writes the same memory.

    Nothing depends on values on the host, so a step can be captured as a CUDA graph. Attention reads the cache up to a
    border, and masks the columns that are still to come; each border needs another graph.

    Args:
        weights: the model's weights.
        cache: holds the steps so far and the text's keys and values, for all rows; its memory is taken over.
        steps: columns of the window, the first ones included.
        text_mask_BL: 0 for padding; None for no text.
        guided: the cache's second half of rows has the null condition and the same codes as the first.
    """

    @torch.no_grad()
    def __init__(
        self, weights: StepWeights, cache: KVCache, steps: int, text_mask_BL: torch.Tensor | None, guided: bool
    ) -> None:
        self._weights = weights
        self._steps = steps
        self._guided = guided
        self._cache = FixedKVCache(cache, steps - 1)  # the last column is never fed
        device = weights.embeddings.device
        self._positions_SD = sinusoidal_positions(0, steps, weights.config.hidden_size, device)
        self._places_S = torch.arange(self._cache.capacity, device=device)
        self._dtype = weights.embeddings.dtype
        self._text_mask = AttentionMask()
        if text_mask_BL is not None and not bool(text_mask_BL.all()):
            # Null rows attend to all of their text, which is zeros.
            mask_RL = torch.cat([text_mask_BL, torch.zeros_like(text_mask_BL)]) if guided else text_mask_BL
            allowed = cross_attention_mask(mask_RL).allowed
            assert allowed is not None
            self._text_mask = AttentionMask(allowed=_as_bias(allowed, self._dtype))

    @property
    def border(self) -> int:
        """Returns how many columns of the cache the next step reads."""
        return min(-(-(self._cache.length + 1) // _BORDER) * _BORDER, self._cache.capacity)

    @property
    def steps_to_border(self) -> int:
        """Returns how many steps are left until the border changes or the window is full."""
        return min(self.border, self._steps - 1) - self._cache.length

    @torch.no_grad()
    def logits(self, ids_BK: torch.Tensor, border: int) -> torch.Tensor:
        """Returns the logits of a call, without advancing the cache: done twice, it gives the same."""
        weights, place_1 = self._weights, self._cache.place_1
        self._cache.border = border
        bias_S = _as_bias(self._places_S[:border] <= place_1, self._dtype)
        mask = AttentionMask(allowed=bias_S[None, None, None])
        embeddings_BKD = F.embedding(ids_BK + weights.offsets_K, weights.embeddings)
        hidden_BD = embeddings_BKD.sum(dim=1)
        # Added in float32, as in the forward pass.
        hidden_BD = (hidden_BD + self._positions_SD.index_select(0, place_1)).to(hidden_BD.dtype)
        hidden_R1D = (hidden_BD.repeat(2, 1) if self._guided else hidden_BD).unsqueeze(1)
        for index, layer in enumerate(weights.layers):
            hidden_R1D, *_ = layer(hidden_R1D, index, mask, None, self._text_mask, None, None, self._cache, False)
        logits = F.linear(weights.final_norm(hidden_R1D[:, 0]), weights.heads_OI)
        return logits.unflatten(-1, (weights.config.num_codebooks, -1)).float()

    def move_on(self) -> None:
        """Advance the cache by the newest column."""
        self._cache.advance(1)

    def __call__(self, ids_BK: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the next column, float32 `(rows, codebooks, vocab_size)`.

        Args:
            ids_BK: int64, the newest column.
        """
        logits = self.logits(ids_BK, self.border)
        self.move_on()
        return logits


def _as_bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turns a bool mask into the bias that attention adds to its logits, once for all layers, which would each take
    several kernels for it. Rows begin at multiples of eight, as attention kernels on a GPU need."""
    length = seen.shape[-1]
    hidden = F.pad(~seen, (0, -length % 8), value=True)
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))[..., :length]


class GraphedStep:
    """Computes logits after one more column of ids, for one window of a request on a CUDA device.

    The first run of each graph is compared with the same step done kernel by kernel. If a graph cannot be made, or its
    result differs, one warning says so, and the steps are done kernel by kernel.

    Args:
        step: the step that is captured as graphs.
    """

    def __init__(self, step: FixedStep) -> None:
        self._step = step
        self._border = 0
        self._replay: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._can_graph = not _failed

    @torch.no_grad()
    def __call__(self, ids_BK: torch.Tensor) -> torch.Tensor:
        """Returns the next column's logits, float32 `(rows, codebooks, vocab_size)`, in memory reused by the next call.

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
            replay = capture_graph(lambda ids: self._step.logits(ids, border), ids_BK)
            found = replay(ids_BK)
            difference = float((found - expected).norm() / expected.norm())
        except RuntimeError as error:
            # Ending a failed capture raises another error, which says less than the first one.
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            reason = " ".join(str(first).split())[:300]
        else:
            if difference <= _TOLERANCE:
                return replay
            reason = f"its logits differ by {difference:.2g} of their norm"
        self._can_graph = False
        _log.warning("generation goes on without a CUDA graph, several times slower: %s", reason)
        return None


def capture_graph(
    function: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Captures what a function does on the device as a CUDA graph.

    Args:
        function: takes one tensor; must not wait for the device, and must read and write the same memory at every call.
        example: an argument.

    Returns:
        A function that replays it by one launch, and returns the same memory each time.
    """
    argument = example.clone()
    here, aside = torch.cuda.current_stream(example.device), _aside(example.device)
    graph = torch.cuda.CUDAGraph()
    aside.wait_stream(here)
    try:
        # Unlike `torch.cuda.graph` alone, this restores the caller's stream even if the capture cannot be ended.
        with torch.cuda.stream(aside):
            # Warm up: the set-up that libraries do at a first call cannot be captured.
            function(argument)
            result = _capture_into(graph, lambda: function(argument), aside)
    finally:
        here.wait_stream(aside)

    def replay(given: torch.Tensor) -> torch.Tensor:
        argument.copy_(given)
        graph.replay()
        return result

    return replay


def _capture_into(
    graph: torch.cuda.CUDAGraph, function: Callable[[], torch.Tensor], stream: torch.cuda.Stream
) -> torch.Tensor:
    try:
        # "thread_local", since threads that load data may use the device meanwhile.
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
    """Replaces a device's default generator by a copy: in torch 2.11 a failed capture makes a generator unusable, and
    training would fail with it."""
    generator = torch.cuda.default_generators[device.index]
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """Returns the one stream for all captures of a device: torch keeps a workspace for matrix products, up to tens of
    MB, for each stream that ever ran one."""
    return torch.cuda.Stream(device)
