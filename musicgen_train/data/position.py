"""Corrects Lightning's count of micro-batches when a run is resumed with more or fewer of them per step."""

from __future__ import annotations

from typing import Any

import lightning


class MicroBatchPosition(lightning.Callback):
    """Counts the micro-batches of a resumed run anew.

    Lightning continues at the number of the last micro-batch. With another number of devices or another micro-batch
    size an optimizer step has more or fewer of them, and the same place in the run has another number.

    Args:
        accumulate: micro-batches per optimizer step of this run, on each device.
    """

    def __init__(self, accumulate: int) -> None:
        self._accumulate = accumulate

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        # Checkpoints are saved between steps, so this is a whole number of micro-batches, whatever their size.
        made = checkpoint["global_step"] * self._accumulate
        for count in (progress["current"], progress["total"]):
            behind = {name: count["ready"] - value for name, value in count.items()}
            count.update({name: made - missing for name, missing in behind.items()})
