"""The checkpoint that a run is resumed from: when it is saved, and stopping the run after it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.rank_zero import rank_zero_only

from musicgen_train.training.checkpoints.reading import keep_also_as
from musicgen_train.training.checkpoints.stop_signals import RunStopped, StopSignals
from musicgen_train.training.checkpoints.writing import AtomicCheckpointIO
from musicgen_train.training.run_folder import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT


class LastCheckpoint(lightning.Callback):
    """Saves `last.ckpt`, and keeps the one before it as `previous.ckpt`; when asked to stop, saves and stops the run.

    It saves between two optimizer steps, when everything that belongs to the first is done: its row of metrics, its
    validation, its samples, the average of weights. So a resumed run does none of that twice and leaves none of it out.
    (Lightning's `ModelCheckpoint` saves while a step's callbacks are still running.) For this reason, and because other
    callbacks may change the weights when training ends, it has to be the first of the callbacks.

    Args:
        dirpath: the folder of the checkpoints.
        every_n_train_steps: optimizer steps between two saves; one more is made at the end.
        keep_previous: keep the checkpoint before the last, in case the last is damaged on the disk.
    """

    def __init__(self, dirpath: str | Path, every_n_train_steps: int, keep_previous: bool = True) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"callbacks.last.every_n_train_steps is {every_n_train_steps}; it must be 1 or more")
        self._path = Path(dirpath).expanduser().absolute() / LAST_CHECKPOINT
        self._every = every_n_train_steps
        self._keep_previous = keep_previous
        self._signals = StopSignals()
        self._saved_step = 0
        self._between_steps = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # A run that was resumed from a file elsewhere has no checkpoint of its own yet.
        self._saved_step = trainer.global_step if self._path.exists() else 0
        # By now Lightning has set its own handlers; at its end it restores those that were there before.
        self._signals.listen()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop = self._ranks_agree(trainer)
        if trainer.global_step > self._saved_step and (stop or trainer.global_step % self._every == 0):
            self._between_steps = True
            try:
                self._save(trainer)
            finally:
                self._between_steps = False
        if stop:
            self._stop(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.global_step > self._saved_step:
            self._save(trainer)
        # If a signal came during the last step, stop here: the rest takes a while, and a resumed run does it.
        if self._ranks_agree(trainer):
            self._stop(trainer)
        self._signals.let_go()

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters back to the end of the previous batch, which is where it can resume.

        It has already counted the next batch as begun, the previous one as completed, and its step as logged. On
        resuming, Lightning counts the last two again itself, and goes on without a second validation.
        """
        if not self._between_steps:
            return
        epoch = checkpoint["loops"]["fit_loop"]
        progress = epoch["epoch_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):
            count["ready"] -= 1
            count["completed"] -= 1
        progress["is_last_batch"] = False
        epoch["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def state_dict(self) -> dict[str, Any]:
        return {"folder": str(self._path.parent)}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """If the run's folder was moved, correct the paths of its other checkpoints, such as that of the best."""
        here = self._path.parent
        before = checkpoint["callbacks"].get(self.state_key, {}).get("folder")
        if before is None or Path(str(trainer.ckpt_path)).absolute().parent != here:
            return
        checkpoint["callbacks"] = {
            name: _moved(state, before, str(here)) for name, state in checkpoint["callbacks"].items()
        }

    def _save(self, trainer: lightning.Trainer) -> None:
        # The rows of the steps so far have to be on the disk before a checkpoint says that these are done.
        for logger in trainer.loggers:
            logger.save()
        if self._keep_previous and trainer.is_global_zero:
            keep_also_as(self._path, PREVIOUS_CHECKPOINT)
        trainer.save_checkpoint(self._path)
        self._saved_step = trainer.global_step
        self._require_saved(trainer)

    def _stop(self, trainer: lightning.Trainer) -> None:
        _say_how_to_go_on(self._signals.received, trainer.global_step, self._path)
        raise RunStopped(trainer.global_rank)

    def _ranks_agree(self, trainer: lightning.Trainer) -> bool:
        """Returns True, on all ranks, if any of them was asked to stop.

        Raises:
            OSError: one of them could not save.
        """
        one = self._signals.received is not None or _failure(trainer) is not None
        if not trainer.strategy.reduce_boolean_decision(one, all=False):
            return False
        self._require_saved(trainer)
        return True

    def _require_saved(self, trainer: lightning.Trainer) -> None:
        failure = _failure(trainer)
        if trainer.strategy.reduce_boolean_decision(failure is not None, all=False):
            raise failure or OSError("another rank could not save a checkpoint; its message says why")


def _moved(content: Any, before: str, now: str) -> Any:
    """Plain values with another folder in the paths that they hold."""
    if isinstance(content, dict):
        return {_moved(key, before, now): _moved(value, before, now) for key, value in content.items()}
    if isinstance(content, list):
        return [_moved(value, before, now) for value in content]
    if isinstance(content, str) and (content == before or content.startswith(before + os.sep)):
        return now + content[len(before) :]
    return content


def _failure(trainer: lightning.Trainer) -> OSError | None:
    plugin = trainer.strategy.checkpoint_io
    return plugin.failure if isinstance(plugin, AtomicCheckpointIO) else None


@rank_zero_only
def _say_how_to_go_on(received: signal.Signals | None, step: int, checkpoint: Path) -> None:
    why = "another rank" if received is None else received.name
    where = f"after step {step}, saved in {checkpoint}" if step else "before the first step"
    print(f"stopped by {why} {where}. To go on, give the same command again with resume=auto", flush=True)
