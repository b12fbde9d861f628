"""The MusicGen decoder: a transformer over delayed audio codes that attends to text (Copet et al. 2023).

It knows neither text nor audio: text arrives as hidden states of the decoder's own width, audio as codes.

Axes: B batch, K codebooks, S steps (delayed columns), L text length, N heads, H head width, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.models.kv_cache import KeysValues, KVCache
from musicgen_train.models.layers import (
    ACTIVATIONS,
    AttentionMask,
    LayerNorm,
    MusicgenAttention,
    cross_attention_mask,
    self_attention_mask,
    sinusoidal_positions,
)
from musicgen_train.models.outputs import DecoderOutput, as_requested
from musicgen_train.models.pretrained import PretrainedModel
from musicgen_train.models.products import Linear, gelu_product, rounded

PastKeysValues = KVCache | Sequence[Sequence[torch.Tensor]]

# Steps for which a forward pass that makes a cache allocates memory.
_CACHE_ROOM = 256


class MusicgenModel(PretrainedModel[MusicgenDecoderConfig]):
    """Is the decoder without heads: it returns hidden states."""

    config_class = MusicgenDecoderConfig

    def __init__(self, config: MusicgenDecoderConfig) -> None:
        super().__init__(config)
        self.decoder = MusicgenDecoder(config)
        draw_weights(self.decoder, config.initializer_factor)

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        # Files of the model with heads have the prefix "model." for this one, and also hold the heads.
        if file_key.startswith("lm_heads."):
            return None
        return without_position_table(file_key.removeprefix("model."))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
        cross_attn_head_mask: torch.Tensor | None = None,
        past_key_values: PastKeysValues | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Take the arguments of `MusicgenForCausalLM.forward`, without labels.

        Returns:
            A `DecoderOutput`, or a tuple on request.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = self._cache(past_key_values, use_cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds (or, to the model with heads, labels alone)")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.decoder.embed(split_codebooks(input_ids, self.config.num_codebooks))
        output = self.decoder(
            inputs_embeds,
            padding_mask=attention_mask,
            text_states=encoder_hidden_states,
            text_mask=encoder_attention_mask,
            head_mask=head_mask,
            cross_head_mask=cross_attn_head_mask,
            cache=cache,
            need_attentions=bool(output_attentions),
            need_hidden_states=bool(output_hidden_states),
        )
        output.past_key_values = cache if use_cache else None
        return as_requested(output, return_dict)

    def _cache(self, past: PastKeysValues | None, use_cache: bool) -> KVCache | None:
        if past is None:
            return KVCache(self.config.num_hidden_layers, capacity=_CACHE_ROOM) if use_cache else None
        cache = past if isinstance(past, KVCache) else KVCache.from_legacy(past)
        if len(cache) != self.config.num_hidden_layers:
            raise ValueError(f"past_key_values has {len(cache)} layers, the model {self.config.num_hidden_layers}")
        return cache


class MusicgenDecoder(nn.Module):
    """Runs embeddings, layers and the final norm."""

    def __init__(self, config: MusicgenDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.ModuleList(
            nn.Embedding(config.vocab_size + 1, config.hidden_size) for _ in range(config.num_codebooks)
        )
        self.layers = nn.ModuleList(MusicgenDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = LayerNorm(config.hidden_size)

    def embed(self, ids_BKS: torch.Tensor) -> torch.Tensor:
        """Returns the sum of all codebooks' embeddings, `(batch, steps, hidden_size)`."""
        if can_look_at(ids_BKS) and ids_BKS.numel():
            low, high = ids_BKS.aminmax()
            if low < 0 or high > self.config.vocab_size:
                raise ValueError(
                    f"input ids range from {low} to {high}; allowed are 0 to {self.config.vocab_size} (the last is the "
                    "special id)"
                )
        embeddings = [table(ids) for table, ids in zip(self.embed_tokens, ids_BKS.unbind(dim=1), strict=True)]
        return functools.reduce(torch.add, embeddings)

    def forward(
        self,
        embeddings_BSD: torch.Tensor,
        *,
        padding_mask: torch.Tensor | None = None,
        text_states: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
        cross_head_mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        need_attentions: bool = False,
        need_hidden_states: bool = False,
    ) -> DecoderOutput:
        """Run the layers and advance `cache` by the number of steps. Shapes are as in `MusicgenForCausalLM.forward`."""
        batch, steps, _ = embeddings_BSD.shape
        past = cache.length if cache is not None else 0
        self._check_length(past, steps)
        self_mask = self_attention_mask(steps, past, padding_mask, embeddings_BSD.device)
        if cache is not None and cache.cross(0) is not None:
            text_states = None
        text_states = self._prepare_text(text_states, text_mask, batch, embeddings_BSD.dtype)
        if text_states is not None:
            text_states = rounded(text_states)
        cross_mask = cross_attention_mask(text_mask)

        positions_SD = sinusoidal_positions(past, steps, self.config.hidden_size, embeddings_BSD.device)
        # Added in float32: the table is never rounded to half precision.
        hidden_BSD = (embeddings_BSD + positions_SD).to(embeddings_BSD.dtype)
        hidden_BSD = F.dropout(hidden_BSD, self.config.dropout, self.training)

        hidden_states, attentions, cross_attentions = [], [], []
        for index, layer in enumerate(self.layers):
            if need_hidden_states:  # otherwise a layer's input can be freed
                hidden_states.append(hidden_BSD)
            if self.training and self.config.layerdrop and torch.rand(()) < self.config.layerdrop:
                continue
            run: Callable[..., Any] = layer
            if self.gradient_checkpointing and self.training:
                run = _checkpointed(layer)
            hidden_BSD, weights, cross_weights = run(
                hidden_BSD,
                index,
                self_mask,
                text_states,
                cross_mask,
                None if head_mask is None else head_mask[index],
                None if cross_head_mask is None else cross_head_mask[index],
                cache,
                need_attentions,
            )
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        if cache is not None:
            cache.advance(steps)
        hidden_BSD = self.layer_norm(hidden_BSD)
        has_text = bool(cross_attentions) and cross_attentions[0] is not None
        return DecoderOutput(
            last_hidden_state=hidden_BSD,
            hidden_states=(*hidden_states, hidden_BSD) if need_hidden_states else None,
            attentions=tuple(attentions) if need_attentions else None,
            cross_attentions=tuple(cross_attentions) if need_attentions and has_text else None,
        )

    def _prepare_text(
        self, states_BLD: torch.Tensor | None, mask_BL: torch.Tensor | None, batch: int, dtype: torch.dtype
    ) -> torch.Tensor | None:
        if states_BLD is None:
            return None
        if states_BLD.dim() != 3 or states_BLD.shape[0] != batch or states_BLD.shape[2] != self.config.hidden_size:
            raise ValueError(
                f"encoder_hidden_states are {list(states_BLD.shape)}; expected ({batch}, text length, "
                f"{self.config.hidden_size}). States of another width go through the composite's enc_to_dec_proj first"
            )
        if mask_BL is not None:
            if mask_BL.shape != states_BLD.shape[:2]:
                raise ValueError(
                    f"encoder_attention_mask is {list(mask_BL.shape)}; expected {list(states_BLD.shape[:2])}, one "
                    "value per position of encoder_hidden_states"
                )
            # Zero states give zero values, whatever the attention backend does with fully masked rows, and keep NaN or
            # Inf in padding out of matrix products.
            states_BLD = states_BLD.masked_fill(~mask_BL.bool()[..., None], 0.0)
        return states_BLD.to(dtype)

    def _check_length(self, past: int, steps: int) -> None:
        longest = self.config.max_position_embeddings
        if past + steps > longest:
            raise ValueError(
                f"a sequence of {past + steps} steps is longer than max_position_embeddings ({longest}). No weight "
                "depends on that number: load with a larger one, e.g. from_pretrained(..., "
                f"max_position_embeddings={past + steps})"
            )


