"""A training run, from its config to a composite that makes music."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from hydra.utils import instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from musicgen_train.data.datamodule import LatentDataModule
from musicgen_train.files import write_atomically
from musicgen_train.models.layers import without_cudnn_attention
from musicgen_train.training.checkpoints.reading import read_plain
from musicgen_train.training.checkpoints.resume_checks import require_same_run
from musicgen_train.training.checks import run_checks
from musicgen_train.training.end import end_again, export, say_if_stopped_early, validate_at_the_end
from musicgen_train.training.host_memory import keep_freed_memory
from musicgen_train.training.logs.console import say
from musicgen_train.training.logs.loggers import close_loggers, require_account
from musicgen_train.training.logs.origin import provenance, write_provenance
from musicgen_train.training.memory import MemoryWatch, ModelMemory, Step
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.precision import resolve_precision
from musicgen_train.training.run_folder import (
    CHECKS_FOLDER,
    COMPOSITE_FOLDER,
    CONFIG_NAME,
    Opened,
    make_ready,
    open_run,
)
from musicgen_train.training.settings import RunSettings, read_settings
from musicgen_train.training.step.optimizers import require_available
from musicgen_train.training.trainer import (
    configured_loggers,
    is_over,
    make_callbacks,
    make_trainer,
    needs_validation,
    quiet_lightning,
    require_best,
    require_whole_weights,
    shards_weights,
    world_size,
)
from musicgen_train.training.weights.adapters import AdapterRecord, keep_only_adapter_in_state
from musicgen_train.training.weights.ema import EMA
from musicgen_train.training.weights.sharding import ShardedTraining
from musicgen_train.training.weights.starting import Start, load_start
from musicgen_train.training.weights.trainable import adapter_entry, choose_parameters

# Of clips; each is worth a plan of cuDNN's attention, which is then used for many steps.
_MOST_PLANNED_LENGTHS = 64


@dataclass
class Run:
    """What a run made, for who calls it from Python."""

    composite: Path
    module: MusicgenTraining
    data: LatentDataModule
    trainer: lightning.Trainer


def run(cfg: DictConfig) -> Run:
    """Train as `configs/train.yaml` says: check, fit, export."""
    settings = read_settings(cfg)
    require_available(instantiate(cfg.optimizer))
    callbacks = make_callbacks(cfg)
    require_whole_weights(cfg, callbacks)
    require_account(configured_loggers(cfg))
    cfg.trainer.max_steps = settings.max_steps  # a whole number, also where 1e5 was given
    # Saved as it turned out on this machine, not as `auto`.
    cfg.trainer.precision = resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    quiet_lightning()
    data = LatentDataModule(
        settings.data, seed=settings.seed, total_steps=settings.max_steps, world_size=world_size(cfg)
    )
    if settings.export.weights == "best":
        require_best(callbacks, data)
    if data.validation_clips is None:
        callbacks = {name: callback for name, callback in callbacks.items() if not needs_validation(callback)}
    opened = open_run_of_rank(settings)
    checkpoint = opened.checkpoint
    content = None if checkpoint is None else read_plain(checkpoint)
    resumed_step = None if content is None else int(content["global_step"])
    over = content is not None and is_over(callbacks, content, settings.max_steps)
    start = load_start(
        settings.init_from, settings.encoders, settings.model, data.manifest, settings.data.parts[0].path, settings.seed
    )
    adapter = choose_parameters(
        start, settings.freezing, settings.adapter, init_from=settings.init_from, seed=settings.seed
    )
    if content is not None:
        require_same_run(checkpoint, content, start.composite.decoder.config, data)
    prepare_folder(settings.output, opened, goes_on_from=None if over else resumed_step)
    origin = provenance(data, init_from=settings.init_from, encoders=str(start.encoders), seed=settings.seed)
    write_records(cfg, origin, settings.output)
    module = make_module(cfg, settings, start, adapter)
    trainer = make_trainer(cfg, settings, start, data, callbacks, resumed_step)

    describe(settings, module, data, trainer)
    memory = watch_memory(cfg, settings, start, module, data, trainer, adapter)
    for line in memory.estimate() if memory else []:
        say(line)
    module.to(trainer.strategy.root_device)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    if settings.checks.enabled and checkpoint is None and trainer.is_global_zero:
        run_checks(settings.checks, module, start.composite, data, settings.output / CHECKS_FOLDER, say)
    if memory:
        memory.begin()
    with without_cudnn_attention(has_many_lengths(data)):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if resumed_step is not None and resumed_step >= settings.max_steps:
        end_again(trainer, module)
    for line in memory.report() if memory else []:
        say(line)
    say_if_stopped_early(trainer, settings.max_steps)
    validate_at_the_end(trainer, module, data, settings)
    export(trainer, settings, start, data, adapter, callbacks)
    close_loggers(trainer.loggers)
    return Run(settings.output / COMPOSITE_FOLDER, module, data, trainer)


def open_run_of_rank(settings: RunSettings) -> Opened:
    """See `run_folder.open_run`; the other ranks may come to a folder that the first has already made."""
    # Lightning keeps the rank there, read from what torchrun, SLURM or its own launcher has set.
    if getattr(rank_zero_only, "rank", 0) == 0 or settings.resume is not None:
        return open_run(settings.output, settings.resume)
    return Opened(None)


@rank_zero_only
def prepare_folder(output: Path, opened: Opened, goes_on_from: int | None) -> None:
    """Make the run's folder, and say what became of what is in it; see `run_folder.make_ready`."""
    for line in make_ready(output, opened, goes_on_from):
        say(line)


