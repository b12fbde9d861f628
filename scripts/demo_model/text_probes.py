"""Linear probes that read properties of the music off the states of a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from musicgen_train.demo.caption_reading import MULTIPLE, SINGLE, Facts
from musicgen_train.models.t5 import T5EncoderModel

_CONFLICT = -100
_SLOTS = [(kind, value) for kind, values in MULTIPLE.items() for value in values]


class Probes(nn.Module):
    """Linear classifiers on the mean state of a text, one for each property.

    Args:
        width: D, the width of the states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Class 0 of each property stands for a text that leaves it open.
        self._sizes = [1 + len(values) for values in SINGLE.values()]
        self.linear = nn.Linear(width, sum(self._sizes) + len(_SLOTS))

    def forward(self, mean_BD: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Logits for means `(B, D)`: `(B, 1 + values)` for each property of `SINGLE`; `(B, slots)` for `MULTIPLE`."""
        *single, multiple = self.linear(mean_BD).split([*self._sizes, len(_SLOTS)], dim=-1)
        return single, multiple

    def loss(self, mean_BD: torch.Tensor, classes_BK: torch.Tensor, slots_BS: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats, summed over all properties and averaged over texts; a scalar."""
        single, multiple = self(mean_BD)
        total = F.binary_cross_entropy_with_logits(multiple, slots_BS, reduction="sum")
        for logits, classes_B in zip(single, classes_BK.unbind(-1), strict=True):
            total = total + F.cross_entropy(logits, classes_B, ignore_index=_CONFLICT, reduction="sum")
        return total / len(mean_BD)

    @torch.no_grad()
    def read(self, mean_BD: torch.Tensor) -> list[Facts]:
        """Return the facts that the probes find in each text."""
        single, multiple = self(mean_BD)
        texts: list[set[tuple[str, str]]] = [set() for _ in mean_BD]
        for (kind, values), logits in zip(SINGLE.items(), single, strict=True):
            for said, place in zip(texts, logits.argmax(-1).tolist(), strict=True):
                if place:
                    said.add((kind, values[place - 1]))
        for row, slot in (multiple > 0).nonzero().tolist():
            texts[row].add(_SLOTS[slot])
        return [frozenset(said) for said in texts]


def probe_targets(texts: Sequence[Facts]) -> tuple[torch.Tensor, torch.Tensor]:
    """The probes' targets for texts that say these facts.

    Returns:
        int64 `(B, properties of SINGLE)`: 0 where nothing is said, from 1 on a value, -100 (ignored by the loss)
        where a text says two values that exclude each other; float32 `(B, slots)`: 1 for what is said of `MULTIPLE`.
    """
    classes = torch.zeros(len(texts), len(SINGLE), dtype=torch.int64)
    slots = torch.zeros(len(texts), len(_SLOTS))
    for row, facts in enumerate(texts):
        for column, (kind, values) in enumerate(SINGLE.items()):
            said = [place for place, value in enumerate(values, start=1) if (kind, value) in facts]
            classes[row, column] = said[0] if len(said) == 1 else _CONFLICT if said else 0
        for column, slot in enumerate(_SLOTS):
            slots[row, column] = float(slot in facts)
    return classes, slots


def mean_states(
    encoder: T5EncoderModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The mean of each text's states, `(B, D)`; with a generator, over a random share of them, at least one."""
    states = encoder(input_ids, attention_mask).last_hidden_state
    weights = attention_mask.float()
    if generator is not None:
        shares = torch.rand(len(weights), 1, generator=generator)
        chances = torch.rand(weights.shape, generator=generator) * weights
        # Comparing with the largest chance at most keeps at least one token.
        weights = weights * (chances >= torch.minimum(1 - shares, chances.amax(-1, keepdim=True)))
    return torch.einsum("bld,bl->bd", states, weights / weights.sum(-1, keepdim=True))
