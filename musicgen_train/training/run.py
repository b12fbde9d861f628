"""A training run, from its config to a composite that makes music."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from musicgen_train.data.datamodule import LatentDataModule
from musicgen_train.files import write_atomically
from musicgen_train.models.layers import without_cudnn_attention
from musicgen_train.training.cards import describe_base
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
from musicgen_train.training.run_folder import (
    CHECKS_FOLDER,
    COMPOSITE_FOLDER,
    RUN_CONFIG_NAME,
    Opened,
    make_ready,
    open_run,
)
from musicgen_train.training.settings import RunSettings, read_settings
from musicgen_train.training.step.optimizers import require_available
from musicgen_train.training.trainer import (
    callbacks_for,
    is_over,
    make_trainer,
    quiet_lightning,
    require_whole_weights,
)
from musicgen_train.training.weights.adapters import AdapterRecord, keep_only_adapter_in_state
from musicgen_train.training.weights.ema import EMA
from musicgen_train.training.weights.sharding import ShardedTraining
from musicgen_train.training.weights.starting import Start, load_start
from musicgen_train.training.weights.trainable import adapter_entry, choose_parameters

# cuDNN plans its attention anew for each length of clips; with more lengths than this a plan is used too seldom.
_MOST_PLANNED_LENGTHS = 64


@dataclass
class Run:
    """What a run made, for callers from Python."""

    composite: Path
    module: MusicgenTraining
    data: LatentDataModule
    trainer: lightning.Trainer


def run(cfg: DictConfig) -> Run:
    """Train as `configs/train.yaml` says: check, fit, export."""
    settings = read_settings(cfg)
    require_possible(settings)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    quiet_lightning()

    data = LatentDataModule(
        settings.data, seed=settings.seed, total_steps=settings.max_steps, world_size=settings.world_size
    )
    callbacks = callbacks_for(settings, data)
    opened = open_run_of_rank(settings)
    content = None if opened.checkpoint is None else read_plain(opened.checkpoint)
    resumed_step = None if content is None else int(content["global_step"])
    start = load_start(
        settings.init_from, settings.encoders, settings.model, data.manifest, settings.data.parts[0].path, settings.seed
    )
    adapter = choose_parameters(
        start, settings.freezing, settings.adapter, init_from=settings.init_from, seed=settings.seed
    )
    if content is not None:
        require_same_run(opened.checkpoint, content, start.composite.decoder.config, data)
    trains_on = content is not None and not is_over(callbacks, content, settings.max_steps)
    begin_folder(settings, start, data, opened, resumed_step if trains_on else None)

    module = make_module(settings, start, adapter)
    trainer = make_trainer(settings, start, data, callbacks, resumed_step)
    say_what_is_ahead(settings, module, data, trainer)
    memory = watch_memory(settings, start, module, data, trainer, adapter)
    for line in memory.estimate() if memory else []:
        say(line)
    module.to(trainer.strategy.root_device)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    if settings.checks.enabled and content is None and trainer.is_global_zero:
        run_checks(settings.checks, module, start.composite, data, settings.output / CHECKS_FOLDER, say)
    if memory:
        memory.begin()

    with without_cudnn_attention(has_many_lengths(data)):
        trainer.fit(module, datamodule=data, ckpt_path=opened.checkpoint, weights_only=True)
    if resumed_step is not None and resumed_step >= settings.max_steps:
        end_again(trainer, module)
    for line in memory.report() if memory else []:
        say(line)
    say_if_stopped_early(trainer, settings.max_steps)
    validate_at_the_end(trainer, module, data, settings)
    export(trainer, settings, start, data, adapter, callbacks)
    close_loggers(trainer.loggers)
    return Run(settings.output / COMPOSITE_FOLDER, module, data, trainer)


def require_possible(settings: RunSettings) -> None:
    """Refuse, before anything is read or written, what cannot work on this machine.

    Raises:
        ValueError: a package is missing, settings do not go together, or wandb has no account.
    """
    require_available(settings.make_optimizer)
    require_whole_weights(settings)
    require_account(settings.loggers)


def open_run_of_rank(settings: RunSettings) -> Opened:
    """See `run_folder.open_run`; ranks that come later find the folder that the first has already made."""
    # Lightning keeps the rank there, read from what torchrun, SLURM or its own launcher has set.
    if getattr(rank_zero_only, "rank", 0) == 0 or settings.resume is not None:
        return open_run(settings.output, settings.resume)
    return Opened(None)


@rank_zero_only
def begin_folder(
    settings: RunSettings, start: Start, data: LatentDataModule, opened: Opened, goes_on_from: int | None
) -> None:
    """Make the run's folder ready, and write what decides the run's numbers before the first of them.

    Args:
        settings: those of the run.
        start: what it starts from.
        data: what it trains on.
        opened: what was found in the folder.
        goes_on_from: the step at which training is resumed; see `run_folder.make_ready`.
    """
    for line in make_ready(settings.output, opened, goes_on_from):
        say(line)
    origin = provenance(
        data,
        init_from=settings.init_from,
        base=describe_base(settings.init_from),
        encoders=str(start.encoders),
        seed=settings.seed,
    )
    write_provenance(settings.output, origin)
    # The config comes last: it makes the folder one of a run.
    write_atomically(settings.output / RUN_CONFIG_NAME, settings.recorded_config)


def make_module(settings: RunSettings, start: Start, adapter: AdapterRecord | None) -> MusicgenTraining:
    """The Lightning module around the composite's own decoder and projection, which are trained in place."""
    module_class = ShardedTraining if settings.shards_weights else MusicgenTraining
    module = module_class(
        start.composite.decoder,
        start.composite.enc_to_dec_proj,
        make_optimizer=settings.make_optimizer,
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


def say_what_is_ahead(
    settings: RunSettings, module: MusicgenTraining, data: LatentDataModule, trainer: lightning.Trainer
) -> None:
    """Print the amount of data, the steps and the size of the model."""
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
    """Returns True if planning cuDNN's attention for each length of clips is likely to cost more than it gains.

    The limit is a guess from torch's sources; it was not measured.
    """
    return len(np.unique(data.train_clips.frames)) > _MOST_PLANNED_LENGTHS


def watch_memory(
    settings: RunSettings,
    start: Start,
    module: MusicgenTraining,
    data: LatentDataModule,
    trainer: lightning.Trainer,
    adapter: AdapterRecord | None,
) -> MemoryWatch | None:
    """The estimate of the run's memory; None where the weights are divided among devices, which it does not cover."""
    if settings.shards_weights:
        return None
    device = trainer.strategy.root_device
    averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]
    makes_audio = settings.checks.enabled or (settings.samples.every and settings.samples.prompts)
    memory = ModelMemory(
        module,
        module.decoder.config,
        settings.make_optimizer,
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
