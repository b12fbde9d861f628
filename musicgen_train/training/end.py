"""The end of a run: the last validation, the export, and what a run that was killed there still has to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import WeightAveraging

from musicgen_train.data.datamodule import LatentDataModule
from musicgen_train.files import read_json
from musicgen_train.training.cards import adapter_card, model_card
from musicgen_train.training.checkpoints.reading import load_plain
from musicgen_train.training.early_stopping import EarlyStopping
from musicgen_train.training.export import export_composite
from musicgen_train.training.logs.console import say
from musicgen_train.training.logs.metrics_file import numbers_at
from musicgen_train.training.logs.speed import peak_memory_mb
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.run_folder import (
    ADAPTER_FOLDER,
    COMPOSITE_FOLDER,
    METRICS_NAME,
    OUTDATED_NAME,
    PROVENANCE_NAME,
    RUN_CONFIG_NAME,
)
from musicgen_train.training.samples import SamplePrompts
from musicgen_train.training.settings import Callbacks, RunSettings
from musicgen_train.training.trainer import best_checkpoint
from musicgen_train.training.weights.adapter_files import save_adapter
from musicgen_train.training.weights.adapters import AdapterRecord
from musicgen_train.training.weights.sharding import ShardedTraining, whole_composite
from musicgen_train.training.weights.starting import Start

# Lightning ends every reason for stopping with it.
_SUFFIX = " Signaling Trainer to stop."


def end_again(trainer: lightning.Trainer, module: MusicgenTraining) -> None:
    """Call the hooks that a run missed which was killed after its last step: last samples, averaged weights.

    Lightning does nothing if there is no step left to make.
    """
    module.to(trainer.strategy.root_device)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging | SamplePrompts):
            callback.on_train_end(trainer, module)


def say_if_stopped_early(trainer: lightning.Trainer, max_steps: int) -> None:
    """Print why a run ended before its last step, and what lets it go on."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        reason = callback.stopping_reason_message if isinstance(callback, LightningEarlyStopping) else None
        if reason is not None and trainer.global_step < max_steps:
            way_on = callback.way_on if isinstance(callback, EarlyStopping) else "resume=auto"
            say(
                f"stopped early, after step {trainer.global_step}: {reason.removesuffix(_SUFFIX)} To train on, "
                f"give the same command with {way_on}"
            )


def validate_at_the_end(
    trainer: lightning.Trainer, module: MusicgenTraining, data: LatentDataModule, settings: RunSettings
) -> None:
    """Validate the final weights, unless the last step was followed by a validation."""
    if data.validation_clips is not None and trainer.global_step % settings.steps_between_validations:
        trainer.validate(module, datamodule=data, verbose=False)


def export(
    trainer: lightning.Trainer,
    settings: RunSettings,
    start: Start,
    data: LatentDataModule,
    adapter: AdapterRecord | None,
    callbacks: Callbacks,
) -> None:
    """Write the composite with the weights that were asked for, and print where everything is."""
    # If the weights are divided among devices, all ranks have to take part in gathering them.
    last = trainer.strategy.lightning_module_state_dict()
    best = best_checkpoint(callbacks) if settings.export.weights == "best" else None
    if trainer.is_global_zero:
        peak = peak_memory_mb(trainer.strategy.root_device)
        trained, step = (last, trainer.global_step) if best is None else _weights_of(best)
        folder = settings.output / COMPOSITE_FOLDER
        probe = data.probe(frames=50)
        composite = start.composite
        if isinstance(trainer.lightning_module, ShardedTraining):
            composite = whole_composite(composite, last, torch.device("cpu"))
        origin = read_json(settings.output / PROVENANCE_NAME)
        card = _card(settings.output, origin, step)
        export_composite(composite.cpu(), start.processor, folder, batch=probe, trained=trained, card=card)
        (settings.output / OUTDATED_NAME).unlink(missing_ok=True)
        if adapter is not None:
            adapters_card = adapter_card(adapter, origin["base"], card)
            save_adapter(start.composite, adapter, settings.output / ADAPTER_FOLDER, adapters_card)
            say(f"the adapter alone, which belongs to {adapter.base}: {settings.output / ADAPTER_FOLDER}")
        say(f"done: {trainer.global_step} steps; peak memory {peak:.0f} MiB; numbers and samples in {settings.output}")
        say(f"the trained model, read back and compared: {folder}")
    trainer.strategy.barrier("export")


def _card(run: Path, origin: dict[str, Any], step: int) -> str:
    """The model card for the weights of a step."""
    config = (run / RUN_CONFIG_NAME).read_text(encoding="utf-8")
    metrics = {name: value for name, value in numbers_at(run / METRICS_NAME, step).items() if "/" in name}
    return model_card(origin, config, metrics, step)


def _weights_of(checkpoint: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The state of decoder and projection in a checkpoint, and its step."""
    content = load_plain(checkpoint, map_location="cpu")
    return dict(content["state_dict"]), int(content["global_step"])
