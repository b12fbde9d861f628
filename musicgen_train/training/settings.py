"""A run's settings, resolved once: typed values, and the objects that Hydra makes of the config. Hydra stops here."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig, OmegaConf

from musicgen_train.data.datamodule import DataSettings
from musicgen_train.training.checks import CheckSettings
from musicgen_train.training.logs.loggers import MakeLogger
from musicgen_train.training.samples import SampleSettings
from musicgen_train.training.step.health import HealthSettings
from musicgen_train.training.step.optimizers import MakeOptimizer
from musicgen_train.training.step.schedule import ScheduleSettings
from musicgen_train.training.weights.adapters import AdapterSettings
from musicgen_train.training.weights.freezing import FreezeSettings
from musicgen_train.training.weights.starting import ModelSettings
from musicgen_train.typed_settings import from_plain

Callbacks = Mapping[str, lightning.Callback]
"""The callbacks of the config under their names there."""

_AUTO = "auto"


@dataclass(kw_only=True)
class ExportSettings:
    """What a run leaves in RUN/composite."""

    weights: Literal["last", "best"]
    """Those of the last step, or of the checkpoint that `callbacks.best` has kept."""


@dataclass(kw_only=True)
class RunValues:
    """The settings of a run that are plain values of the config."""

    init_from: str
    encoders: str | None
    output: Path
    resume: str | None
    seed: int
    validate_every: int
    export: ExportSettings
    data: DataSettings
    model: ModelSettings
    schedule: ScheduleSettings
    samples: SampleSettings
    checks: CheckSettings
    health: HealthSettings
    freeze: list[str]
    train_only: list[str]
    adapter: AdapterSettings | None

    def __post_init__(self) -> None:
        self.output = self.output.expanduser()
        self.freezing = FreezeSettings(freeze=self.freeze, train_only=self.train_only)
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; it must be 1 or more optimizer steps")


@dataclass(kw_only=True)
class RunSettings(RunValues):
    """All settings of a run, resolved for this machine."""

    max_steps: int
    """Optimizer steps of the whole run."""
    precision: str
    """Lightning's name of the precision to train in."""
    world_size: int
    """Devices that train, over all nodes."""
    make_optimizer: MakeOptimizer
    callbacks: Callbacks
    loggers: list[MakeLogger]
    make_trainer: functools.partial[lightning.Trainer]
    """The trainer of the config; takes further arguments of `lightning.Trainer`, which win over the config's."""
    shards_weights: bool
    """True if the strategy divides the weights among devices."""
    recorded_config: str
    """The config with these settings, as YAML."""

    @property
    def steps_between_validations(self) -> int:
        """`validate_every`, but at most the length of the run, so that a short run is validated at its end."""
        return min(self.validate_every, self.max_steps)


@dataclass(kw_only=True)
class _TrainerValues:
    max_steps: int

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"trainer.max_steps is {self.max_steps}; it must be 1 or more optimizer steps")


def read_settings(cfg: DictConfig) -> RunSettings:
    """Read the config of a run, which is not changed.

    Raises:
        ValueError: a value is of another type than its setting, or is not allowed.
        MissingMandatoryValue: one is not given.
        hydra.errors.InstantiationException: a `_target_` cannot be made.
    """
    in_force = _in_force(cfg)
    plain: dict[str, Any] = OmegaConf.to_container(in_force, resolve=True)  # type: ignore[assignment]
    values = from_plain(RunValues, {field.name: plain.get(field.name) for field in dataclasses.fields(RunValues)})
    trainer = plain["trainer"]
    make_trainer = instantiate({**trainer, "_partial_": True}, _convert_="all")
    return RunSettings(
        **{field.name: getattr(values, field.name) for field in dataclasses.fields(values)},
        max_steps=trainer["max_steps"],
        precision=trainer["precision"],
        world_size=_world_size(trainer),
        make_optimizer=instantiate(plain["optimizer"]),
        callbacks=make_callbacks(plain["callbacks"]),
        loggers=[instantiate({**each, "_partial_": True}) for each in plain["logger"].values() if each is not None],
        make_trainer=make_trainer,
        shards_weights=isinstance(make_trainer.keywords.get("strategy"), ModelParallelStrategy),
        recorded_config=OmegaConf.to_yaml(in_force, resolve=True),
    )


def make_callbacks(configs: Mapping[str, Any]) -> Callbacks:
    """The callbacks of the config under their names there; those that are null are left out."""
    return {str(name): instantiate(config) for name, config in configs.items() if config is not None}


def resolve_precision(precision: str, accelerator: str) -> str:
    """Lightning's name of the precision to train in.

    Args:
        precision: one of Lightning's names, which is taken as it is, or `auto`: bf16-mixed on a GPU that has bfloat16
            in hardware (compute capability 8.0, "Ampere", and up), else 32-true. fp16 is never chosen: its gradients
            overflow.
        accelerator: as Lightning names it.
    """
    if precision != _AUTO:
        return precision
    if _may_use_cuda(accelerator) and torch.cuda.is_available():
        # False: emulated bfloat16 does not count.
        return "bf16-mixed" if torch.cuda.is_bf16_supported(False) else "32-true"
    return "32-true"


def _in_force(cfg: DictConfig) -> DictConfig:
    """A copy of the config with what is true on this machine in place of `auto`."""
    given: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    values = from_plain(_TrainerValues, {"max_steps": given["trainer"]["max_steps"]}, "trainer.")
    in_force = copy.deepcopy(cfg)
    in_force.trainer.max_steps = values.max_steps  # a whole number, also where 1e5 was given
    in_force.trainer.precision = resolve_precision(given["trainer"]["precision"], given["trainer"]["accelerator"])
    return in_force


def _world_size(trainer: Mapping[str, Any]) -> int:
    devices = trainer["devices"]
    if isinstance(devices, list):
        per_node = len(devices)
    elif str(devices) in (_AUTO, "-1"):
        per_node = max(1, torch.cuda.device_count()) if _may_use_cuda(trainer["accelerator"]) else 1
    else:
        per_node = int(devices)
    return per_node * int(trainer["num_nodes"])


def _may_use_cuda(accelerator: str) -> bool:
    return accelerator in (_AUTO, "gpu", "cuda")
