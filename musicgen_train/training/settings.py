"""A run's settings as `configs/train.yaml` has them, but for the objects that Hydra makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from musicgen_train.data.datamodule import DataSettings
from musicgen_train.training.checks import CheckSettings
from musicgen_train.training.samples import SampleSettings
from musicgen_train.training.step.health import HealthSettings
from musicgen_train.training.step.schedule import ScheduleSettings
from musicgen_train.training.weights.adapters import AdapterSettings
from musicgen_train.training.weights.freezing import FreezeSettings
from musicgen_train.training.weights.starting import ModelSettings
from musicgen_train.typed_settings import from_plain


@dataclass(kw_only=True)
class ExportSettings:
    """What a run leaves in RUN/composite."""

    weights: Literal["last", "best"]
    """Those of the last step, or of the checkpoint that `callbacks.best` has kept."""


@dataclass(kw_only=True)
class TrainerSettings:
    """What a run itself needs to know of what goes to Lightning's trainer."""

    max_steps: int
    """Optimizer steps of the whole run."""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"trainer.max_steps is {self.max_steps}; it must be 1 or more optimizer steps")


@dataclass(kw_only=True)
class RunSettings:
    """A run's settings, but for the objects that Hydra makes: optimizer, trainer, callbacks, loggers."""

    init_from: str
    encoders: str | None
    output: Path
    resume: str | None
    seed: int
    validate_every: int
    export: ExportSettings
    trainer: TrainerSettings
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

    @property
    def max_steps(self) -> int:
        return self.trainer.max_steps

    @property
    def steps_between_validations(self) -> int:
        """`validate_every`, but that a run shorter than that is validated at its end."""
        return min(self.validate_every, self.max_steps)


def read_settings(cfg: DictConfig) -> RunSettings:
    """The config's plain values as dataclasses.

    Raises:
        ValueError: a value is of another type than its setting, or is not allowed.
        MissingMandatoryValue: one is not given.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    values = {field.name: plain.get(field.name) for field in dataclasses.fields(RunSettings)}
    values["trainer"] = {"max_steps": plain["trainer"]["max_steps"]}
    return from_plain(RunSettings, values)
