"""The T5 text encoder: token ids to hidden states.

T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683) differs from other encoders in three ways: positions enter as
a learned bias on the attention logits, by distance and shared by all layers; the logits are not divided by sqrt(H), the
initialisation makes up for it; and layer norms only scale.

Axes: B batch, L text length, D width (`d_model`), N heads, H head width (`d_kv`), F feed-forward width (`d_ff`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.models.config import PretrainedConfig, T5Config
from musicgen_train.models.layers import ACTIVATIONS
from musicgen_train.models.outputs import BaseModelOutput, as_requested
from musicgen_train.models.pretrained import PretrainedModel
from musicgen_train.models.products import Linear, autocast_dtype


class T5EncoderModel(PretrainedModel[T5Config]):
    """Implements the encoder half of T5 with its embedding.

    `from_pretrained` also reads the folder of a whole T5, whose decoder it skips, and of a MusicGen composite.
    """

    config_class: ClassVar[type[PretrainedConfig]] = T5Config
    tied_keys: ClassVar[Mapping[str, str]] = {"encoder.embed_tokens.weight": "shared.weight"}
    # The inputs of `wo` exceed the range of float16 in published checkpoints.
    keep_in_float32: ClassVar[tuple[str, ...]] = ("wo",)

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.shared.weight, std=config.initializer_factor)
        self.encoder = T5Stack(config, self.shared)

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        return None if file_key.startswith("decoder.") or file_key == "lm_head.weight" else file_key

    def tie_weights(self) -> None:
        self.encoder.embed_tokens = self.shared

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        head_mask: torch.Tensor | None = None,
    ) -> BaseModelOutput:
        """Encode a batch of texts.

        Args:
            input_ids: int `(B, L)`, each in `[0, vocab_size)`.
            attention_mask: `(B, L)`, 1 or True at tokens, 0 or False at padding, on either side; default all ones.
                States at padding, and those of a row that is all padding, are finite and meaningless.
            inputs_embeds: `(B, L, D)`, in place of `input_ids`.
            output_attentions: also return each layer's attention weights, from the slower, unfused path. None means
                what the config says, by default no.
            output_hidden_states: also return the embeddings and each layer's output. None as above.
            return_dict: False for a tuple.
            head_mask: `(num_layers, N)`, a factor for each attention head; 0 switches it off.

        Returns:
            `last_hidden_state` `(B, L, D)`; if asked for, `hidden_states`, `num_layers + 1` of the same shape, and
            `attentions`, `num_layers` of `(B, N, L, L)`.

        Raises:
            ValueError: both or none of `input_ids` and `inputs_embeds`, a wrong shape, no token, or (checked on the CPU
                only) an id outside the vocabulary.
        """
        return self.encoder(
            input_ids, attention_mask, inputs_embeds, output_attentions, output_hidden_states, return_dict, head_mask
        )


class T5Stack(nn.Module):
    """Runs embedding, blocks and the final layer norm."""

    def __init__(self, config: T5Config, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(T5Block(config, layer) for layer in range(config.num_layers))
        self.final_layer_norm = T5LayerNorm(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        head_mask: torch.Tensor | None,
    ) -> BaseModelOutput:
        """Does the work of `T5EncoderModel.forward`."""
        if output_attentions is None:
            output_attentions = bool(getattr(self.config, "output_attentions", False))
        if output_hidden_states is None:
            output_hidden_states = bool(getattr(self.config, "output_hidden_states", False))

        embeddings = self._embed(input_ids, inputs_embeds)
        attention_bias = self._attention_bias(embeddings, attention_mask)
        hidden = self.dropout(embeddings)
        hidden_states, attentions = [], []
        for index, block in enumerate(self.block):
            if output_hidden_states:
                hidden_states.append(hidden)
            head_factors = None if head_mask is None else head_mask[index]
            hidden, weights = block(hidden, attention_bias, output_attentions, head_factors)
            attentions.append(weights)
        hidden = self.dropout(self.final_layer_norm(hidden))
        return as_requested(
            BaseModelOutput(
                last_hidden_state=hidden,
                hidden_states=(*hidden_states, hidden) if output_hidden_states else None,
                attentions=tuple(attentions) if output_attentions else None,
            ),
            return_dict,
        )

    def _embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"give input_ids or inputs_embeds; {given} was given")
        if inputs_embeds is not None:
            width = self.config.d_model
            if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != width or not inputs_embeds.shape[1]:
                raise ValueError(
                    f"inputs_embeds is {list(inputs_embeds.shape)}; expected [batch, length, {width}] with a length of "
                    "at least 1"
                )
            return inputs_embeds
        assert input_ids is not None
        if input_ids.ndim != 2 or not input_ids.shape[1]:
            raise ValueError(
                f"input_ids is {list(input_ids.shape)}; expected [batch, length] with a length of at least 1"
            )
        # On other devices the check would wait for all queued work.
        if input_ids.device.type == "cpu" and input_ids.numel() and not torch.compiler.is_compiling():
            low, high = (int(value) for value in input_ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids range from {low} to {high}; the vocabulary has 0 to {self.config.vocab_size - 1}. Is "
                    "the tokenizer that of this model?"
                )
        return self.embed_tokens(input_ids)

    def _attention_bias(self, embeddings: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Returns what every layer adds to its attention logits for positions and padding: `(1 or B, N, L, L)`."""
        batch, length, _ = embeddings.shape
        first_block: Any = self.block[0]
        bias = first_block.layer[0].SelfAttention.relative_attention_bias(length)
        # Cast to the dtype of the logits before masking: the lowest float32 would become -inf in bfloat16, and a row of
        # -inf alone has NaN as its softmax. With the lowest finite number, a row of padding attends to it evenly.
        bias = bias.to(autocast_dtype(embeddings.device) or bias.dtype).unsqueeze(0)
        if attention_mask is None:
            return bias
        if attention_mask.shape != (batch, length):
            raise ValueError(
                f"attention_mask is {list(attention_mask.shape)}; expected [batch, length] = [{batch}, {length}], 1 at "
                "tokens and 0 at padding"
            )
        valid = attention_mask.to(device=bias.device, dtype=torch.bool)
        return torch.where(valid[:, None, None, :], bias, torch.finfo(bias.dtype).min)