class MusicgenDecoderLayer(nn.Module):
    """Runs self-attention, cross-attention and feed-forward, each after a layer norm and with a residual connection.

    x = x + self_attn(norm(x));  x = x + encoder_attn(norm(x), text);  x = x + fc2(act(fc1(norm(x))))

    `forward` is the only Python code of this. CUDA graphs reuse it: a subclass does the products in another way
    (`project`, `add_product`), and another `KVCache` stores keys and values.
    """

    def __init__(self, config: MusicgenDecoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.activation = ACTIVATIONS[config.activation_function]
        self.self_attn = MusicgenAttention(width, config.num_attention_heads, config.attention_dropout)
        self.self_attn_layer_norm = LayerNorm(width)
        self.encoder_attn = MusicgenAttention(width, config.num_attention_heads, config.attention_dropout)
        self.encoder_attn_layer_norm = LayerNorm(width)
        self.fc1 = Linear(width, config.ffn_dim)
        self.fc2 = Linear(config.ffn_dim, width)
        self.final_layer_norm = LayerNorm(width)

    def forward(
        self,
        hidden_BSD: torch.Tensor,
        index: int,
        self_mask: AttentionMask,
        text_BLD: torch.Tensor | None,
        cross_mask: AttentionMask,
        head_mask_N: torch.Tensor | None,
        cross_head_mask_N: torch.Tensor | None,
        cache: KVCache | None,
        need_weights: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Returns the new states, and on request the weights of self- and cross-attention."""
        queries, keys, values = self.project(rounded(self.self_attn_layer_norm(hidden_BSD)))
        keys_values = (keys, values) if cache is None else cache.append(index, keys, values)
        mixed_BSD, weights = self.self_attn(queries, keys_values, self_mask, head_mask_N, need_weights)
        hidden_BSD = self.add_product(hidden_BSD, self.self_attn.out_proj, mixed_BSD)

        cross_weights = None
        text_keys_values = self._text_keys_values(text_BLD, index, cache)
        if text_keys_values is not None:
            queries = self.encoder_attn.queries(self.encoder_attn_layer_norm(hidden_BSD))
            mixed_BSD, cross_weights = self.encoder_attn(
                queries, text_keys_values, cross_mask, cross_head_mask_N, need_weights
            )
            hidden_BSD = self.add_product(hidden_BSD, self.encoder_attn.out_proj, mixed_BSD)

        hidden_BSD = self._add_activated(hidden_BSD, self.fc1(self.final_layer_norm(hidden_BSD)))
        return hidden_BSD, weights, cross_weights

    def project(self, normed_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries, keys and values of self-attention, each `(batch, heads, steps, head_width)`."""
        return self.self_attn.queries(normed_BSD), *self.self_attn.keys_values(normed_BSD)

    def add_product(self, hidden_BSD: torch.Tensor, linear: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """Returns the residual states plus `linear` of a branch's states."""
        return hidden_BSD + self._dropout(linear(states))

    def _add_activated(self, hidden_BSD: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        """Returns the states plus the second half of the feed-forward."""
        dropout = self.config.activation_dropout if self.training else 0.0
        if self.config.activation_function == "gelu" and not dropout:
            if not torch.is_grad_enabled():
                # In place, since allocating the layer's widest tensor costs more time than the function itself.
                return self.add_product(hidden_BSD, self.fc2, torch.ops.aten.gelu_(inner))
            # A wrapped layer has to be called; for a frozen one no activation is kept anyway.
            if type(self.fc2) is Linear and self.fc2.weight.requires_grad:
                return hidden_BSD + self._dropout(gelu_product(inner, self.fc2.weight))
        return self.add_product(hidden_BSD, self.fc2, F.dropout(self.activation(inner), dropout))

    def _text_keys_values(self, text_BLD: torch.Tensor | None, index: int, cache: KVCache | None) -> KeysValues | None:
        known = cache.cross(index) if cache is not None else None
        if known is not None or text_BLD is None:
            return known
        keys_values: KeysValues = self.encoder_attn.keys_values(text_BLD)
        if cache is not None:
            cache.set_cross(index, keys_values)
        return keys_values

    def _dropout(self, states: torch.Tensor) -> torch.Tensor:
        return F.dropout(states, self.config.dropout, self.training)


def split_codebooks(ids: torch.Tensor, num_codebooks: int) -> torch.Tensor:
    """Returns ids of shape `(batch * codebooks, steps)` or `(batch, codebooks, steps)` in the latter shape.

    Raises:
        ValueError: the rows are no multiple of the codebooks, or the ids are no integers.
    """
    if ids.is_floating_point():
        raise ValueError(f"ids are {ids.dtype}; expected integers (audio goes through the audio encoder first)")
    if ids.dim() == 3 and ids.shape[1] == num_codebooks:
        return ids
    if ids.dim() != 2 or ids.shape[0] % num_codebooks:
        raise ValueError(
            f"ids are {list(ids.shape)}; expected (batch * {num_codebooks}, steps) or (batch, {num_codebooks}, steps): "
            f"the model has {num_codebooks} codebooks"
        )
    return ids.unflatten(0, (-1, num_codebooks))


def draw_weights(module: nn.Module, std: float) -> None:
    """Draws random weights as the hub's class does: normal with standard deviation `std`; norms stay the identity."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding) and not part.weight.is_meta:
            nn.init.normal_(part.weight, std=std)


def can_look_at(ids: torch.Tensor) -> bool:
    """Returns True if checking the values is cheap: on a GPU it would synchronize, and it breaks a compiled graph."""
    return ids.device.type == "cpu" and not torch.compiler.is_compiling()


def _checkpointed(layer: nn.Module) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        return checkpoint(layer, *inputs, use_reentrant=False)

    return run


def without_position_table(file_key: str) -> str | None:
    """Returns a tensor's name in a file; None for the sinusoids that older files store, which are computed here."""
    return None if file_key.endswith("embed_positions.weights") else file_key
