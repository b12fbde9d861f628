"""Finds what `init_from` or `model` names: a run, a checkpoint, an adapter, or a model in the hub's layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musicgen_train.hub.folder import CONFIG_NAME
from musicgen_train.training.checkpoints.reading import EXTENSION
from musicgen_train.training.run_folder import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    COMPOSITE_FOLDER,
    METRICS_NAME,
    exported,
    is_run,
    newest_of,
)
from musicgen_train.training.weights.adapter_files import is_adapter


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from."""

    folder: str | None = None
    """A folder in the hub's layout, or a hub id. With a checkpoint, the composite of its run, whose encoders are used;
    if that is None, too, the encoders are those that the checkpoint names."""
    checkpoint: Path | None = None
    """A training checkpoint, whose decoder and projection are used."""
    adapter: Path | None = None
    """The folder of an adapter, which names its base."""
    run: Path | None = None
    """The folder of the training run that the model belongs to, if it does."""

    @property
    def metrics(self) -> Path | None:
        """The file of the run's training curves, if there is one."""
        path = None if self.run is None else self.run / METRICS_NAME
        return path if path is not None and path.is_file() else None


def find_model(name: str, setting: str) -> ModelSource:
    """Find the model that `setting=name` means.

    A run means its composite, or its newest checkpoint if it has not ended or was resumed since.

    Args:
        name: a run's folder, a checkpoint, an adapter's folder, or a model's folder or hub id.
        setting: the setting that gives the name, for errors.

    Raises:
        FileNotFoundError: it is a folder that holds no model, or a run that has saved nothing yet.
        ValueError: it is a file that is no checkpoint.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != EXTENSION:
            raise ValueError(
                f"{setting}={name} is a file, but no {EXTENSION}; give a run's folder, a checkpoint or a hub folder"
            )
        return _of_checkpoint(path)
    if is_adapter(path):
        return ModelSource(adapter=path, run=_run_around(path, ADAPTER_FOLDER))
    composite = exported(path)
    if composite is not None:
        return ModelSource(folder=str(composite), run=path)
    if is_run(path) and not (path / CONFIG_NAME).is_file():
        checkpoint = newest_of(path).checkpoint
        assert checkpoint is not None
        return _of_checkpoint(checkpoint)
    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"{setting}={name} is neither a run's folder nor a model's: it holds no {COMPOSITE_FOLDER}/ and no "
            f"{CONFIG_NAME}"
        )
    return ModelSource(folder=name, run=_run_around(path, COMPOSITE_FOLDER))


def _run_around(path: Path, name: str) -> Path | None:
    """The run that a folder named `name` lies in, if it does: such a folder may be given by itself."""
    return path.parent if path.name == name and is_run(path.parent) else None


def _of_checkpoint(path: Path) -> ModelSource:
    run = path.parent.parent if path.parent.name == CHECKPOINTS_FOLDER else None
    composite = None if run is None else run / COMPOSITE_FOLDER
    has_composite = composite is not None and (composite / CONFIG_NAME).is_file()
    return ModelSource(folder=str(composite) if has_composite else None, checkpoint=path, run=run)
