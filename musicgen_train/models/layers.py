"""The parts of a decoder layer: attention and its masks, layer norm, position embeddings, activation functions.

Axes: B batch, N heads, S query steps, L key positions, H head width, D = N * H.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from musicgen_train.models.kv_cache import KeysValues
from musicgen_train.models.products import Linear, computed_in, without_autocast

_tanh_gelu = functools.partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""The activation functions that a config may name."""


@dataclass(frozen=True)
class AttentionMask:
    """Says which keys a query attends to: all, those up to its own position, or those that `allowed` marks."""

    causal: bool = False
    """Allowed only if queries and keys are the same steps; with past keys use `allowed`."""
    allowed: torch.Tensor | None = None
    """Broadcasts to `(batch, heads, queries, keys)`: bool, True for keys to attend to, at least one per query; or a
    bias in the dtype of the queries, 0 for keys to attend to and -inf for the others."""


class MusicgenAttention(nn.Module):
    """Implements attention without biases, for self- and cross-attention, which differ in whose states give the keys.

    The decoder layer calls the four projections, since it may do several of them in one product; `forward` only mixes
    the values.

    Args:
        width: width of the input and output states, D.
        num_heads: N, a divisor of `width`.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def queries(self, states_BSD: torch.Tensor) -> torch.Tensor:
        """Projects states to queries, `(batch, heads, steps, head_width)`."""
        return self.split_heads(self.q_proj(states_BSD))

    def keys_values(self, states_BLD: torch.Tensor) -> KeysValues:
        """Projects states to keys and values, each `(batch, heads, length, head_width)`."""
        return self.split_heads(self.k_proj(states_BLD)), self.split_heads(self.v_proj(states_BLD))

    def split_heads(self, states_BLD: torch.Tensor) -> torch.Tensor:
        """Returns `(batch, length, width)` viewed as `(batch, heads, length, head_width)`."""
        return states_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(
        self,
        queries_BNSH: torch.Tensor,
        keys_values: KeysValues,
        mask: AttentionMask,
        head_mask_N: torch.Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Average the values by attention weights; the caller applies `out_proj` to the result.

        Args:
            queries_BNSH: from `queries`.
            keys_values: from `keys_values`, or from a cache.
            mask: which keys each query may see.
            head_mask_N: a factor for each head's output; 0 switches a head off.
            need_weights: also return the attention weights, which takes the slower, unfused path.

        Returns:
            `(batch, queries, width)`, and the weights `(batch, heads, queries, keys)` or None.
        """
        keys_BNLH, values_BNLH = keys_values
        dropout = self.dropout if self.training else 0.0
        weights_BNSL = None
        if need_weights:
            weights_BNSL = attention_weights(queries_BNSH, keys_BNLH, mask)
            weights_BNSL = F.dropout(weights_BNSL, dropout)
            if head_mask_N is not None:
                weights_BNSL = weights_BNSL * head_mask_N[:, None, None]
            mixed_BNSH = weights_BNSL @ values_BNLH
        else:
            mixed_BNSH = attend(queries_BNSH, keys_BNLH, values_BNLH, mask, dropout)
            if head_mask_N is not None:
                # Scaling a head's weights scales its output.
                mixed_BNSH = mixed_BNSH * head_mask_N[:, None, None]
        return mixed_BNSH.transpose(1, 2).flatten(2), weights_BNSL


def attend(
    queries_BNSH: torch.Tensor, keys_BNLH: torch.Tensor, values_BNLH: torch.Tensor, mask: AttentionMask, dropout: float
) -> torch.Tensor:
    """Returns the values averaged by fused attention, `(batch, heads, queries, head_width)`."""
    states = (queries_BNSH, keys_BNLH, values_BNLH)
    dtype = queries_BNSH.dtype
    if computed_in(dtype, queries_BNSH.device) == dtype:
        return _torchs_attention(*states, mask, dropout)

    def in_float32(*rounded: torch.Tensor) -> torch.Tensor:
        with without_autocast(queries_BNSH.device):
            queries, keys, values = (states.float() for states in rounded)
            return _torchs_attention(queries, keys, values, mask, dropout).to(dtype)

    if not any(each.requires_grad for each in states):
        return in_float32(*states)
    # Recomputed in the backward pass, so that none of the float32 copies is kept.
    mixed: torch.Tensor = checkpoint(in_float32, *states, use_reentrant=False)
    return mixed