@rank_zero_only
def write_records(cfg: DictConfig, origin: dict[str, Any], output: Path) -> None:
    """Write what decides the run's numbers, before the first of them; the config last, which makes it a run."""
    write_provenance(output, origin)
    write_atomically(output / CONFIG_NAME, OmegaConf.to_yaml(cfg, resolve=True))


def make_module(
    cfg: DictConfig, settings: RunSettings, start: Start, adapter: AdapterRecord | None
) -> MusicgenTraining:
    """The module that is trained: the composite's own decoder and projection."""
    module_class = ShardedTraining if shards_weights(cfg.trainer.strategy) else MusicgenTraining
    module = module_class(
        start.composite.decoder,
        start.composite.enc_to_dec_proj,
        make_optimizer=instantiate(cfg.optimizer),
        schedule=settings.schedule,
        total_steps=settings.max_steps,
        seed=settings.seed,
        attend_to_padding=settings.model.attend_to_padding,
        description={"encoders": dataclasses.asdict(start.encoders), **adapter_entry(adapter)},
        health=settings.health,
    )
    if adapter is not None:
        keep_only_adapter_in_state(module)
    return module


def describe(
    settings: RunSettings, module: MusicgenTraining, data: LatentDataModule, trainer: lightning.Trainer
) -> None:
    """Print what is about to happen."""
    clips = data.train_clips
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    validation = 0 if data.validation_clips is None else len(data.validation_clips.frames)
    say(f"data: {len(clips.frames)} clips, {clips.seconds / 3600:.2f} h; {validation} to validate on")
    for line in data.describe_mix():
        say(line)
    passes = data.passes(settings.max_steps)
    say(
        f"steps: {settings.max_steps} of {settings.data.global_batch_size} clips = {trainer.world_size} device(s) x "
        f"{data.accumulate} x {data.micro_batch}; {passes:.1f} passes; {data.padding_share:.1%} padding"
    )
    say(
        f"model: {trainable:,} parameters to train, from {settings.init_from}, {trainer.precision} on "
        f"{trainer.strategy.root_device}"
    )


def has_many_lengths(data: LatentDataModule) -> bool:
    """Whether clips have so many lengths that planning cuDNN's attention for each is likely to cost more than it gains.

    (From torch's sources: no GPU was at hand to measure from how many lengths on that is so.)
    """
    return len(np.unique(data.train_clips.frames)) > _MOST_PLANNED_LENGTHS


def watch_memory(
    cfg: DictConfig,
    settings: RunSettings,
    start: Start,
    module: MusicgenTraining,
    data: LatentDataModule,
    trainer: lightning.Trainer,
    adapter: AdapterRecord | None,
) -> MemoryWatch | None:
    """The estimate of the run's memory; None where the weights are divided among devices, which it does not know."""
    if shards_weights(cfg.trainer.strategy):
        return None
    device = trainer.strategy.root_device
    averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]
    makes_audio = settings.checks.enabled or (settings.samples.every and settings.samples.prompts)
    memory = ModelMemory(
        module,
        module.decoder.config,
        instantiate(cfg.optimizer),
        device=device,
        averages=any(callback.is_on(device) for callback in averages),
        beside=sum(value.nbytes for value in start.composite.audio_encoder.parameters()) if makes_audio else 0,
        adapter=adapter,
    )
    step = Step(
        clips=data.micro_batch,
        frames=int(data.train_clips.frames.max()),
        precision=str(trainer.precision),
        checkpointing=settings.model.activation_checkpointing,
        accumulate=data.accumulate,
        world_size=trainer.world_size,
    )
    return MemoryWatch(memory, step, device)
