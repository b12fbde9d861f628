"""The entry of `scripts/preprocess.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from musicgen_train.garbage_collection import lasting_objects
from musicgen_train.preprocess.encoding.processes import number_of_processes, prepare_processes
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.work.ranks import find_rank

if TYPE_CHECKING:
    from musicgen_train.latents.manifest import Manifest
    from musicgen_train.preprocess.dry_run import Estimate


def run(config: DictConfig) -> Manifest | Estimate | None:
    """Begin, and run the stage; returns what it returns."""
    settings = begin(config)
    with lasting_objects():
        from musicgen_train.preprocess.run import look, preprocess

    return look(settings) if settings.dry_run else preprocess(settings)


def begin(config: DictConfig) -> PreprocessSettings:
    """Read the settings and begin the processes that decode, which get ready while the stage is imported."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    settings = PreprocessSettings.from_dict(values)
    if number_of_processes(settings, find_rank(settings.rank, settings.world_size)):
        prepare_processes()
    return settings
