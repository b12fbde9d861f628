"""Ending a run once its validation loss has not fallen for some validations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, but a run that it has ended stays ended when it is resumed, and `patience` is the config's.

    Lightning's own trains on from such a checkpoint, and takes the patience from there, so that a larger one would be
    ignored. Here a larger one lets the run go on, as does leaving the callback out.
    """

    def has_ended(self, state: Mapping[str, Any]) -> bool:
        """Whether a run is over whose checkpoint has this state of the callback, under the patience that it has now."""
        reason = EarlyStoppingReason(state["stopping_reason"])
        if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return int(state["wait_count"]) >= self.patience
        return reason is not EarlyStoppingReason.NOT_STOPPED

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        if not self.has_ended(state_dict):
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            self.stopping_reason_message = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            # Lightning looks at it before the first batch, and ends the run as it does otherwise.
            trainer.should_stop = True
