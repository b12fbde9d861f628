"""The checkpoint that a run goes on from: when it is saved, and stopping once it is."""

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
    """Keeps `last.ckpt`, and the one before it as `previous.ckpt`; saves and stops the run when it is asked to.

    It saves between optimizer steps, when everything of the step is done: its row of metrics, its validation, its
    samples, averages of weights. So what is resumed has all of that behind it, and nothing of it is done twice or left
    out. (Lightning's `ModelCheckpoint` saves while a step's callbacks are still running.) For the same reason, and
    since other callbacks may change the weights when training ends, it has to be the first of the callbacks.

    Args:
        dirpath: the folder of the checkpoints.
        every_n_train_steps: optimizer steps between two saves; one more is made at the end.
        keep_previous: keep the one before, in case the newest is damaged on the disk.
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
        # Resumed from a file elsewhere, the run has none of its own yet.
        self._saved_step = trainer.global_step if self._path.exists() else 0
        # Lightning has set its own by now, and sets back what was there before when it is done.
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
        # Asked during the last step: what comes after it takes a while, too, and a resumed run does it.
        if self._ranks_agree(trainer):
            self._stop(trainer)
        self._signals.let_go()

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Describe the moment between two batches as the end of the first, which is what Lightning can resume from.

        It has counted the batch that is about to begin as begun, the one that is done as done, and the step as logged.
        When it resumes, it completes the last two itself, and then goes on without validating again.
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
        """Let a run whose folder was moved know its other checkpoints, such as the best so far, in their new place."""
        here = self._path.parent
        before = checkpoint["callbacks"].get(self.state_key, {}).get("folder")
        if before is None or Path(str(trainer.ckpt_path)).absolute().parent != here:
            return
        checkpoint["callbacks"] = {
            name: _moved(state, before, str(here)) for name, state in checkpoint["callbacks"].items()
        }

    def _save(self, trainer: lightning.Trainer) -> None:
        # What belongs to the steps before has to be on the disk before this says that they are done.
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
        """Whether any rank was asked to stop.

        Raises:
            OSError: any rank could not save.
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
    """Plain values with another folder in their paths."""
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
