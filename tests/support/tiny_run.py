"""Quick runs of the real configs, in this process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Protocol

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from tiny_latents import ClipSpec

from musicgen_train.launch import CONFIG_FOLDER
from musicgen_train.training.run import Run

TRAIN = [ClipSpec(21 + 3 * number, (number % 2,) if number % 4 else (0, 1)) for number in range(11)]
VALIDATION = [ClipSpec(17), ClipSpec(23, ()), ClipSpec(29, (1,))]

QUICK = [
    "experiment=debug",
    "trainer=cpu",
    "samples.every=0",
    "checks.enabled=false",
    "+trainer.enable_progress_bar=false",
    "~callbacks.progress",
]


class RunWith(Protocol):
    """`run_with(output, "key=value", ...)`: a quick run of configs/train.yaml, without samples, checks and bar."""

    def __call__(self, output: Path, *overrides: str) -> Run: ...


def compose(config_name: str, *overrides: str) -> DictConfig:
    """A config of the repository with overrides, as the command line makes it."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return copy.deepcopy(hydra.compose(config_name, list(overrides)))
