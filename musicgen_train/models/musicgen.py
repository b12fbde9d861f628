"""The composite: frozen text and audio encoders around the decoder; it maps text and audio to audio.

Axes: B batch, K codebooks, T frames, L text length, D width, C audio channels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from musicgen_train.files import write_json
from musicgen_train.hub.folder import GENERATION_CONFIG_NAME, PretrainedFolder
from musicgen_train.hub.weights import open_weights
from musicgen_train.models.causal_lm import MusicgenForCausalLM, shift_labels
from musicgen_train.models.codec.encodec import EncodecModel
from musicgen_train.models.config import MusicgenConfig
from musicgen_train.models.decoder import PastKeysValues
from musicgen_train.models.generation.loop import StoppingCriterion, Streamer, generate_codes
from musicgen_train.models.generation.sampling import Generators
from musicgen_train.models.generation_config import GenerationConfig
from musicgen_train.models.outputs import (
    BaseModelOutput,
    GenerateOutput,
    Seq2SeqLMOutput,
    UnconditionalInput,
    as_requested,
)
from musicgen_train.models.pretrained import PretrainedModel
from musicgen_train.models.t5 import T5EncoderModel

EncoderOutputs = BaseModelOutput | Sequence[torch.Tensor]
Scales = list[torch.Tensor | None]

_HUB_OPTIONS = ("subfolder", "revision", "token", "cache_dir", "local_files_only")


class MusicgenForConditionalGeneration(PretrainedModel[MusicgenConfig]):
    """Joins text encoder, audio encoder and decoder, with a projection of the text states if their widths differ.

    Args:
        config: config of all three; may be left out if all three models are given.
        text_encoder, audio_encoder, decoder: models to use; one that is not given gets new random weights.

    Raises:
        ValueError: neither a config nor all three models, or parts that do not fit each other.
    """

    config_class = MusicgenConfig
    tied_keys: ClassVar = {
        f"text_encoder.{alias}": f"text_encoder.{name}" for alias, name in T5EncoderModel.tied_keys.items()
    }
    keep_in_float32 = T5EncoderModel.keep_in_float32

    def __init__(
        self,
        config: MusicgenConfig | None = None,
        text_encoder: T5EncoderModel | None = None,
        audio_encoder: EncodecModel | None = None,
        decoder: MusicgenForCausalLM | None = None,
    ) -> None:
        if config is None:
            if text_encoder is None or audio_encoder is None or decoder is None:
                raise ValueError("give a config, or all three of text_encoder, audio_encoder and decoder")
            config = MusicgenConfig.from_sub_models_config(text_encoder.config, audio_encoder.config, decoder.config)
        super().__init__(config)
        self.text_encoder = T5EncoderModel(config.text_encoder) if text_encoder is None else text_encoder
        self.audio_encoder = EncodecModel(config.audio_encoder) if audio_encoder is None else audio_encoder
        self.decoder = MusicgenForCausalLM(config.decoder) if decoder is None else decoder
        # Share the config objects with the parts, so that a change through either path is seen through both.
        config.text_encoder, config.audio_encoder = self.text_encoder.config, self.audio_encoder.config
        config.decoder = self.decoder.config
        text_width, width = config.text_encoder.hidden_size, config.decoder.hidden_size
        self.enc_to_dec_proj = nn.Linear(text_width, width) if text_width != width else None
        if self.enc_to_dec_proj is not None and not self.enc_to_dec_proj.weight.is_meta:
            nn.init.normal_(self.enc_to_dec_proj.weight, std=config.decoder.initializer_factor)
            nn.init.zeros_(self.enc_to_dec_proj.bias)

    @property
    def generation_config(self) -> GenerationConfig:
        """Returns the default settings of `generate`, which belong to the decoder."""
        return self.decoder.generation_config

    @generation_config.setter
    def generation_config(self, generation_config: GenerationConfig) -> None:
        self.decoder.generation_config = generation_config

    @classmethod
    def from_sub_models_pretrained(
        cls,
        text_encoder_pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        audio_encoder_pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        decoder_pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        text_encoder_model: T5EncoderModel | None = None,
        audio_encoder_model: EncodecModel | None = None,
        decoder_model: MusicgenForCausalLM | None = None,
        **kwargs: Any,
    ) -> Self:
        """Put a composite together from three pretrained parts.

        Each part comes from a folder or hub id of its own kind, or of a composite that has it. If the decoder comes
        from a composite whose text encoder is as wide as this one, its projection and generation config are used;
        otherwise the projection is new and has to be trained.

        Args:
            text_encoder_pretrained_model_name_or_path: a T5, e.g. `google-t5/t5-base`.
            audio_encoder_pretrained_model_name_or_path: an EnCodec, e.g. `facebook/encodec_32khz`.
            decoder_pretrained_model_name_or_path: a MusicGen decoder or composite, e.g. `facebook/musicgen-small`.
            text_encoder_model, audio_encoder_model, decoder_model: models in place of the paths.
            kwargs: arguments of each part's `from_pretrained` after its prefix (`text_encoder_`, `audio_encoder_`,
                `decoder_`), e.g. `decoder_dropout=0.0`; without a prefix, for all three, e.g. `dtype="bfloat16"`.

        Raises:
            ValueError: a part has neither a path nor a model.
        """
        shared, prefixed = _split_by_prefix(kwargs, ("text_encoder_", "audio_encoder_", "decoder_"))
        text_encoder = text_encoder_model or T5EncoderModel.from_pretrained(
            _given(text_encoder_pretrained_model_name_or_path, "text_encoder"), **shared, **prefixed["text_encoder_"]
        )
        audio_encoder = audio_encoder_model or EncodecModel.from_pretrained(
            _given(audio_encoder_pretrained_model_name_or_path, "audio_encoder"), **shared, **prefixed["audio_encoder_"]
        )
        decoder = decoder_model or MusicgenForCausalLM.from_pretrained(
            _given(decoder_pretrained_model_name_or_path, "decoder"), **shared, **prefixed["decoder_"]
        )
        model = cls(text_encoder=text_encoder, audio_encoder=audio_encoder, decoder=decoder)
        if decoder_model is None and decoder_pretrained_model_name_or_path is not None:
            options = {
                name: value for name, value in {**shared, **prefixed["decoder_"]}.items() if name in _HUB_OPTIONS
            }
            model._take_projection(PretrainedFolder(decoder_pretrained_model_name_or_path, **options))
        if model.enc_to_dec_proj is not None:
            model.enc_to_dec_proj.to(device=decoder.device, dtype=decoder.dtype)
        return model.eval()

    @classmethod
    def model_key(cls, file_key: str) -> str | None:
        for part in (T5EncoderModel, EncodecModel, MusicgenForCausalLM):
            prefix = part.composite_prefix() or ""
            if file_key.startswith(prefix):
                key = part.model_key(file_key.removeprefix(prefix))
                return None if key is None else prefix + key
        return file_key

    def tie_weights(self) -> None:
        self.text_encoder.tie_weights()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: EncoderOutputs | None = None,
        past_key_values: PastKeysValues | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        head_mask: torch.Tensor | None = None,
        decoder_head_mask: torch.Tensor | None = None,
        cross_attn_head_mask: torch.Tensor | None = None,
    ) -> Any:
        """Encode the text, then predict the next code of every codebook at every step.

        Args:
            input_ids: text, int64 `(batch, text_length)`.
            attention_mask: `(batch, text_length)`, 0 for padding; belongs to `encoder_outputs` too.
            input_values: audio whose codes are the decoder's input, `(batch, channels, samples)`; used where none of
                `decoder_input_ids`, `decoder_inputs_embeds` and `labels` is given.
            padding_mask: mask of `input_values`, as for `encode_audio`.
            decoder_input_ids: delayed codes, `(batch * num_codebooks, steps)` or `(batch, num_codebooks, steps)`.
            decoder_attention_mask: `(batch, steps)`.
            encoder_outputs: text states `(batch, text_length, text hidden_size)` as the first element, computed before.
            past_key_values: what an earlier call returned.
            inputs_embeds: text embeddings in place of `input_ids`.
            decoder_inputs_embeds: in place of `decoder_input_ids`.
            labels: `(batch, steps, num_codebooks)`, as for `MusicgenForCausalLM.forward`.
            use_cache, output_attentions, output_hidden_states, return_dict: as for `MusicgenForCausalLM.forward`.
            head_mask: `(text layers, text heads)`, a factor for each head of the text encoder.
            decoder_head_mask, cross_attn_head_mask: `(layers, heads)`, the same for the decoder's two attentions.

        Returns:
            A `Seq2SeqLMOutput`, or a tuple on request.
        """
        if encoder_outputs is None:
            encoder_outputs = self.text_encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                head_mask=head_mask,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
        encoded = _as_encoder_output(encoder_outputs)
        text_states = self.project_text(_states(encoded), attention_mask)

        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is not None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            elif input_values is not None:
                decoder_input_ids, _ = self.encode_audio(input_values, padding_mask)
            else:
                raise ValueError(
                    "nothing to decode: give decoder_input_ids, decoder_inputs_embeds, labels or input_values (audio)"
                )
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=text_states,
            encoder_attention_mask=attention_mask,
            head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        output = Seq2SeqLMOutput(
            loss=decoded.loss,
            logits=decoded.logits,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
            codebook_losses=decoded.codebook_losses,
            codebook_counts=decoded.codebook_counts,
        )
        return as_requested(output, return_dict)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        encoder_outputs: EncoderOutputs | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        generator: Generators = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        streamer: Streamer | None = None,
        **overrides: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Make audio from text, from audio to continue, from both, or from nothing.

        Args:
            input_ids, attention_mask: text, from the processor.
            input_values, padding_mask: audio to continue, from the processor; `(batch, channels, samples)`. Prompts of
                different lengths are padded, and the model hears the padding as silence: prefer equal lengths.
            encoder_outputs: text states computed before, `(batch, text_length, text hidden_size)` as the first element,
                without null rows, also under guidance.
            decoder_input_ids: aligned codes to continue, in place of `input_values`.
            generation_config, generator, stopping_criteria, streamer, overrides: as for `MusicgenForCausalLM.generate`.

        Returns:
            Audio `(batch * num_return_sequences, audio_channels, samples)`, the prompt included; rows that were
            stopped early end in silence. With `return_dict_in_generate=True` a `GenerateOutput`, whose `sequences`
            are the audio.

        Raises:
            ValueError: as for `MusicgenForCausalLM.generate`.
        """
        self._check_codec_fits()
        settings = (generation_config or self.generation_config).replace(**overrides)
        states = self._text_states(input_ids, attention_mask, encoder_outputs)
        prompt, scales = None, None
        if decoder_input_ids is not None:
            prompt = self.decoder.prompt_codes(decoder_input_ids)
        elif input_values is not None:
            prompt, scales = self.encode_audio(input_values, padding_mask)
        codes, lengths = generate_codes(
            self.decoder.model.decoder,
            self.decoder.lm_heads,
            settings,
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask if states is not None else None,
            prompt_codes=prompt,
            generator=generator,
            stopping_criteria=stopping_criteria,
            streamer=streamer,
        )
        audio = self.decode_audio(codes, _repeat_scales(scales, settings.num_return_sequences))
        samples = lengths * self.config.audio_encoder.hop_length
        past_end = torch.arange(audio.shape[-1], device=audio.device) >= samples[:, None, None]
        audio = audio.masked_fill(past_end, 0.0)
        if settings.return_dict_in_generate:
            return GenerateOutput(sequences=audio, codes=codes, lengths=lengths)
        return audio

    def get_unconditional_inputs(self, num_samples: int = 1) -> UnconditionalInput:
        """Returns inputs of `generate` for audio without a text."""
        width = self.config.text_encoder.hidden_size
        return UnconditionalInput(
            encoder_outputs=(torch.zeros((num_samples, 1, width), device=self.device, dtype=self.dtype),),
            attention_mask=torch.zeros((num_samples, 1), device=self.device, dtype=torch.long),
            guidance_scale=1.0,
        )

    def project_text(self, states_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
        """Project text states to the decoder's width and set them to zero where the mask is 0.

        The mask is applied last, since the projection's bias would make zeros nonzero.
        """
        if self.enc_to_dec_proj is not None:
            states_BLD = self.enc_to_dec_proj(states_BLD.to(self.enc_to_dec_proj.weight.dtype))
        if mask_BL is not None:
            states_BLD = states_BLD.masked_fill(~mask_BL.bool()[..., None], 0.0)
        return states_BLD

    def encode_audio(
        self, audio_BCS: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[Scales]]:
        """Encode audio as the decoder's codes.

        Stereo is coded channel by channel with the mono codec and interleaved; for a stereo decoder, mono audio is used
        for both sides.

        Args:
            audio_BCS: `(batch, channels, samples)` at the codec's sampling rate.
            padding_mask: `(batch, samples)` or `(batch, channels, samples)`; where it is 0 the audio counts as silence.

        Returns:
            int64 `(batch, num_codebooks, frames)`, and per coded channel the codec's scales.

        Raises:
            ValueError: a number of channels that the decoder cannot take, or a codec that codes in chunks.
        """
        channels = self.config.decoder.audio_channels
        if channels == 1:
            codes, scales = self._encode_channel(audio_BCS, padding_mask)
            return codes, [scales]
        if audio_BCS.dim() != 3 or audio_BCS.shape[1] not in (1, 2):
            raise ValueError(
                f"audio is {list(audio_BCS.shape)}; a stereo decoder continues (batch, 2, samples), or (batch, 1, "
                "samples) on both sides"
            )
        sides = [
            self._encode_channel(audio_BCS[:, side : side + 1], _mask_of_side(padding_mask, side))
            for side in range(audio_BCS.shape[1])
        ]
        left, right = sides[0], sides[-1]
        codes = torch.stack([left[0], right[0]], dim=2).flatten(1, 2)  # (B, K, 2, T): 1L, 1R, 2L, 2R, ...
        return codes, [left[1], right[1]]

    def decode_audio(self, codes_BKT: torch.Tensor, scales: list[Scales] | None = None) -> torch.Tensor:
        """Decode aligned codes to audio `(batch, audio_channels, samples)`, the inverse of `encode_audio`."""
        channels = self.config.decoder.audio_channels
        sides = [
            self.audio_encoder.decode(codes_BKT[None, :, side::channels], [None] if scales is None else scales[side])
            for side in range(channels)
        ]
        return torch.cat([side.audio_values for side in sides], dim=1)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the decoder's inputs that predict `labels`: shifted by one step, `(batch, num_codebooks, steps)`."""
        config = self.config.decoder
        assert config.decoder_start_token_id is not None
        return shift_labels(labels, config.pad_token_id, config.decoder_start_token_id)

    def freeze_text_encoder(self) -> None:
        """Exclude the text encoder from training."""
        self.text_encoder.requires_grad_(False)

    def freeze_audio_encoder(self) -> None:
        """Exclude the audio encoder from training."""
        self.audio_encoder.requires_grad_(False)

    def get_encoder(self) -> T5EncoderModel:
        """Returns the text encoder."""
        return self.text_encoder

    def get_audio_encoder(self) -> EncodecModel:
        return self.audio_encoder

    def get_decoder(self) -> MusicgenForCausalLM:
        return self.decoder

    def _text_states(
        self,
        input_ids: torch.Tensor | None,
        mask: torch.Tensor | None,
        encoder_outputs: EncoderOutputs | None,
    ) -> torch.Tensor | None:
        if encoder_outputs is None:
            if input_ids is None:
                return None
            encoder_outputs = self.text_encoder(input_ids=input_ids, attention_mask=mask)
        return self.project_text(_states(_as_encoder_output(encoder_outputs)), mask)

    def _encode_channel(
        self, audio_B1S: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, Scales]:
        encoded = self.audio_encoder.encode(audio_B1S, padding_mask)
        chunks = encoded.audio_codes.shape[0]
        if chunks != 1:
            raise ValueError(
                f"the audio encoder made {chunks} chunks; the decoder continues one. Load it with chunk_length_s=None"
            )
        return encoded.audio_codes[0], encoded.audio_scales

    def _check_codec_fits(self) -> None:
        decoder, codec = self.config.decoder, self.config.audio_encoder
        if decoder.vocab_size != codec.codebook_size:
            raise ValueError(
                f"the decoder predicts codes below {decoder.vocab_size}, the audio encoder's codebooks have "
                f"{codec.codebook_size} entries; use the audio encoder that the decoder was trained with"
            )
        if decoder.channel_codebooks > codec.num_quantizers:
            raise ValueError(
                f"the decoder predicts {decoder.channel_codebooks} codebooks per channel, the audio encoder has "
                f"{codec.num_quantizers}"
            )

    def _take_projection(self, decoder_folder: PretrainedFolder) -> None:
        """Copy the projection of the composite that the decoder was read from, if it has one of this shape."""
        if self.enc_to_dec_proj is None:
            return
        weights = open_weights(decoder_folder)
        own = self.enc_to_dec_proj.state_dict()
        keys = {name: f"enc_to_dec_proj.{name}" for name in own}
        if set(keys.values()) <= set(weights) and all(weights.shape(keys[n]) == tuple(own[n].shape) for n in own):
            self.enc_to_dec_proj.load_state_dict({name: weights.tensor(key) for name, key in keys.items()})

    def _read_companions(self, folder: PretrainedFolder) -> None:
        self.generation_config = GenerationConfig.from_folder(folder, self.config.decoder)

    def _write_companions(self, folder: Path) -> None:
        write_json(folder / GENERATION_CONFIG_NAME, self.generation_config.to_dict())


def _as_encoder_output(outputs: EncoderOutputs) -> BaseModelOutput:
    if isinstance(outputs, BaseModelOutput):
        return outputs
    states, *rest = outputs
    hidden_states, attentions = (*rest, None, None)[:2]
    return BaseModelOutput(states, hidden_states, attentions)  # type: ignore[arg-type]


def _states(encoded: BaseModelOutput) -> torch.Tensor:
    if not isinstance(encoded.last_hidden_state, torch.Tensor) or encoded.last_hidden_state.dim() != 3:
        raise ValueError("encoder_outputs must have text states (batch, text length, hidden size) as first element")
    return encoded.last_hidden_state


def _given(source: str | os.PathLike[str] | None, part: str) -> str | os.PathLike[str]:
    if source is None:
        raise ValueError(f"give {part}_model or {part}_pretrained_model_name_or_path")
    return source


def _split_by_prefix(
    kwargs: dict[str, Any], prefixes: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    prefixed: dict[str, dict[str, Any]] = {prefix: {} for prefix in prefixes}
    shared = {}
    for name, value in kwargs.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            shared[name] = value
        else:
            prefixed[prefix][name.removeprefix(prefix)] = value
    return shared, prefixed


def _mask_of_side(mask: torch.Tensor | None, side: int) -> torch.Tensor | None:
    # A mask may be shared by both channels or have one row each.
    return mask[:, side : side + 1] if mask is not None and mask.dim() == 3 and mask.shape[1] == 2 else mask


def _repeat_scales(scales: list[Scales] | None, times: int) -> list[Scales] | None:
    if scales is None:
        return None
    return [[None if s is None else s.repeat_interleave(times, dim=0) for s in side] for side in scales]
