"""Lightning's trainer for a run, with its callbacks in the order that they need."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from musicgen_train.data.datamodule import LatentDataModule
from musicgen_train.data.position import MicroBatchPosition
from musicgen_train.training.checkpoints.last_checkpoint import LastCheckpoint
from musicgen_train.training.checkpoints.writing import AtomicCheckpointIO
from musicgen_train.training.early_stopping import EarlyStopping
from musicgen_train.training.logs.loggers import make_logger
from musicgen_train.training.logs.metrics_file import MetricsFile, columns
from musicgen_train.training.logs.origin import StartRecord
from musicgen_train.training.logs.speed import Speed
from musicgen_train.training.run_folder import SAMPLES_FOLDER
from musicgen_train.training.samples import SamplePrompts
from musicgen_train.training.settings import Callbacks, RunSettings
from musicgen_train.training.weights.starting import Start

BEST = "best"
"""The callback of the config whose checkpoint `export.weights=best` exports."""


def callbacks_for(settings: RunSettings, data: LatentDataModule) -> Callbacks:
    """The callbacks of the config that have something to do with these data.

    Raises:
        ValueError: the best weights are to be exported, and nothing is validated or nothing keeps the best.
    """
    if settings.export.weights == "best":
        _require_best(settings.callbacks, data)
    if data.validation_clips is not None:
        return settings.callbacks
    return {name: callback for name, callback in settings.callbacks.items() if not _needs_validation(callback)}


def require_whole_weights(settings: RunSettings) -> None:
    """Refuse what needs all weights on each device, where the strategy divides them.

    Raises:
        ValueError: the run has an adapter or an average of the weights, and a strategy such as FSDP.
    """
    averages = any(isinstance(callback, WeightAveraging) for callback in settings.callbacks.values())
    if settings.shards_weights and (averages or settings.adapter):
        what = "an adapter" if settings.adapter else "callbacks=ema"
        raise ValueError(f"{what} needs whole weights on each device, which trainer=fsdp divides; use trainer=ddp")


def is_over(callbacks: Callbacks, checkpoint: Mapping[str, Any], max_steps: int) -> bool:
    """Returns True if a run has no step left: all are made, or it was stopped early and would be stopped again.

    Args:
        callbacks: those of the config.
        checkpoint: its content; see `checkpoints.reading.read_plain`.
        max_steps: optimizer steps of the whole run.
    """
    states = checkpoint.get("callbacks", {})
    stopped = (
        callback.has_ended(states[callback.state_key])
        for callback in callbacks.values()
        if isinstance(callback, EarlyStopping) and callback.state_key in states
    )
    return int(checkpoint["global_step"]) >= max_steps or any(stopped)


def make_trainer(
    settings: RunSettings, start: Start, data: LatentDataModule, callbacks: Callbacks, resumed_step: int | None
) -> lightning.Trainer:
    """Lightning's trainer, with the callbacks and loggers that every run has before those of the config.

    Args:
        settings: those of the run.
        start: what samples are made with.
        data: decides on micro-batches and on whether there is validation.
        callbacks: see `callbacks_for`.
        resumed_step: the step at which the run is resumed; None for a new one.
    """
    ordered = _in_order(list(callbacks.values()), settings, start, data)
    names = columns(data.manifest.num_codebooks, data.validation_losses.values())
    metrics = MetricsFile(settings.output, names, resumed_step)
    return settings.make_trainer(
        callbacks=ordered,
        logger=[metrics, *(make_logger(logger, settings.output) for logger in settings.loggers)],
        plugins=[AtomicCheckpointIO(ranks_wait=settings.world_size > 1)],
        # Lightning would add one of its own where there is none.
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in ordered),
        accumulate_grad_batches=data.accumulate,
        # The whole run is one epoch of the loader: passes over the data begin and end within it.
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=settings.steps_between_validations * data.accumulate,
        # The checks before fit look at more than it would.
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=str(settings.output),
        enable_model_summary=False,
        **({"limit_val_batches": 0} if data.validation_clips is None else {}),
    )


def _in_order(
    configured: list[lightning.Callback], settings: RunSettings, start: Start, data: LatentDataModule
) -> list[lightning.Callback]:
    # Saving comes first: its time is no part of a step's, and it has to save before others change things at the end.
    callbacks: list[lightning.Callback] = [each for each in configured if isinstance(each, LastCheckpoint)]
    # An average is brought up to date before it is sampled.
    callbacks += [each for each in configured if isinstance(each, WeightAveraging)]
    callbacks += [Speed(), MicroBatchPosition(data.accumulate), StartRecord(settings.output)]
    if settings.samples.every and settings.samples.prompts:
        folder = settings.output / SAMPLES_FOLDER
        callbacks.append(SamplePrompts(settings.samples, start.composite, start.processor, folder))
    return callbacks + [each for each in configured if each not in callbacks]


def _needs_validation(callback: lightning.Callback) -> bool:
    """Returns True if a callback watches a number that only validation gives."""
    watches = isinstance(callback, ModelCheckpoint | LightningEarlyStopping)
    return watches and str(callback.monitor).startswith("val/")  # type: ignore[attr-defined]


def _require_best(callbacks: Callbacks, data: LatentDataModule) -> None:
    if data.validation_clips is None:
        raise ValueError("export.weights=best needs a validation split, and data.validation_clips above 0")
    best = callbacks.get(BEST)
    if not isinstance(best, ModelCheckpoint) or best.monitor is None or best.save_top_k == 0:
        raise ValueError(
            "export.weights=best exports what callbacks.best has kept, and there is no such callback that watches a "
            "metric; leave it in, or use export.weights=last"
        )


def best_checkpoint(callbacks: Callbacks) -> Path:
    """The checkpoint that `callbacks.best` has kept.

    Raises:
        ValueError: it has kept none, as where it was left out until now.
    """
    best = callbacks[BEST]
    assert isinstance(best, ModelCheckpoint)
    if not best.best_model_path:
        raise ValueError(
            "export.weights=best: callbacks.best has kept no checkpoint; the same command with resume=auto "
            "export.weights=last exports the last one"
        )
    return Path(best.best_model_path)


def quiet_lightning() -> None:
    """Silence messages of Lightning's that do not hold here, or that the run prints itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        # A few workers are enough: reading a clip takes microseconds, and the wait for data is measured (data_wait).
        ".*does not have many workers which may be a bottleneck.*",
        # A resumed run saves into its own folder.
        "Checkpoint directory .* exists and is not empty.*",
        # A short try may have fewer steps than lie between two rows of metrics.csv.
        ".*is smaller than the logging interval.*",
        # The module adds sums and counts up over ranks itself.
        "It is recommended to use .*sync_dist=True.*",
        # It is about Lightning's own code.
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        # With 16-mixed, a first step that overflows is left out, and the schedule moves on all the same.
        "Detected call of .lr_scheduler.step.. before .optimizer.step...*",
        # The CPU was asked for.
        "GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message)
