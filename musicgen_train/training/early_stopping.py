"""Early stopping: ending a run whose validation loss no longer falls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class EarlyStopping(LightningEarlyStopping):
    """Lightning's early stopping, except that a stopped run stays stopped when it is resumed.

    Lightning's own would train on from the checkpoint of a stopped run. It also takes `patience` from the checkpoint,
    where this takes it from the config. So a larger patience lets the run go on, as does leaving out the callback or
    the threshold that stopped it.
    """

    def has_ended(self, state: Mapping[str, Any]) -> bool:
        """Returns True if a run whose checkpoint holds this state stays stopped under the settings of now."""
        holds = {
            EarlyStoppingReason.NOT_STOPPED: False,
            EarlyStoppingReason.PATIENCE_EXHAUSTED: int(state["wait_count"]) >= self.patience,
            EarlyStoppingReason.NON_FINITE_METRIC: self.check_finite,
            EarlyStoppingReason.STOPPING_THRESHOLD: self.stopping_threshold is not None,
            EarlyStoppingReason.DIVERGENCE_THRESHOLD: self.divergence_threshold is not None,
        }
        return holds[EarlyStoppingReason(state["stopping_reason"])]

    @property
    def way_on(self) -> str:
        """The settings that let a stopped run go on."""
        if self.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return "resume=auto and a larger callbacks.early_stopping.patience"
        if self.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC:
            return "callbacks=default and resume= with an earlier checkpoint, such as best.ckpt"
        return "resume=auto and callbacks=default"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        if not self.has_ended(state_dict):
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            self.stopping_reason_message = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            # Lightning reads it before the first batch, and ends the run as usual.
            trainer.should_stop = True
