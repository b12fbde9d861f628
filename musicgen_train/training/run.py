"""A training run, from its config to a composite that makes music."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig, OmegaConf

from musicgen_train.data.datamodule import DataSettings, LatentDataModule
from musicgen_train.data.position import MicroBatchPosition
from musicgen_train.hub.folder import read_json
from musicgen_train.training.adapter_files import adapter_card, save_adapter
from musicgen_train.training.adapters import AdapterRecord, AdapterSettings, keep_only_adapter_in_state
from musicgen_train.training.checkpoint_files import AtomicCheckpointIO, read_plain, write_text_atomically
from musicgen_train.training.checks import CheckSettings, run_checks
from musicgen_train.training.ema import EMA
from musicgen_train.training.export import export_composite, model_card
from musicgen_train.training.fine_tuning import adapter_entry, choose_parameters
from musicgen_train.training.freezing import FreezeSettings
from musicgen_train.training.health import HealthSettings
from musicgen_train.training.last_checkpoint import LastCheckpoint
from musicgen_train.training.memory import MemoryWatch, ModelMemory, Step
from musicgen_train.training.metrics_file import MetricsFile, columns
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.optimizers import require_available
from musicgen_train.training.precision import resolve_precision
from musicgen_train.training.provenance import StartRecord, provenance, write_provenance
from musicgen_train.training.resume_checks import require_same_run
from musicgen_train.training.run_folder import (
    ADAPTER_FOLDER,
    BEST_CHECKPOINT,
    CHECKPOINTS_FOLDER,
    CHECKS_FOLDER,
    COMPOSITE_FOLDER,
    CONFIG_NAME,
    PROVENANCE_NAME,
    SAMPLES_FOLDER,
    Opened,
    make_ready,
    open_run,
    wandb_id,
)
from musicgen_train.training.samples import SamplePrompts, SampleSettings
from musicgen_train.training.schedule import ScheduleSettings
from musicgen_train.training.sharding import ShardedTraining, whole_composite
from musicgen_train.training.speed import Speed, peak_memory_mb
from musicgen_train.training.start import ModelSettings, Start, load_start


@dataclass(kw_only=True)
class RunSettings:
    """A run's settings, but for the objects that Hydra makes: optimizer, trainer, callbacks, loggers."""

    init_from: str
    encoders: str | None
    output: Path
    resume: str | None
    seed: int
    validate_every: int
    export_weights: str
    max_steps: int
    data: DataSettings
    model: ModelSettings
    schedule: ScheduleSettings
    samples: SampleSettings
    checks: CheckSettings
    health: HealthSettings
    freezing: FreezeSettings
    adapter: AdapterSettings | None

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"trainer.max_steps is {self.max_steps}; it must be 1 or more optimizer steps")
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; it must be 1 or more optimizer steps")
        if self.export_weights not in ("last", "best"):
            raise ValueError(f"export.weights is {self.export_weights!r}; allowed are last, best")


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
    require_whole_weights(cfg)
    # Saved as it turned out on this machine, not as `auto`.
    cfg.trainer.precision = resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    quiet_lightning()
    data = LatentDataModule(
        settings.data, seed=settings.seed, total_steps=settings.max_steps, world_size=world_size(cfg)
    )
    if settings.export_weights == "best" and data.validation_clips is None:
        raise ValueError("export.weights=best needs a validation split, and data.validation_clips above 0")
    opened = open_run_of_rank(settings)
    checkpoint = opened.checkpoint
    start = load_start(
        settings.init_from, settings.encoders, settings.model, data.manifest, settings.data.parts[0].path, settings.seed
    )
    adapter = choose_parameters(
        start, settings.freezing, settings.adapter, init_from=settings.init_from, seed=settings.seed
    )
    if checkpoint is not None:
        require_same_run(checkpoint, start.composite.decoder.config, data)
    prepare_folder(settings.output, opened)
    origin = provenance(data, init_from=settings.init_from, encoders=str(start.encoders), seed=settings.seed)
    write_records(cfg, origin, settings.output)
    module = make_module(cfg, settings, start, adapter)
    trainer = make_trainer(cfg, settings, start, data, checkpoint)

    describe(settings, module, data, trainer)
    memory = watch_memory(cfg, settings, start, module, data, trainer, adapter)
    for line in memory.start() if memory else []:
        say(line)
    module.to(trainer.strategy.root_device)
    if settings.checks.enabled and checkpoint is None and trainer.is_global_zero:
        run_checks(settings.checks, module, start.composite, data, settings.output / CHECKS_FOLDER, say)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if checkpoint is not None and step_of(checkpoint) >= settings.max_steps:
        end_again(trainer, module)
    for line in memory.report() if memory else []:
        say(line)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message is not None:
            say(f"stopped early, after step {trainer.global_step}: {callback.stopping_reason_message}")
    validate_at_the_end(trainer, module, data, settings)
    config = (settings.output / CONFIG_NAME).read_text(encoding="utf-8")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    origin = read_json(settings.output / PROVENANCE_NAME)
    export(trainer, settings, start, data, adapter, model_card(origin, config, metrics, trainer.global_step))
    close_loggers(trainer)
    return Run(settings.output / COMPOSITE_FOLDER, module, data, trainer)


