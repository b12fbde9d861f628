"""A callback such as users write, that draws at random while a run trains."""

from __future__ import annotations

import random
from typing import Any

import lightning
import numpy as np
import torch


class Drawn(lightning.Callback):
    """Draws from every generator there is in every micro-batch, and keeps what it has drawn in the checkpoint."""

    def __init__(self) -> None:
        self.drawn: list[list[float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.drawn.append([random.random(), float(np.random.rand()), float(torch.rand(1))])

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.drawn = state_dict["drawn"]
