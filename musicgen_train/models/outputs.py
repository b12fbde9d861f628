"""The models' outputs: dataclasses that can also be read by position or key, like the reference's outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from musicgen_train.models.kv_cache import KVCache


class ModelOutput:
    """Is the base of the output dataclasses. Positions, keys and `len` count only the values that are not None."""

    def keys(self) -> list[str]:
        """Returns the names of the values that are not None, in order."""
        return [name for name in self.__dataclass_fields__ if getattr(self, name) is not None]  # type: ignore[attr-defined]

    def values(self) -> list[Any]:
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the values that are not None, in order, as models do with `return_dict=False`."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(f"{type(self).__name__} holds {self.keys()}, not {key!r}")
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()


@dataclass
class BaseModelOutput(ModelOutput):
    """Holds the outputs of an encoder."""

    last_hidden_state: torch.Tensor | None = None
    """`(batch, length, hidden_size)`."""
    hidden_states: tuple[torch.Tensor, ...] | None = None
    """The embeddings, then the output of every layer; the last one equals `last_hidden_state`."""
    attentions: tuple[torch.Tensor, ...] | None = None
    """Per layer, `(batch, heads, length, length)`."""


@dataclass
class DecoderOutput(ModelOutput):
    """Holds the outputs of the decoder without heads."""

    last_hidden_state: torch.Tensor | None = None
    """`(batch, steps, hidden_size)`, after the final layer norm."""
    past_key_values: KVCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    """The embeddings, then the output of every layer; the last one equals `last_hidden_state`."""
    attentions: tuple[torch.Tensor, ...] | None = None
    """Self-attention weights per layer, `(batch, heads, steps, past + steps)`."""
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    """Cross-attention weights per layer, `(batch, heads, steps, text_length)`."""


@dataclass
class CausalLMOutput(ModelOutput):
    """Holds the outputs of the decoder with heads."""

    loss: torch.Tensor | None = None
    """Mean over codebooks of each codebook's mean cross-entropy, a float32 scalar."""
    logits: torch.Tensor | None = None
    """`(batch * num_codebooks, steps, vocab_size)`."""
    past_key_values: KVCache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    codebook_losses: torch.Tensor | None = None
    """Each codebook's mean cross-entropy in nats, float32 `(num_codebooks,)`, detached; NaN without labels."""
    codebook_counts: torch.Tensor | None = None
    """Number of labels in each of those means, int64 `(num_codebooks,)`."""


class ScoredOutput(CausalLMOutput):
    """Holds the outputs of the decoder with heads and labels; logits, which the loss does not need, are made lazily.

    Args:
        make_logits: called at most once.
        values: the other fields.
    """

    def __init__(self, make_logits: Callable[[], torch.Tensor], **values: Any) -> None:
        super().__init__(**values)
        self._make_logits = make_logits
        del self.logits  # the field's default would hide the property

    @functools.cached_property
    def logits(self) -> torch.Tensor:  # type: ignore[override]
        return self._make_logits()


@dataclass
class Seq2SeqLMOutput(ModelOutput):
    """Holds the outputs of the composite."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: KVCache | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None
    codebook_losses: torch.Tensor | None = None
    codebook_counts: torch.Tensor | None = None


@dataclass
class EncodecEncoderOutput(ModelOutput):
    """Holds the outputs of `EncodecModel.encode`."""

    audio_codes: torch.Tensor | None = None
    """int64 `(chunks, batch, num_codebooks, frames)`; one chunk unless the config has `chunk_length_s`."""
    audio_scales: list[torch.Tensor | None] | None = None
    """Per chunk, the volume that was divided out, `(batch, 1)`; None without `normalize`."""
    last_frame_pad_length: int | None = None
    """Frames of zeros appended to the last chunk's codes so that it has the length of the others."""


@dataclass
class EncodecDecoderOutput(ModelOutput):
    """Holds the output of `EncodecModel.decode`."""

    audio_values: torch.Tensor | None = None
    """`(batch, audio_channels, samples)`."""


@dataclass
class EncodecOutput(ModelOutput):
    """Holds the outputs of `EncodecModel.forward`, a round trip."""

    audio_codes: torch.Tensor | None = None
    audio_values: torch.Tensor | None = None


@dataclass
class UnconditionalInput(ModelOutput):
    """Holds inputs of `generate` for unconditional generation."""

    encoder_outputs: tuple[torch.Tensor, ...] | None = None
    """One tensor of zeros, `(batch, 1, text_hidden_size)`."""
    attention_mask: torch.Tensor | None = None
    """int64 zeros `(batch, 1)`."""
    guidance_scale: float | None = None
    """1, since without a text guidance would only double the work."""


@dataclass
class GenerateOutput(ModelOutput):
    """Holds the outputs of `generate(return_dict_in_generate=True)`."""

    sequences: torch.Tensor | None = None
    """The composite's audio `(batch, channels, samples)`, or the decoder's codes: as `generate` returns otherwise."""
    codes: torch.Tensor | None = None
    """int64 `(batch, num_codebooks, frames)`, aligned (the delay is undone), the prompt included."""
    lengths: torch.Tensor | None = None
    """Frames of each row before it was stopped, int64 `(batch,)`."""


def as_requested(output: ModelOutput, return_dict: bool | None) -> Any:
    """Returns `output` itself, or its tuple if `return_dict` is False."""
    return output.to_tuple() if return_dict is False else output