def read_settings(cfg: DictConfig) -> RunSettings:
    """The config's plain values as dataclasses.

    Raises:
        ValueError: a value is not allowed.
        MissingMandatoryValue: one is not given.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return RunSettings(
        init_from=plain["init_from"],
        encoders=plain["encoders"],
        output=Path(plain["output"]).expanduser(),
        resume=plain["resume"],
        seed=plain["seed"],
        validate_every=plain["validate_every"],
        export_weights=plain["export"]["weights"],
        max_steps=plain["trainer"]["max_steps"],
        data=DataSettings(**plain["data"]),
        model=ModelSettings(**plain["model"]),
        schedule=ScheduleSettings(**plain["schedule"]),
        samples=SampleSettings(**plain["samples"]),
        checks=CheckSettings(**plain["checks"]),
        health=HealthSettings(**plain["health"]),
        freezing=FreezeSettings(freeze=plain["freeze"], train_only=plain["train_only"]),
        adapter=AdapterSettings(**plain["adapter"]) if plain.get("adapter") else None,
    )


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


def shards_weights(strategy: Any) -> bool:
    """Whether the strategy of the config divides the weights among devices."""
    return OmegaConf.is_dict(strategy) and issubclass(get_class(strategy["_target_"]), ModelParallelStrategy)


def require_whole_weights(cfg: DictConfig) -> None:
    """Refuse what needs all weights on each device, where the strategy divides them."""
    averages = any(issubclass(get_class(callback["_target_"]), WeightAveraging) for callback in cfg.callbacks.values())
    if shards_weights(cfg.trainer.strategy) and (averages or cfg.get("adapter")):
        what = "an adapter" if cfg.get("adapter") else "callbacks=ema"
        raise ValueError(f"{what} needs whole weights on each device, which trainer=fsdp divides; use trainer=ddp")


def make_trainer(
    cfg: DictConfig, settings: RunSettings, start: Start, data: LatentDataModule, checkpoint: Path | None
) -> lightning.Trainer:
    """Lightning's trainer, with the callbacks and loggers that every run has before those of the config."""
    configured = [instantiate(callback) for callback in cfg.callbacks.values()]
    # Saving comes first: it is no part of the time that a step takes, and what others do at the end comes after it.
    callbacks: list[lightning.Callback] = [callback for callback in configured if isinstance(callback, LastCheckpoint)]
    # An average is brought up to date before it is sampled.
    callbacks += [callback for callback in configured if isinstance(callback, WeightAveraging)]
    callbacks += [Speed(), MicroBatchPosition(data.accumulate), StartRecord(settings.output)]
    if settings.samples.every and settings.samples.prompts:
        folder = settings.output / SAMPLES_FOLDER
        callbacks.append(SamplePrompts(settings.samples, start.composite, start.processor, folder))
    callbacks += [callback for callback in configured if callback not in callbacks]
    arguments: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    if data.validation_clips is None:
        arguments["limit_val_batches"] = 0
        callbacks = [callback for callback in callbacks if not needs_validation(callback)]
    resumed_step = None if checkpoint is None else step_of(checkpoint)
    names = columns(data.manifest.num_codebooks, data.validation_losses.values())
    metrics = MetricsFile(settings.output, names, resumed_step)
    validate_every = min(settings.validate_every, settings.max_steps)
    return instantiate(
        arguments,
        callbacks=callbacks,
        logger=[metrics, *(make_logger(logger, settings.output) for logger in cfg.logger.values())],
        plugins=[AtomicCheckpointIO(ranks_wait=world_size(cfg) > 1)],
        # Lightning would add one of its own where there is none.
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        accumulate_grad_batches=data.accumulate,
        # The whole run is one epoch of the loader: passes over the data begin and end within it.
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=validate_every * data.accumulate,
        # The checks before fit look at more than it would.
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=str(settings.output),
        enable_model_summary=False,
        _convert_="all",
    )


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
    watches = isinstance(callback, ModelCheckpoint | EarlyStopping)
    return watches and str(callback.monitor).startswith("val/")  # type: ignore[attr-defined]


