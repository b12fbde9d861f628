"""Scores of the decoder on a batch, per codebook, as sums and counts that add up over batches and ranks.

Axes: B batch, K codebooks, T frames, L text length, D text width, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from musicgen_train.models.causal_lm import MusicgenForCausalLM, shift_labels
from musicgen_train.models.loss import mean_over_codebooks, score_heads


@dataclass
class Scores:
    """Sums over the scored positions of one or more batches, each `(codebooks,)`."""

    sums_K: torch.Tensor
    """Cross-entropy in nats."""
    counts_K: torch.Tensor
    """Number of scored positions, int64."""
    correct_K: torch.Tensor
    """Number of positions whose code had the largest logit, int64."""

    @property
    def loss(self) -> torch.Tensor:
        """The mean over codebooks of each one's mean cross-entropy."""
        return mean_over_codebooks(self.sums_K, self.counts_K)

    def detach(self) -> Self:
        """The same numbers without a graph, in float64 (float32 on MPS), so that long sums stay precise."""
        precise = torch.float32 if self.sums_K.device.type == "mps" else torch.float64
        return type(self)(self.sums_K.detach().to(precise), self.counts_K, self.correct_K)

    def __add__(self, other: Scores) -> Scores:
        return Scores(self.sums_K + other.sums_K, self.counts_K + other.counts_K, self.correct_K + other.correct_K)

    def metrics(self, stage: str) -> dict[str, torch.Tensor]:
        """The loss, and cross-entropy, perplexity and accuracy of each codebook, under names such as `val/ce_q1`."""
        means_K = self.sums_K / self.counts_K
        rows = {"ce": means_K, "ppl": means_K.exp(), "acc": self.correct_K / self.counts_K}
        values = {f"{stage}/loss": self.loss}
        for kind, per_codebook in rows.items():
            values.update({f"{stage}/{kind}_q{number}": value for number, value in enumerate(per_codebook, start=1)})
        return {name: value.float() for name, value in values.items()}


def metric_names(stage: str, num_codebooks: int) -> list[str]:
    """The names of `Scores.metrics`, in the order of the columns of metrics.csv."""
    kinds = [f"{stage}/{kind}_q" for kind in ("ce", "ppl", "acc")]
    return [f"{stage}/loss"] + [f"{kind}{number}" for kind in kinds for number in range(1, num_codebooks + 1)]


def score(
    decoder: MusicgenForCausalLM,
    labels_BTK: torch.Tensor,
    text_BLD: torch.Tensor,
    text_mask_BL: torch.Tensor | None,
) -> Scores:
    """Score the decoder's predictions of the next codes.

    Args:
        decoder: the model, which stays in its mode.
        labels_BTK: see `Batch.labels`.
        text_BLD: text states of the decoder's width, zero on padding.
        text_mask_BL: False on padding; None attends to the zeros of padding, as audiocraft does.
    """
    pad = decoder.config.pad_token_id
    hidden = decoder.model(
        shift_labels(labels_BTK, pad, decoder.config.bos_token_id),
        encoder_hidden_states=text_BLD,
        encoder_attention_mask=text_mask_BL,
        use_cache=False,
    ).last_hidden_state
    return Scores(*score_heads(hidden, decoder.lm_heads, labels_BTK, pad))


def counts_of(frames: torch.Tensor, delays: Sequence[int]) -> torch.Tensor:
    """Count the scored positions of each codebook, int64 `(K,)`: `frames - delay` in each clip.

    Args:
        frames: lengths of the clips, int64.
        delays: the delay of each codebook in frames.
    """
    # The delays stay Python numbers: the host would wait for the copy of a tensor to the device.
    return torch.stack([(frames - delay).clamp(min=0).sum() for delay in delays])
