"""The training loss: cross-entropy per codebook, as sums and counts, so that means over any group can be taken.

Axes: B batch, K codebooks, S steps, N = B * S positions, D width, V codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.models.products import Linear, computed_in, product, product_dtype, without_autocast

IGNORE = -100

# Logits that are held at once. On a CPU they should fit its cache; on a GPU a product has to be worth its launch.
_CPU_CHUNK, _CHUNK = 2**20, 2**25


def rows_at_once(codes: int, device: torch.device) -> int:
    """Returns how many positions `score_heads` computes logits for at once, with `codes` codes per codebook."""
    return max(1, (_CPU_CHUNK if device.type == "cpu" else _CHUNK) // codes)


class CodebookSums(NamedTuple):
    """Holds sums over the scored positions of each codebook, each `(codebooks,)`."""

    sums_K: torch.Tensor
    """Cross-entropy in nats, float32 (float64 for float64 states); 0 with zero gradients if nothing is scored."""
    counts_K: torch.Tensor
    """Number of scored positions, int64."""
    correct_K: torch.Tensor
    """Number of positions whose code has the largest logit, int64."""


def score_heads(
    hidden_BSD: torch.Tensor, heads: Iterable[nn.Module], labels_BSK: torch.Tensor, pad_id: int
) -> CodebookSums:
    """Scores the heads' predictions from the decoder's states, without ever holding the logits of all codebooks.

    Logits are the largest tensors of a training step. They are computed for a few positions at a time, scored, turned
    into gradients of states and weights, and dropped (Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989, 3.2), so the
    backward pass only multiplies these by the incoming gradient. Softmax and sums are taken in float32. Heads that are
    not plain linear layers, such as those with an adapter, are called, and their logits kept.

    Args:
        hidden_BSD: `(batch, steps, width)`.
        heads: one per codebook, from width to its codes.
        labels_BSK: `(batch, steps, codebooks)`; -100 and `pad_id` are not scored.
        pad_id: the special id.
    """
    heads = list(heads)
    # Wrapped layers, and subclasses such as those of sharding, have to be called.
    if any(type(head) is not Linear for head in heads):
        return score_logits([head(hidden_BSD) for head in heads], labels_BSK, pad_id)
    labels_KN = _labels(labels_BSK, pad_id)
    weights = [cast("Linear", head).weight for head in heads]
    dtype = product_dtype(hidden_BSD)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden_BSD, *weights)):
        sums_K, correct_K = _ScoredHeads.apply(dtype, hidden_BSD.flatten(0, 1), labels_KN, *weights)
    else:
        with torch.no_grad():
            sums_K, correct_K, *_ = _score(dtype, hidden_BSD.flatten(0, 1), labels_KN, weights, False, False)
    return CodebookSums(sums_K, (labels_KN != IGNORE).sum(dim=1), correct_K)


def score_logits(logits_BSV: Sequence[torch.Tensor], labels_BSK: torch.Tensor, pad_id: int) -> CodebookSums:
    """Returns the same as `score_heads`, from logits that have been computed already.

    Args:
        logits_BSV: per codebook, `(batch, steps, vocab_size)` in any floating-point type; converted to float32.
        labels_BSK: `(batch, steps, codebooks)`; -100 and `pad_id` are not scored.
        pad_id: the special id.
    """
    labels_KN = _labels(labels_BSK, pad_id)
    logits_NV = [logits.flatten(0, 1) for logits in logits_BSV]
    sums = [
        F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
        for logits, labels in zip(logits_NV, labels_KN, strict=True)
    ]
    # Labels that are not scored are negative, so no argmax equals them.
    correct = [(logits.argmax(dim=-1) == labels).sum() for logits, labels in zip(logits_NV, labels_KN, strict=True)]
    return CodebookSums(torch.stack(sums), (labels_KN != IGNORE).sum(dim=1), torch.stack(correct))


def mean_over_codebooks(sums_K: torch.Tensor, counts_K: torch.Tensor) -> torch.Tensor:
    """Returns the loss: the mean, over codebooks with scored positions, of each one's mean cross-entropy.

    It is audiocraft's, except that a codebook without scored positions does not make it NaN. Pass sums and counts added
    up over micro-batches and ranks to get the loss of one big batch; the sums of one micro-batch with the counts of all
    of them give its part of that loss, and the parts add up to it.
    """
    scored = counts_K > 0
    means = sums_K / counts_K.clamp(min=1)
    return means.sum() / scored.sum().clamp(min=1)


def _labels(labels_BSK: torch.Tensor, pad_id: int) -> torch.Tensor:
    return labels_BSK.masked_fill(labels_BSK == pad_id, IGNORE).flatten(0, 1).T  # (K, N)


class _ScoredHeads(torch.autograd.Function):
    """Returns the sums and hits of `_score`; the gradients of each codebook's sum are computed with it and kept."""

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, hidden_ND: torch.Tensor, labels_KN: torch.Tensor, *weights_VD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, of_hidden, _, *of_weights = ctx.needs_input_grad
        sums_K, correct_K, grads_KND, grads_VD = _score(
            dtype, hidden_ND, labels_KN, weights_VD, of_hidden, any(of_weights)
        )
        ctx.save_for_backward(*grads_KND, *grads_VD)
        ctx.hidden_dtype = hidden_ND.dtype
        ctx.mark_non_differentiable(correct_K)
        return sums_K, correct_K

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_sums = grads[0].unbind()
        _, of_hidden, _, *of_weights = ctx.needs_input_grad
        kept = list(ctx.saved_tensors)
        grad_ND = None
        if of_hidden:
            # One codebook after the other, since stacking them would need that many times the memory.
            grad_ND = torch.zeros_like(kept[0], dtype=grads[0].dtype)
            for factor in of_sums:
                grad_ND.addcmul_(kept.pop(0), factor)
            grad_ND = grad_ND.to(ctx.hidden_dtype)
        grads_VD = [factor * grad_VD for factor, grad_VD in zip(of_sums, kept, strict=True)] if kept else []
        return None, grad_ND, None, *(grads_VD or [None] * len(of_weights))