class T5Block(nn.Module):
    """Runs self-attention, then feed-forward, each added to its input."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList([T5SelfAttentionLayer(config, layer), T5FeedForwardLayer(config)])

    def forward(
        self,
        hidden: torch.Tensor,
        attention_bias: torch.Tensor,
        output_attentions: bool,
        head_factors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the new states `(B, L, D)`, and the attention weights `(B, N, L, L)` if asked for."""
        attention, feed_forward = self.layer
        hidden, weights = attention(hidden, attention_bias, output_attentions, head_factors)
        hidden = feed_forward(_within_float16(hidden))
        return _within_float16(hidden), weights


class T5SelfAttentionLayer(nn.Module):
    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, layer)
        self.layer_norm = T5LayerNorm(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_bias: torch.Tensor,
        output_attentions: bool,
        head_factors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.SelfAttention(self.layer_norm(hidden), attention_bias, output_attentions, head_factors)
        return hidden + self.dropout(attended), weights


class T5FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = T5FeedForward(config)
        self.layer_norm = T5LayerNorm(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.dropout(self.DenseReluDense(self.layer_norm(hidden)))


class T5Attention(nn.Module):
    """Implements attention without a scale; the first layer's also holds the position bias of all layers."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        width, inner, factor = config.d_model, config.num_heads * config.d_kv, config.initializer_factor
        self.head_width = config.d_kv
        self.dropout_rate = config.dropout_rate
        # The initialization of the queries makes up for the missing 1/sqrt(H) of the logits.
        self.q = _linear(width, inner, std=factor * (width * config.d_kv) ** -0.5)
        self.k = _linear(width, inner, std=factor * width**-0.5)
        self.v = _linear(width, inner, std=factor * width**-0.5)
        self.o = _linear(inner, width, std=factor * inner**-0.5)
        if layer == 0:
            self.relative_attention_bias = T5PositionBias(config)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_bias: torch.Tensor,
        output_attentions: bool,
        head_factors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # (B, L, N*H) -> (B, N, L, H)
        query, key, value = (
            project(hidden).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        dropout = self.dropout_rate if self.training else 0.0
        weights = None
        if output_attentions:
            # Like the fused kernels, add the bias and take the softmax in at least float32.
            logits = (query @ key.mT).to(torch.promote_types(query.dtype, torch.float32)) + attention_bias
            weights = F.dropout(logits.softmax(dim=-1).to(value.dtype), dropout, self.training)
            attended = weights @ value
        else:
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=attention_bias, dropout_p=dropout, scale=1.0
            )
        if head_factors is not None:
            attended = attended * head_factors[:, None, None]
        # (B, N, L, H) -> (B, L, N*H)
        return self.o(attended.transpose(1, 2).flatten(-2)), weights


class T5PositionBias(nn.Module):
    """Holds one learned number per head and bucket of distances."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        self.weight = nn.Parameter(torch.empty(config.relative_attention_num_buckets, config.num_heads))
        nn.init.normal_(self.weight, std=config.initializer_factor * config.d_model**-0.5)

    def forward(self, length: int) -> torch.Tensor:
        """Returns the bias from every query to every key, `(N, L, L)`."""
        distances = torch.arange(1 - length, length, device=self.weight.device)
        buckets = position_buckets(distances, num_buckets=len(self.weight), max_distance=self.max_distance)
        per_distance = F.embedding(buckets, self.weight).T  # (N, 2L-1)
        # Windows of length L: the first holds the distances of the last query, 1-L .. 0, and so on back to the first.
        return per_distance.unfold(-1, length, 1).flip(1)


class T5FeedForward(nn.Module):
    """Implements the feed-forward part; gated configs multiply its activations by a second projection of the input."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        width, inner, factor = config.d_model, config.d_ff, config.initializer_factor
        self.is_gated = config.is_gated_act
        self.activation = ACTIVATIONS[config.dense_act_fn]
        if self.is_gated:
            self.wi_0 = _linear(width, inner, std=factor * width**-0.5)
            self.wi_1 = _linear(width, inner, std=factor * width**-0.5)
        else:
            self.wi = _linear(width, inner, std=factor * width**-0.5)
        self.wo = _linear(inner, width, std=factor * inner**-0.5)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.is_gated:
            inner = self.activation(self.wi_0(hidden)) * self.wi_1(hidden)
        elif self.activation is F.relu and not torch.is_grad_enabled():
            # In place, since allocating a layer's widest tensor costs more time than the function itself.
            inner = self.wi(hidden).relu_()
        else:
            inner = self.activation(self.wi(hidden))
        # `wo` may be kept in float32 in a half-precision model; from its output on, the residual is float32 too.
        return self.wo(self.dropout(inner).to(self.wo.weight.dtype))


class T5LayerNorm(nn.Module):
    """Is RMS norm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467): no mean, no bias, squares in float32."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.epsilon = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.full((config.d_model,), config.initializer_factor))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * F.rms_norm(hidden, self.weight.shape, eps=self.epsilon).to(self.weight.dtype)


def position_buckets(distances: torch.Tensor, *, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Returns the bucket of each distance from a query to a key, in both directions.

    Half of the buckets are for keys before the query or at it, half for keys after. In each half, of size n, the first
    n/2 hold one distance each; the others grow geometrically, from n/2 to `max_distance`, and the last holds
    everything beyond (T5 paper, section 2.1).

    Args:
        distances: int64, any shape: position of the key minus position of the query.
        num_buckets: number of buckets in both halves together.
        max_distance: distance at which the last bucket begins, above `num_buckets / 4`.

    Returns:
        int64 of the same shape, in `[0, num_buckets)`.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distances.abs()
    # In float32, as the published models were trained: rounding decides where buckets begin.
    growth = torch.log(size.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    geometric = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(size < exact, size, geometric) + half * (distances > 0)


def _linear(inputs: int, outputs: int, *, std: float) -> Linear:
    linear = Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std)
    return linear


def _within_float16(hidden: torch.Tensor) -> torch.Tensor:
    """Clamps infinities of a float16 residual to its range, so that later layers give no NaN."""
    if hidden.dtype != torch.float16:
        return hidden
    limit = torch.finfo(torch.float16).max - 1000
    return torch.where(hidden.isinf().any(), hidden.clamp(-limit, limit), hidden)
