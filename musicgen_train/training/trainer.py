"""Lightning's trainer for a run: its strategy and devices from the config, its callbacks in the order they need."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig, OmegaConf

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
from musicgen_train.training.settings import RunSettings
from musicgen_train.training.weights.starting import Start

BEST = "best"
"""The callback of the config whose checkpoint `export.weights=best` exports."""

Callbacks = Mapping[str, lightning.Callback]


def make_callbacks(cfg: DictConfig) -> Callbacks:
    """The callbacks of the config under their names there; those that are null are left out."""
    return {str(name): instantiate(config) for name, config in cfg.callbacks.items() if config is not None}


def require_best(callbacks: Callbacks, data: LatentDataModule) -> None:
    """See that there will be a best checkpoint to export.

    Raises:
        ValueError: nothing is validated, or nothing keeps the best.
    """
    if data.validation_clips is None:
        raise ValueError("export.weights=best needs a validation split, and data.validation_clips above 0")
    best = callbacks.get(BEST)
    if not isinstance(best, ModelCheckpoint) or best.monitor is None or best.save_top_k == 0:
        raise ValueError(
            "export.weights=best exports what callbacks.best has kept, and there is no such callback that watches a "
            "metric; leave it in, or use export.weights=last"
        )


def require_whole_weights(cfg: DictConfig, callbacks: Callbacks) -> None:
    """Refuse what needs all weights on each device, where the strategy divides them.

    Raises:
        ValueError: an adapter or an average under FSDP.
    """
    averages = any(isinstance(callback, WeightAveraging) for callback in callbacks.values())
    if shards_weights(cfg.trainer.strategy) and (averages or cfg.get("adapter")):
        what = "an adapter" if cfg.get("adapter") else "callbacks=ema"
        raise ValueError(f"{what} needs whole weights on each device, which trainer=fsdp divides; use trainer=ddp")


def is_over(callbacks: Callbacks, checkpoint: Mapping[str, Any], max_steps: int) -> bool:
    """Whether the run of a checkpoint has no step left: all are made, or it was stopped early and would be again.

    Args:
        callbacks: of the config.
        checkpoint: see `checkpoint_files.read_plain`.
        max_steps: of the config.
    """
    states = checkpoint.get("callbacks", {})
    stopped = (
        callback.has_ended(states[callback.state_key])
        for callback in callbacks.values()
        if isinstance(callback, EarlyStopping) and callback.state_key in states
    )
    return int(checkpoint["global_step"]) >= max_steps or any(stopped)


def make_trainer(
    cfg: DictConfig,
    settings: RunSettings,
    start: Start,
    data: LatentDataModule,
    configured: Callbacks,
    resumed_step: int | None,
) -> lightning.Trainer:
    """Lightning's trainer, with the callbacks and loggers that every run has before those of the config.

    Args:
        cfg: of the run.
        settings: the same, read.
        start: what samples are made with.
        data: decides on micro-batches and on whether there is validation.
        configured: see `make_callbacks`; none that `needs_validation` where there is none.
        resumed_step: the step from which the run goes on; None for a new one.
    """
    callbacks = _in_order(list(configured.values()), settings, start, data)
    arguments: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    if data.validation_clips is None:
        arguments["limit_val_batches"] = 0
    names = columns(data.manifest.num_codebooks, data.validation_losses.values())
    metrics = MetricsFile(settings.output, names, resumed_step)
    return instantiate(
        arguments,
        callbacks=callbacks,
        logger=[metrics, *(make_logger(logger, settings.output) for logger in configured_loggers(cfg))],
        plugins=[AtomicCheckpointIO(ranks_wait=world_size(cfg) > 1)],
        # Lightning would add one of its own where there is none.
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
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
        _convert_="all",
    )


def _in_order(
    configured: list[lightning.Callback], settings: RunSettings, start: Start, data: LatentDataModule
) -> list[lightning.Callback]:
    # Saving comes first: it is no part of the time that a step takes, and what others do at the end comes after it.
    callbacks: list[lightning.Callback] = [each for each in configured if isinstance(each, LastCheckpoint)]
    # An average is brought up to date before it is sampled.
    callbacks += [each for each in configured if isinstance(each, WeightAveraging)]
    callbacks += [Speed(), MicroBatchPosition(data.accumulate), StartRecord(settings.output)]
    if settings.samples.every and settings.samples.prompts:
        folder = settings.output / SAMPLES_FOLDER
        callbacks.append(SamplePrompts(settings.samples, start.composite, start.processor, folder))
    return callbacks + [each for each in configured if each not in callbacks]


def configured_loggers(cfg: DictConfig) -> list[DictConfig]:
    """The loggers of the config but those that are null."""
    return [logger for logger in cfg.logger.values() if logger is not None]


def shards_weights(strategy: Any) -> bool:
    """Whether the strategy of the config divides the weights among devices."""
    return OmegaConf.is_dict(strategy) and issubclass(get_class(strategy["_target_"]), ModelParallelStrategy)


def world_size(cfg: DictConfig) -> int:
    """How many devices train, over all nodes."""
    accelerator, devices = cfg.trainer.accelerator, cfg.trainer.devices
    if OmegaConf.is_list(devices):
        per_node = len(devices)
    elif str(devices) in ("auto", "-1"):
        per_node = max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
    else:
        per_node = int(devices)
    return per_node * int(cfg.trainer.num_nodes)


def needs_validation(callback: lightning.Callback) -> bool:
    """Whether a callback watches a number that only validation gives."""
    watches = isinstance(callback, ModelCheckpoint | LightningEarlyStopping)
    return watches and str(callback.monitor).startswith("val/")  # type: ignore[attr-defined]


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
    """Turn off what Lightning says that does not hold here, or that the run says itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        # Few processes are enough: reading a clip takes microseconds, and waiting is measured (data_wait).
        ".*does not have many workers which may be a bottleneck.*",
        # A resumed run goes on in its own folder.
        "Checkpoint directory .* exists and is not empty.*",
        # Short runs, such as tries, have fewer steps than lie between two rows of metrics.csv.
        ".*is smaller than the logging interval.*",
        # Sums and counts were added up over ranks before.
        "It is recommended to use .*sync_dist=True.*",
        # Lightning's own use of torch.
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        # With 16-mixed, a first step that overflows is left out and the schedule goes on.
        "Detected call of .lr_scheduler.step.. before .optimizer.step...*",
        # The CPU was asked for.
        "GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message)
