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
from hydra.utils import instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from musicgen_train.data.datamodule import DataSettings, LatentDataModule
from musicgen_train.hub.folder import write_json
from musicgen_train.training.checks import GIB, CheckSettings, estimate_memory, run_checks
from musicgen_train.training.export import export_composite, model_card
from musicgen_train.training.metrics_file import MetricsFile, columns
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.provenance import provenance
from musicgen_train.training.run_folder import (
    BEST_CHECKPOINT,
    CHECKPOINTS_FOLDER,
    CHECKS_FOLDER,
    COMPOSITE_FOLDER,
    CONFIG_NAME,
    PROVENANCE_NAME,
    SAMPLES_FOLDER,
    open_run,
)
from musicgen_train.training.samples import SamplePrompts, SampleSettings
from musicgen_train.training.schedule import ScheduleSettings
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
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    quiet_lightning()
    data = LatentDataModule(
        settings.data, seed=settings.seed, total_steps=settings.max_steps, world_size=world_size(cfg)
    )
    if settings.export_weights == "best" and data.validation_clips is None:
        raise ValueError("export.weights=best needs a validation split, and data.validation_clips above 0")
    start = load_start(
        settings.init_from, settings.encoders, settings.model, data.manifest, settings.data.path, settings.seed
    )
    checkpoint = open_run_on_rank_zero(settings)
    origin = provenance(
        data.manifest,
        latents=settings.data.path,
        init_from=settings.init_from,
        encoders=str(start.encoders),
        seed=settings.seed,
    )
    write_records(cfg, origin, settings.output)
    module = make_module(cfg, settings, start)
    trainer = make_trainer(cfg, settings, start, data, checkpoint)

    module.to(trainer.strategy.root_device)
    describe(settings, module, data, trainer)
    if settings.checks.enabled and checkpoint is None and trainer.is_global_zero:
        run_checks(settings.checks, module, start.composite, data, settings.output / CHECKS_FOLDER, say)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    validate_at_the_end(trainer, module, data, settings)
    config = (settings.output / CONFIG_NAME).read_text(encoding="utf-8")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    export(trainer, settings, start, data, model_card(origin, config, metrics, trainer.global_step))
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
    )


def make_module(cfg: DictConfig, settings: RunSettings, start: Start) -> MusicgenTraining:
    """The module that is trained: the composite's own decoder and projection."""
    return MusicgenTraining(
        start.composite.decoder,
        start.composite.enc_to_dec_proj,
        make_optimizer=instantiate(cfg.optimizer),
        schedule=settings.schedule,
        total_steps=settings.max_steps,
        seed=settings.seed,
        attend_to_padding=settings.model.attend_to_padding,
        description={"encoders": dataclasses.asdict(start.encoders)},
    )


def make_trainer(
    cfg: DictConfig, settings: RunSettings, start: Start, data: LatentDataModule, checkpoint: Path | None
) -> lightning.Trainer:
    """Lightning's trainer, with the callbacks and loggers that every run has before those of the config."""
    callbacks: list[lightning.Callback] = [Speed()]
    if settings.samples.every and settings.samples.prompts:
        folder = settings.output / SAMPLES_FOLDER
        callbacks.append(SamplePrompts(settings.samples, start.composite, start.processor, folder))
    callbacks += [instantiate(callback) for callback in cfg.callbacks.values()]
    arguments: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    if data.validation_clips is None:
        arguments["limit_val_batches"] = 0
        callbacks = [callback for callback in callbacks if not needs_validation(callback)]
    resumed_step = None if checkpoint is None else step_of(checkpoint)
    metrics = MetricsFile(settings.output, columns(data.manifest.num_codebooks), resumed_step)
    if arguments["precision"] == "auto":
        arguments["precision"] = best_precision(arguments["accelerator"])
    validate_every = min(settings.validate_every, settings.max_steps)
    return instantiate(
        arguments,
        callbacks=callbacks,
        logger=[metrics, *(instantiate(logger) for logger in cfg.logger.values())],
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


def best_precision(accelerator: str) -> str:
    """bf16-mixed on a GPU that has it in hardware, else 32-true."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported(False):
        return "bf16-mixed"
    return "32-true"


def needs_validation(callback: lightning.Callback) -> bool:
    """Whether a callback watches a number that only validation gives."""
    watches = isinstance(callback, ModelCheckpoint | EarlyStopping)
    return watches and str(callback.monitor).startswith("val/")  # type: ignore[attr-defined]


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was saved."""
    return int(torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True)["global_step"])


