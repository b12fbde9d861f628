"""How well the decoder predicts the codes of a split, per codebook, and how evenly the clips use the codes.

Axes: B batch, K codebooks, T frames, V codes, L text length, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from musicgen_train.data.batch import Batch
from musicgen_train.models.musicgen import MusicgenForConditionalGeneration
from musicgen_train.training.step.scores import score


@dataclass(kw_only=True)
class SplitScores:
    """Means over all scored positions of all clips; each field `(K,)`, one number per codebook."""

    cross_entropy: torch.Tensor
    """Mean cross-entropy in nats, float64; NaN for a codebook without positions."""
    accuracy: torch.Tensor
    """Share of positions whose likeliest code is the right one, float64."""
    positions: torch.Tensor
    """How many positions the means are taken over, int64."""

    @property
    def loss(self) -> float:
        """The training loss: the mean over the codebooks that have positions."""
        return self.cross_entropy[self.positions > 0].mean().item()

    @property
    def perplexity(self) -> torch.Tensor:
        """`exp` of the cross-entropy: among how many equally likely codes the decoder hesitates."""
        return self.cross_entropy.exp()


@torch.no_grad()
def score_split(
    model: MusicgenForConditionalGeneration,
    batches: Iterable[Batch],
    on_batch: Callable[[Batch], None] | None = None,
) -> SplitScores:
    """Teacher-forced cross-entropy and accuracy of the decoder, in eval mode, exactly as in training's validation.

    Sums and counts are added up over batches, so the result does not depend on how clips are grouped.

    Args:
        model: the composite; its projection and decoder are used, its encoders are not.
        batches: aligned codes with their stored text states.
        on_batch: called after each batch.

    Raises:
        ValueError: there are no batches.
    """
    decoder = model.decoder
    codebooks = decoder.num_codebooks
    sums = torch.zeros(codebooks, dtype=torch.float64)
    hits, counts = torch.zeros(codebooks, dtype=torch.long), torch.zeros(codebooks, dtype=torch.long)
    was_training = decoder.training
    decoder.eval()
    try:
        for batch in batches:
            batch = batch.to(model.device)
            labels_BTK = batch.labels(decoder.delays, decoder.config.pad_token_id)
            text_BLD = model.project_text(batch.text_states.to(model.dtype), batch.text_mask)
            scores = score(decoder, labels_BTK, text_BLD, batch.text_mask)
            sums += scores.sums_K.cpu().double()  # MPS has no float64
            counts += scores.counts_K.cpu()
            hits += scores.correct_K.cpu()
            if on_batch is not None:
                on_batch(batch)
    finally:
        decoder.train(was_training)
    if not counts.any():
        raise ValueError("there is nothing to score: the split has no clips, or none with frames")
    return SplitScores(cross_entropy=sums / counts, accuracy=hits / counts.double(), positions=counts)


@dataclass(kw_only=True)
class CodeUse:
    """How often a set of clips uses each code; each tensor `(K,)`, one number per codebook."""

    unigram_entropy: torch.Tensor
    """Entropy of how often each code occurs, in nats, float64: the cross-entropy of the best guess that ignores
    everything but these counts."""
    used_share: torch.Tensor
    """Share of the codebook's entries that occur at all, float64."""
    frames: int
    """Frames of all clips together."""


def code_use(codes: Iterable[torch.Tensor], codebook_size: int) -> CodeUse:
    """Count the codes of some clips.

    Args:
        codes: integers `(K, T)` of each clip.
        codebook_size: V.

    Raises:
        ValueError: there are no frames.
    """
    counts_KV: torch.Tensor | None = None
    for codes_KT in codes:
        rows = torch.stack([torch.bincount(row, minlength=codebook_size) for row in codes_KT.long()])
        counts_KV = rows if counts_KV is None else counts_KV + rows
    if counts_KV is None or not counts_KV.any():
        raise ValueError("there are no codes to count")
    shares_KV = counts_KV / counts_KV.sum(dim=1, keepdim=True).double()
    entropy_K = torch.special.entr(shares_KV).sum(dim=1)
    used_K = (counts_KV > 0).double().mean(dim=1)
    return CodeUse(unigram_entropy=entropy_K, used_share=used_K, frames=int(counts_KV[0].sum()))
