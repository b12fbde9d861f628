"""The checkpoint that a run goes on from."""

from __future__ import annotations

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint, `last.ckpt`, and makes sure that it is of the run's last step once that is done.

    Args:
        dirpath: the folder of the checkpoints.
        every_n_train_steps: optimizer steps between two saves.
    """

    def __init__(self, dirpath: str | Path, every_n_train_steps: int) -> None:
        super().__init__(
            dirpath=dirpath, filename="last", every_n_train_steps=every_n_train_steps, enable_version_counter=False
        )

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
