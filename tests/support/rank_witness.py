"""A callback that tells what each rank of a run has drawn, for a test to compare."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.nn import functional


class RankWitness(lightning.Callback):
    """Writes `rank-N.json` into a folder: the clips and the dropout masks of each step, and the weights.

    Args:
        folder: where to.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._masks: list[str] = []
        self._steps: list[dict[str, Any]] = []
        self._weights: dict[str, str] = {}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        # Before DDP sends the weights of the first rank to all others.
        self._weights["made"] = _digest(pl_module)
        dropout = functional.dropout

        def watched(states: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
            dropped = dropout(states, p, training, inplace)
            if p and training:
                self._masks.append("".join(str(int(kept)) for kept in (dropped != 0).flatten()))
            return dropped

        functional.dropout = watched

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps.append({"clips": batch.clips, "masks": self._masks, "drawn": float(torch.rand(()))})
        self._masks = []

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._weights["trained"] = _digest(pl_module)
        content = {"steps": self._steps, "weights": self._weights}
        (self._folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(content))


def _digest(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