def make_logger(config: DictConfig, output: Path) -> Logger:
    """A logger of the config; one of wandb goes on with the run that the folder has had before."""
    if issubclass(get_class(config["_target_"]), WandbLogger) and config.get("id") is None:
        return instantiate(config, id=wandb_id(output))
    return instantiate(config)


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was saved."""
    return int(read_plain(checkpoint)["global_step"])


def open_run_of_rank(settings: RunSettings) -> Opened:
    """See `run_folder.open_run`; the other ranks may come to a folder that the first has already made."""
    # Lightning keeps the rank there, read from what torchrun, SLURM or its own launcher has set.
    if getattr(rank_zero_only, "rank", 0) == 0 or settings.resume is not None:
        return open_run(settings.output, settings.resume)
    return Opened(None)


@rank_zero_only
def prepare_folder(output: Path, opened: Opened) -> None:
    """Make the run's folder, and say what became of checkpoints that cannot be used."""
    for line in make_ready(output, opened):
        say(line)


@rank_zero_only
def write_records(cfg: DictConfig, origin: dict[str, Any], output: Path) -> None:
    """Write what decides the run's numbers, before the first of them; the config last, which makes it a run."""
    write_provenance(output, origin)
    write_text_atomically(output / CONFIG_NAME, OmegaConf.to_yaml(cfg, resolve=True))


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


def end_again(trainer: lightning.Trainer, module: MusicgenTraining) -> None:
    """Do what a run that was killed after its last step has not come to: samples, and the average in place of weights.

    Lightning does nothing where there is no step left to make.
    """
    module.to(trainer.strategy.root_device)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging | SamplePrompts):
            callback.on_train_end(trainer, module)


def validate_at_the_end(
    trainer: lightning.Trainer, module: MusicgenTraining, data: LatentDataModule, settings: RunSettings
) -> None:
    """Validate the final weights, where the run's length is no multiple of `validate_every`."""
    if data.validation_clips is not None and trainer.global_step % min(settings.validate_every, settings.max_steps):
        trainer.validate(module, datamodule=data, verbose=False)


def export(
    trainer: lightning.Trainer,
    settings: RunSettings,
    start: Start,
    data: LatentDataModule,
    adapter: AdapterRecord | None,
    card: str,
) -> None:
    """Write the composite with the weights that were asked for, and say where everything is."""
    best = settings.output / CHECKPOINTS_FOLDER / BEST_CHECKPOINT
    # Where the weights are divided among devices, all ranks have to take part in putting them together.
    last = trainer.strategy.lightning_module_state_dict()
    if trainer.is_global_zero:
        peak = peak_memory_mb(trainer.strategy.root_device)
        trained = weights_of(best) if settings.export_weights == "best" else last
        folder = settings.output / COMPOSITE_FOLDER
        probe = data.probe(frames=50)
        composite = start.composite
        if isinstance(trainer.lightning_module, ShardedTraining):
            composite = whole_composite(composite, last, torch.device("cpu"))
        export_composite(composite.cpu(), start.processor, folder, batch=probe, trained=trained, card=card)
        if adapter is not None:
            save_adapter(start.composite, adapter, settings.output / ADAPTER_FOLDER, adapter_card(adapter, card))
            say(f"the adapter alone, which belongs to {adapter.base}: {settings.output / ADAPTER_FOLDER}")
        say(f"done: {trainer.global_step} steps; peak memory {peak:.0f} MiB; numbers and samples in {settings.output}")
        say(f"the trained model, read back and compared: {folder}")
    trainer.strategy.barrier("export")


@rank_zero_only
def close_loggers(trainer: lightning.Trainer) -> None:
    """Wait until all that was logged is written; wandb does it beside the run, and Lightning leaves it open."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Decoder and projection of a checkpoint."""
    return dict(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"])


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


@rank_zero_only
def say(line: str) -> None:
    """Print a line, once per run."""
    print(line, flush=True)