def _score(
    dtype: torch.dtype,
    hidden_ND: torch.Tensor,
    labels_KN: torch.Tensor,
    weights_VD: Sequence[torch.Tensor],
    of_hidden: bool,
    of_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Computes sums and hits of each codebook, and on request the gradients of each sum by states and head weights.

    Args:
        dtype: dtype that operands of products are rounded to.
        hidden_ND: states.
        labels_KN: labels, `IGNORE` where nothing is scored.
        weights_VD: weights of the heads.
        of_hidden: compute the gradients by the states, `(N, D)` per codebook, in the dtype of products.
        of_weights: compute those by the weights, in their dtype.
    """
    fast = computed_in(dtype, hidden_ND.device)
    exact = torch.promote_types(dtype, torch.float32)
    hidden_ND = hidden_ND.to(dtype).to(fast)
    chunk = rows_at_once(len(weights_VD[0]), hidden_ND.device)
    sums, correct, grads_KND, grads_VD = [], [], [], []
    with without_autocast(hidden_ND.device):
        for labels_N, weight_VD in zip(labels_KN, weights_VD, strict=True):
            rounded_VD = weight_VD.to(dtype).to(fast)
            grad_ND = torch.empty_like(hidden_ND) if of_hidden else None
            grad_VD = torch.zeros_like(weight_VD, dtype=exact) if of_weights else None
            sum_, hits = hidden_ND.new_zeros((), dtype=exact), labels_N.new_zeros(())
            for first in range(0, len(labels_N), chunk):
                part = slice(first, first + chunk)
                states_CD, labels_C1 = hidden_ND[part], labels_N[part, None]
                scored_C1, codes_C1 = labels_C1 != IGNORE, labels_C1.clamp(min=0)
                logits_CV = product(states_CD, rounded_VD).to(exact)
                best_C1 = logits_CV.argmax(dim=-1, keepdim=True)
                shares_CV = logits_CV.softmax(dim=-1)
                # logsumexp = best logit - log(its probability); the largest probability is never too small for a log.
                total_C1 = logits_CV.gather(-1, best_C1) - shares_CV.gather(-1, best_C1).log()
                sum_ += (total_C1 - logits_CV.gather(-1, codes_C1)).masked_fill(~scored_C1, 0.0).sum()
                hits += (best_C1 == labels_C1).sum()  # no code is IGNORE
                if grad_ND is None and grad_VD is None:
                    continue
                # Gradient of cross-entropy by logits: softmax, minus one at the label.
                grad_CV = shares_CV.scatter_add_(-1, codes_C1, torch.full_like(codes_C1, -1, dtype=exact))
                grad_CV = grad_CV.masked_fill_(~scored_C1, 0.0).to(fast)
                if grad_ND is not None:
                    torch.mm(grad_CV, rounded_VD, out=grad_ND[part])
                if grad_VD is not None:
                    grad_VD += grad_CV.T @ states_CD
            sums.append(sum_)
            correct.append(hits)
            grads_KND += [] if grad_ND is None else [grad_ND.to(dtype)]
            grads_VD += [] if grad_VD is None else [grad_VD.to(weight_VD.dtype)]
    return torch.stack(sums), torch.stack(correct), grads_KND, grads_VD