@contextlib.contextmanager
def without_cudnn_attention(without: bool = True) -> Iterator[None]:
    """Disables cuDNN's attention within the block. It is torch's first choice in half precision on an H100, but makes a
    plan for every shape, which takes as long as tens of steps of generation."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and not without)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _torchs_attention(
    queries_BNSH: torch.Tensor, keys_BNLH: torch.Tensor, values_BNLH: torch.Tensor, mask: AttentionMask, dropout: float
) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        queries_BNSH, keys_BNLH, values_BNLH, attn_mask=mask.allowed, dropout_p=dropout, is_causal=mask.causal
    )


def attention_weights(queries_BNSH: torch.Tensor, keys_BNLH: torch.Tensor, mask: AttentionMask) -> torch.Tensor:
    """Returns softmax(Q K^T / sqrt(H)) under a bool mask (Vaswani et al. 2017): computed in float32, in Q's dtype."""
    scores_BNSL = (queries_BNSH @ keys_BNLH.mT) * queries_BNSH.shape[-1] ** -0.5
    allowed = mask.allowed
    if mask.causal:
        allowed = torch.ones(scores_BNSL.shape[-2:], dtype=torch.bool, device=scores_BNSL.device).tril()
    if allowed is not None:
        scores_BNSL = scores_BNSL.masked_fill(~allowed, float("-inf"))
    return scores_BNSL.softmax(dim=-1, dtype=torch.float32).to(queries_BNSH.dtype)


def self_attention_mask(
    steps: int, past: int, padding_mask_BL: torch.Tensor | None, device: torch.device
) -> AttentionMask:
    """Makes the mask of a decoder's self-attention.

    Args:
        steps: new steps.
        past: cached steps before them.
        padding_mask_BL: `(batch, past + steps)`, or `(batch, steps)` if no past step is padding.
        device: device of the mask.

    Raises:
        ValueError: the padding mask has another length.
    """
    if padding_mask_BL is None:
        if steps == 1:
            return AttentionMask()
        if past == 0:
            return AttentionMask(causal=True)
    causal_SL = torch.ones((steps, past + steps), dtype=torch.bool, device=device).tril(diagonal=past)
    if padding_mask_BL is None:
        return AttentionMask(allowed=causal_SL)
    if padding_mask_BL.shape[-1] == steps and past:
        padding_mask_BL = F.pad(padding_mask_BL, (past, 0), value=1)
    if padding_mask_BL.dim() != 2 or padding_mask_BL.shape[-1] != past + steps:
        raise ValueError(
            f"attention_mask is {list(padding_mask_BL.shape)}; expected (batch, {past + steps}): one value for each of "
            f"{past} cached and {steps} new steps"
        )
    allowed_BSL = causal_SL & padding_mask_BL.bool()[:, None, :]
    # A padded step without any key would be NaN, so it attends to itself; no other step attends to it.
    itself_SL = torch.ones_like(causal_SL).tril(diagonal=past).triu(diagonal=past)
    allowed_BSL = allowed_BSL | (itself_SL & ~allowed_BSL.any(dim=-1, keepdim=True))
    return AttentionMask(allowed=allowed_BSL[:, None])


def cross_attention_mask(text_mask_BL: torch.Tensor | None) -> AttentionMask:
    """Makes the mask of the attention to the text, which hides padded positions.

    A row without any text (the null condition) attends to all its positions, whose states the decoder has set to zero:
    its attention output is exactly zero on every backend, and never NaN.
    """
    if text_mask_BL is None:
        return AttentionMask()
    seen_BL = text_mask_BL.bool()
    seen_BL = seen_BL | ~seen_BL.any(dim=-1, keepdim=True)
    return AttentionMask(allowed=seen_BL[:, None, None, :])


class LayerNorm(nn.LayerNorm):
    """Extends torch's layer norm to float32 states with half-precision weights, as in sharded training.

    A GPU converts the weights itself under autocast; a CPU's kernel raises an error.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if states.dtype == torch.float32 and self.weight.dtype != torch.float32:
            return F.layer_norm(states, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return super().forward(states)


def sinusoidal_positions(first: int, steps: int, width: int, device: torch.device) -> torch.Tensor:
    """Computes position embeddings as audiocraft and the hub do: cosines, then sines (Vaswani et al. 2017, 3.5).

    They are never stored in the model. Frequency i of `half = width // 2` is
    `exp(-log(10000) * i / (half - 1))`. Always float32: in half precision the angles of late positions would be wrong
    by up to 2.

    Returns:
        float32 `(steps, width)` for positions `first` to `first + steps - 1`.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=device).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(first, first + steps, device=device).float()[:, None] * frequencies
    table = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(table, (0, width % 2))
