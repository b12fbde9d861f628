"""The entry of `scripts/preprocess.py`: starts the processes that decode before the rest of the stage is imported."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from musicgen_train.garbage_collection import lasting_objects
from musicgen_train.preprocess.encoding.processes import number_of_processes, prepare_processes
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.work.ranks import find_rank


def run(config: DictConfig) -> object:
    """Run the stage as `configs/preprocess.yaml` and the command line say; returns what `preprocess` or `dry_run` do.

    Raises:
        ValueError: a setting is not allowed. For more see `preprocess`.
    """
    settings = begin(config)
    with lasting_objects():
        from musicgen_train.preprocess.run import dry_run, preprocess

    return dry_run(settings) if settings.dry_run else preprocess(settings)


def begin(config: DictConfig) -> PreprocessSettings:
    """Read the settings, and start the processes that decode: they get ready while the stage is imported."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    settings = PreprocessSettings.from_dict(values)
    if number_of_processes(settings.workers, find_rank(settings.rank, settings.world_size)):
        prepare_processes()
    return settings
