"""The MusicGen decoder: a transformer over delayed audio codes that attends to text (Copet et al. 2023).

It knows neither text nor audio: text arrives as hidden states of the decoder's own width, audio as codes.

Axes: B batch, K codebooks, S steps (delayed columns), L text length, D width, V codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from musicgen_train.files import write_json
from musicgen_train.hub.folder import GENERATION_CONFIG_NAME, PretrainedFolder
from musicgen_train.models.activations import ACTIVATIONS
from musicgen_train.models.attention import (
    AttentionMask,
    MusicgenAttention,
    cross_attention_mask,
    self_attention_mask,
)
from musicgen_train.models.autocast import without_autocast
from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.models.delay_pattern import codebook_delays
from musicgen_train.models.generation.loop import StoppingCriterion, Streamer, generate_codes
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.kv_cache import KVCache
from musicgen_train.models.loss import IGNORE, mean_over_codebooks, score_heads
from musicgen_train.models.norms import LayerNorm
from musicgen_train.models.outputs import CausalLMOutput, DecoderOutput, GenerateOutput, ScoredOutput, as_requested
from musicgen_train.models.positions import sinusoidal_positions
from musicgen_train.models.pretrained import PretrainedModel
from musicgen_train.models.products import Linear, gelu_product, product_dtype, rounded

PastKeysValues = KVCache | Sequence[Sequence[torch.Tensor]]

# Room for this many further steps in a cache that a forward pass makes for itself.
_CACHE_ROOM = 256
# Of a compiled layer.
_MOST_GRAPHS = 64


class MusicgenForCausalLM(PretrainedModel[MusicgenDecoderConfig]):
    """The decoder with one head per codebook: the model that is trained.

    `from_pretrained` on a composite's folder reads its `decoder.` part.
    """

    config_class = MusicgenDecoderConfig

    def __init__(self, config: MusicgenDecoderConfig) -> None:
        super().__init__(config)
        self.model = MusicgenModel(config)
        self.lm_heads = nn.ModuleList(
            Linear(config.hidden_size, config.vocab_size) for _ in range(config.num_codebooks)
        )
        _initialize(self.lm_heads, config.initializer_factor)
        self.generation_config = GenerationConfig.for_decoder(config)

    @property
    def num_codebooks(self) -> int:
        return self.config.num_codebooks

    @property
    def delays(self) -> list[int]:
        """Frames by which each codebook lags behind the first."""
        return codebook_delays(self.config.num_codebooks, self.config.audio_channels)

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        return _without_position_table(file_key)

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
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Predict the next code of every codebook at every step.

        Give `labels` alone to train: they are shifted by one here. With `input_ids` or `inputs_embeds` beside them
        nothing is shifted, and the logits of the last steps are scored against the labels as they stand. The loss needs
        no logits at hand (`loss.score_heads`): with labels, `logits` are made when they are first looked at.

        Args:
            input_ids: int64 `(batch * num_codebooks, steps)` or `(batch, num_codebooks, steps)`, delayed, starting with
                the special id.
            attention_mask: `(batch, steps)`, or with a cache `(batch, past + steps)`; 0 hides a step from all others.
                Training needs none, since later steps are hidden anyway.
            encoder_hidden_states: the text, `(batch, text_length, hidden_size)`; None for no text.
            encoder_attention_mask: `(batch, text_length)`, 0 for padding. A row of zeros is the null condition.
            head_mask: `(num_hidden_layers, num_attention_heads)`, a factor for each self-attention head.
            cross_attn_head_mask: the same for cross-attention.
            past_key_values: what an earlier call returned; `input_ids` then holds only the new steps.
            inputs_embeds: `(batch, steps, hidden_size)` in place of `input_ids`.
            labels: int64 `(batch, steps, num_codebooks)`, delayed (see `delay_pattern.training_labels`). -100 and the
                special id are not scored; as inputs both are the special id.
            use_cache: return `past_key_values`. Default: as the config says, but not in training.
            output_attentions: return attention weights, from the unfused path.
            output_hidden_states: return the embeddings and every layer's output.
            return_dict: False for a plain tuple of what is not None.

        Raises:
            ValueError: shapes that do not fit, ids out of range (looked at on the CPU only), or a sequence longer than
                `max_position_embeddings`.
        """
        config = self.config
        if labels is not None:
            self._check_labels(labels)
            if input_ids is None and inputs_embeds is None:
                input_ids = shift_labels(labels, config.pad_token_id, config.bos_token_id)
        if use_cache is None:
            use_cache = config.use_cache and labels is None and not self.training

        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden_BSD = outputs.last_hidden_state
        beside = {
            name: getattr(outputs, name)
            for name in ("past_key_values", "hidden_states", "attentions", "cross_attentions")
        }
        if labels is None:
            return as_requested(CausalLMOutput(logits=self._logits(hidden_BSD), **beside), return_dict)
        scores = score_heads(hidden_BSD[:, -labels.shape[1] :], self.lm_heads, labels, config.pad_token_id)
        output = ScoredOutput(
            functools.partial(self._logits_as_of, hidden_BSD, torch.is_grad_enabled(), product_dtype(hidden_BSD)),
            loss=mean_over_codebooks(scores.sums_K, scores.counts_K),
            codebook_losses=(scores.sums_K / scores.counts_K).detach(),
            codebook_counts=scores.counts_K,
            **beside,
        )
        return as_requested(output, return_dict)

    def _logits(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        return torch.stack([head(hidden_BSD) for head in self.lm_heads], dim=1).flatten(0, 1)  # (B * K, S, V)

    def _logits_as_of(self, hidden_BSD: torch.Tensor, grad: bool, dtype: torch.dtype) -> torch.Tensor:
        device = hidden_BSD.device
        rounding = without_autocast(device) if dtype == hidden_BSD.dtype else torch.autocast(device.type, dtype)
        with torch.set_grad_enabled(grad), rounding:
            return self._logits(hidden_BSD)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        streamer: Streamer | None = None,
        **overrides: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Generate codes, conditioned on text states, on codes to continue, on both, or on nothing.

        Args:
            input_ids: aligned codes to continue, `(batch * num_codebooks, frames)` or `(batch, num_codebooks, frames)`;
                a first column of the special id is not counted as a frame.
            encoder_hidden_states: text states of the decoder's width, `(batch, text_length, hidden_size)`. Under
                guidance the null rows are added here.
            encoder_attention_mask: `(batch, text_length)`; default all ones.
            generation_config: in place of the model's own.
            generator: source of randomness; a sequence of one per returned row makes each row independent of the
                others. Default: torch's global one.
            stopping_criteria: see `generation.StoppingCriterion`; all must not object to go on.
            streamer: see `generation.Streamer`.
            overrides: fields of the generation config, e.g. `max_new_tokens=503`, `guidance_scale=3.0`.

        Returns:
            int64 `(batch * num_return_sequences, num_codebooks, frames)`, aligned, the given frames included; or with
            `return_dict_in_generate=True` a `GenerateOutput`.

        Raises:
            ValueError: a request that is too short, too long, or that contradicts itself.
        """
        settings = (generation_config or self.generation_config).replace(**overrides)
        prompt = None if input_ids is None else self.prompt_codes(input_ids)
        codes, lengths = generate_codes(
            self,
            settings,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            prompt_codes=prompt,
            generator=generator,
            stopping_criteria=stopping_criteria,
            streamer=streamer,
        )
        if settings.return_dict_in_generate:
            return GenerateOutput(sequences=codes, codes=codes, lengths=lengths)
        return codes

    def gradient_checkpointing_enable(self) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""
        self.model.decoder.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass."""
        self.model.decoder.gradient_checkpointing = False

    def compile_layers(self) -> None:
        """Compile each layer at its first use (`torch.compile`), in place: names and weights stay what they are."""
        # Training, validation, autocast, masks and new lengths each want a graph of their own, of which torch makes
        # eight by default, and runs layers uncompiled from then on.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
        for layer in self.model.decoder.layers:
            layer.compile()

    def get_input_embeddings(self) -> nn.ModuleList:
        """The embedding of each codebook."""
        return self.model.decoder.embed_tokens

    def get_output_embeddings(self) -> nn.ModuleList:
        """The head of each codebook."""
        return self.lm_heads

    def prompt_codes(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Codes to continue as `(batch, num_codebooks, frames)`, checked, without a start column.

        Raises:
            ValueError: another number of codebooks, or codes out of range.
        """
        codes_BKP = split_codebooks(input_ids, self.num_codebooks)
        if codes_BKP.shape[-1] and bool((codes_BKP[..., 0] == self.config.bos_token_id).all()):
            codes_BKP = codes_BKP[..., 1:]
        if codes_BKP.numel():
            low, high = codes_BKP.aminmax()
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"codes to continue must be 0 to {self.config.vocab_size - 1}; these range from {low} to {high}"
                )
        return codes_BKP

    def _check_labels(self, labels_BSK: torch.Tensor) -> None:
        if labels_BSK.dim() != 3 or labels_BSK.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"labels are {list(labels_BSK.shape)}; expected (batch, steps, {self.num_codebooks}), one column per "
                f"codebook: the model has {self.num_codebooks}. Codes (batch, codebooks, frames) become labels through "
                "delay_pattern.training_labels"
            )
        if _can_look_at(labels_BSK):
            low, high = labels_BSK.masked_fill(labels_BSK == IGNORE, 0).aminmax()
            if low < 0 or high > self.config.vocab_size:
                raise ValueError(
                    f"labels range from {low} to {high}; allowed are -100 and 0 to {self.config.vocab_size} (the last "
                    "is the special id)"
                )

    def _read_companions(self, folder: PretrainedFolder) -> None:
        self.generation_config = GenerationConfig.from_folder(folder, self.config)

    def _write_companions(self, folder: Any) -> None:
        write_json(folder / GENERATION_CONFIG_NAME, self.generation_config.to_dict())


class MusicgenModel(PretrainedModel[MusicgenDecoderConfig]):
    """The decoder without heads: its output are hidden states."""

    config_class = MusicgenDecoderConfig

    def __init__(self, config: MusicgenDecoderConfig) -> None:
        super().__init__(config)
        self.decoder = MusicgenDecoder(config)
        _initialize(self.decoder, config.initializer_factor)

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        # Files of the model with heads call this one "model." and have the heads beside it.
        if file_key.startswith("lm_heads."):
            return None
        return _without_position_table(file_key.removeprefix("model."))

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
        """As `MusicgenForCausalLM.forward`, without labels; returns a `DecoderOutput`, or a tuple on request."""
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
    """Embeddings, layers and the final norm."""

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
        """The sum of all codebooks' embeddings, `(batch, steps, hidden_size)`."""
        if _can_look_at(ids_BKS) and ids_BKS.numel():
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
        """Run the layers; `cache` moves on by the number of steps. Shapes as in `MusicgenForCausalLM.forward`."""
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
            if need_hidden_states:  # else nobody keeps what a layer was given
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
            # Zero states give zero values, whatever the attention backend does with rows that see nothing, and keep
            # NaN or Inf in padding from reaching a matrix product.
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
    """Self-attention, cross-attention and feed-forward, each after a layer norm and beside a residual path.

    x = x + self_attn(norm(x));  x = x + encoder_attn(norm(x), text);  x = x + fc2(act(fc1(norm(x))))
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
        """The new states, and on request the weights of self- and cross-attention."""
        normed_BSD = rounded(self.self_attn_layer_norm(hidden_BSD))
        keys_values = self.self_attn.keys_values(normed_BSD)
        if cache is not None:
            keys_values = cache.append(index, *keys_values)
        attended_BSD, weights = self.self_attn(normed_BSD, keys_values, self_mask, head_mask_N, need_weights)
        hidden_BSD = hidden_BSD + self._dropout(attended_BSD)

        cross_weights = None
        cross = self._text_keys_values(text_BLD, index, cache)
        if cross is not None:
            normed_BSD = self.encoder_attn_layer_norm(hidden_BSD)
            attended_BSD, cross_weights = self.encoder_attn(
                normed_BSD, cross, cross_mask, cross_head_mask_N, need_weights
            )
            hidden_BSD = hidden_BSD + self._dropout(attended_BSD)

        normed_BSD = self.final_layer_norm(hidden_BSD)
        hidden_BSD = hidden_BSD + self._dropout(self._contract(self.fc1(normed_BSD)))
        return hidden_BSD, weights, cross_weights

    def _text_keys_values(
        self, text_BLD: torch.Tensor | None, index: int, cache: KVCache | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        known = cache.cross(index) if cache is not None else None
        if known is not None or text_BLD is None:
            return known
        keys_values: tuple[torch.Tensor, torch.Tensor] = self.encoder_attn.keys_values(text_BLD)
        if cache is not None:
            cache.set_cross(index, keys_values)
        return keys_values

    def _contract(self, inner: torch.Tensor) -> torch.Tensor:
        """The second half of the feed-forward."""
        dropout = self.config.activation_dropout if self.training else 0.0
        if self.config.activation_function == "gelu" and not dropout:
            if not torch.is_grad_enabled():
                # The layer's widest tensor is overwritten: fresh memory costs more time than the function itself.
                return self.fc2(torch.ops.aten.gelu_(inner))
            # A layer that is wrapped wants to be called; for one that is frozen no activation is kept anyway.
            if type(self.fc2) is Linear and self.fc2.weight.requires_grad:
                return gelu_product(inner, self.fc2.weight)
        return self.fc2(F.dropout(self.activation(inner), dropout))

    def _dropout(self, states: torch.Tensor) -> torch.Tensor:
        return F.dropout(states, self.config.dropout, self.training)


def split_codebooks(ids: torch.Tensor, num_codebooks: int) -> torch.Tensor:
    """`(batch * codebooks, steps)` or `(batch, codebooks, steps)` as `(batch, codebooks, steps)`.

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


def shift_labels(labels_BSK: torch.Tensor, pad_id: int, start_id: int) -> torch.Tensor:
    """The inputs that predict `labels_BSK`: one step later, a start column before them, -100 as `pad_id`.

    Returns:
        `(batch, codebooks, steps)`.
    """
    inputs_BKS = F.pad(labels_BSK.transpose(1, 2)[..., :-1], (1, 0), value=start_id)
    return inputs_BKS.masked_fill(inputs_BKS == IGNORE, pad_id)


def _initialize(module: nn.Module, std: float) -> None:
    """Random weights as the hub's class has them: normal with one std, norms at identity."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding) and not part.weight.is_meta:
            nn.init.normal_(part.weight, std=std)


def _can_look_at(ids: torch.Tensor) -> bool:
    # On an accelerator a look at the values would wait for it; under compile it would break the graph.
    return ids.device.type == "cpu" and not torch.compiler.is_compiling()


def _checkpointed(layer: nn.Module) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        return checkpoint(layer, *inputs, use_reentrant=False)

    return run


def _without_position_table(file_key: str) -> str | None:
    # Older files store the sinusoids, which are computed here.
    return None if file_key.endswith("embed_positions.weights") else file_key
