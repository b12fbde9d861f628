"""The decoder with heads: its training loss and its generation.

Axes: B batch, K codebooks, S steps (delayed columns), D width, V codes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.files import write_json
from musicgen_train.hub.folder import GENERATION_CONFIG_NAME, PretrainedFolder
from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.models.decoder import (
    MusicgenModel,
    PastKeysValues,
    can_look_at,
    draw_weights,
    split_codebooks,
    without_position_table,
)
from musicgen_train.models.delay_pattern import codebook_delays
from musicgen_train.models.generation.loop import StoppingCriterion, Streamer, generate_codes
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.loss import IGNORE, mean_over_codebooks, score_heads
from musicgen_train.models.outputs import CausalLMOutput, GenerateOutput, ScoredOutput, as_requested
from musicgen_train.models.pretrained import PretrainedModel
from musicgen_train.models.products import Linear, product_dtype, without_autocast

# torch keeps at most this many graphs per compiled layer.
_MOST_GRAPHS = 64


class MusicgenForCausalLM(PretrainedModel[MusicgenDecoderConfig]):
    """Is the decoder with one head per codebook: the model that is trained.

    `from_pretrained` on a composite's folder reads its `decoder.` part.
    """

    config_class = MusicgenDecoderConfig

    def __init__(self, config: MusicgenDecoderConfig) -> None:
        super().__init__(config)
        self.model = MusicgenModel(config)
        self.lm_heads = nn.ModuleList(
            Linear(config.hidden_size, config.vocab_size) for _ in range(config.num_codebooks)
        )
        draw_weights(self.lm_heads, config.initializer_factor)
        self.generation_config = GenerationConfig.for_decoder(config)

    @property
    def num_codebooks(self) -> int:
        return self.config.num_codebooks

    @property
    def delays(self) -> list[int]:
        """Returns the frames by which each codebook lags behind the first."""
        return codebook_delays(self.config.num_codebooks, self.config.audio_channels)

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        return without_position_table(file_key)

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

        Give `labels` alone to train: they are shifted by one here. With `input_ids` or `inputs_embeds` as well, nothing
        is shifted, and the logits of the last steps are scored against the labels. The loss does not need all logits
        at once (`loss.score_heads`), so with labels, `logits` are computed on first access.

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
            ValueError: shapes that do not fit, ids out of range (checked on the CPU only), or a sequence longer than
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
            stopping_criteria: see `generation.StoppingCriterion`; a row stops when any of them stops it.
            streamer: see `generation.Streamer`.
            overrides: fields of the generation config, e.g. `max_new_tokens=503`, `guidance_scale=3.0`.

        Returns:
            int64 `(batch * num_return_sequences, num_codebooks, frames)`, aligned, the prompt included; or with
            `return_dict_in_generate=True` a `GenerateOutput`.

        Raises:
            ValueError: a request that is too short, too long, or that contradicts itself.
        """
        settings = (generation_config or self.generation_config).replace(**overrides)
        prompt = None if input_ids is None else self.prompt_codes(input_ids)
        codes, lengths = generate_codes(
            self.model.decoder,
            self.lm_heads,
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
        """Compile each layer on first use (`torch.compile`), in place: names and weights do not change."""
        # Training, validation, autocast, masks and new lengths each need a graph of their own. By default torch makes
        # eight, and runs layers uncompiled after that.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
        for layer in self.model.decoder.layers:
            layer.compile()

    def get_input_embeddings(self) -> nn.ModuleList:
        """Returns the embedding of each codebook."""
        return self.model.decoder.embed_tokens

    def get_output_embeddings(self) -> nn.ModuleList:
        """Returns the head of each codebook."""
        return self.lm_heads

    def prompt_codes(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Check codes to continue and return them as `(batch, num_codebooks, frames)`, without a start column.

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
        if can_look_at(labels_BSK):
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


def shift_labels(labels_BSK: torch.Tensor, pad_id: int, start_id: int) -> torch.Tensor:
    """Returns the inputs that predict `labels_BSK`: shifted by one step, `start_id` first, -100 replaced by `pad_id`.

    Returns:
        `(batch, codebooks, steps)`.
    """
    inputs_BKS = F.pad(labels_BSK.transpose(1, 2)[..., :-1], (1, 0), value=start_id)
    return inputs_BKS.masked_fill(inputs_BKS == IGNORE, pad_id)