def open_run_on_rank_zero(settings: RunSettings) -> Path | None:
    """See `run_folder.open_run`; the other ranks may come to a folder that the first has already made."""
    # Lightning keeps the rank there, read from what torchrun, SLURM or its own launcher has set.
    if getattr(rank_zero_only, "rank", 0) == 0 or settings.resume is not None:
        return open_run(settings.output, settings.resume)
    return None


@rank_zero_only
def write_records(cfg: DictConfig, origin: dict[str, Any], output: Path) -> None:
    """Write what decides the run's numbers, before the first of them."""
    output.mkdir(parents=True, exist_ok=True)
    (output / CONFIG_NAME).write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    write_json(output / PROVENANCE_NAME, origin)


def describe(
    settings: RunSettings, module: MusicgenTraining, data: LatentDataModule, trainer: lightning.Trainer
) -> None:
    """Print what is about to happen."""
    clips = data.train_clips
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    memory = estimate_memory(
        module.decoder.config,
        trainable,
        clips=data.micro_batch,
        frames=int(clips.frames.max()),
        half=not str(trainer.precision).startswith("32"),
        checkpointing=settings.model.activation_checkpointing,
    )
    validation = 0 if data.validation_clips is None else len(data.validation_clips.frames)
    passes = settings.max_steps * settings.data.global_batch_size / len(clips.frames)
    say(f"data: {len(clips.frames)} clips, {clips.dataset.seconds / 3600:.2f} h; {validation} to validate on")
    say(
        f"steps: {settings.max_steps} of {settings.data.global_batch_size} clips = {trainer.world_size} device(s) x "
        f"{data.accumulate} x {data.micro_batch}; {passes:.1f} passes; {data.padding_share:.1%} padding"
    )
    say(
        f"model: {trainable:,} parameters to train, from {settings.init_from}, {trainer.precision} on "
        f"{trainer.strategy.root_device}; about {memory.total / GIB:.2f} GiB (weights and optimizer "
        f"{memory.weights / GIB:.2f}, activations {memory.activations / GIB:.2f})"
    )


def validate_at_the_end(
    trainer: lightning.Trainer, module: MusicgenTraining, data: LatentDataModule, settings: RunSettings
) -> None:
    """Validate the final weights, where the run's length is no multiple of `validate_every`."""
    if data.validation_clips is not None and trainer.global_step % min(settings.validate_every, settings.max_steps):
        trainer.validate(module, datamodule=data, verbose=False)


def export(trainer: lightning.Trainer, settings: RunSettings, start: Start, data: LatentDataModule, card: str) -> None:
    """Write the composite with the weights that were asked for, and say where everything is."""
    best = settings.output / CHECKPOINTS_FOLDER / BEST_CHECKPOINT
    if trainer.is_global_zero:
        peak = peak_memory_mb(trainer.strategy.root_device)
        trained = weights_of(best) if settings.export_weights == "best" else None
        folder = settings.output / COMPOSITE_FOLDER
        probe = data.probe(frames=50)
        export_composite(start.composite.cpu(), start.processor, folder, batch=probe, trained=trained, card=card)
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
        # The CPU was asked for.
        "GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message)


@rank_zero_only
def say(line: str) -> None:
    """Print a line, once per run."""
    print(line, flush=True)
