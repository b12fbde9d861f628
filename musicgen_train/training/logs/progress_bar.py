"""The progress bar of a run."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, but counting all steps of a resumed run, not only those since it was resumed."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        bar, batches = self.train_progress_bar, trainer.accumulate_grad_batches
        bar.total = trainer.max_steps * batches
        # tqdm computes the rate and the time left from what comes after `initial`.
        bar.n = bar.initial = trainer.global_step * batches
        bar.set_description("Training")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.train_progress_bar.total is None:
            # A run that resumes in the middle of an epoch gets no call of on_train_epoch_start.
            self.on_train_epoch_start(trainer)
        of_run = trainer.fit_loop.epoch_loop.total_batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, of_run)
