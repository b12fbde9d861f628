"""Writing checkpoints: whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from musicgen_train.files import write_atomically

_MIB = 2**20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, flushes it to the disk, and renames it.

    So at every moment the name leads to the old checkpoint or to the new one, never to a partial file. (Lightning's own
    builds the whole file in memory first, may go through another file system, and does not flush.)

    Args:
        ranks_wait: True if other ranks wait for this one after a save. An error is then kept in `failure` instead of
            raised, so that the ranks can stop together.
    """

    def __init__(self, *, ranks_wait: bool = False) -> None:
        super().__init__()
        self.failure: OSError | None = None
        self._ranks_wait = ranks_wait

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; if that fails, the old one stays.

        Raises:
            OSError: the file cannot be written, e.g. because the disk is full; says how much room it takes.
            TypeError: `storage_options` are given.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are local files")
        try:
            _write(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:  # torch's own writer turns the first into the second
            failure = _cannot_save(error, Path(path), checkpoint)
            if not self._ranks_wait:
                raise failure from error
            self.failure = failure


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def _cannot_save(error: OSError | RuntimeError, path: Path, checkpoint: dict[str, Any]) -> OSError:
    cause = error if isinstance(error, OSError) else error.__context__
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).partition("\n")[0]
    free = f", {shutil.disk_usage(path.parent).free / _MIB:.0f} MiB are free" if path.parent.is_dir() else ""
    return OSError(
        f"{path} of step {checkpoint.get('global_step')} could not be saved ({reason}; it takes "
        f"{_bytes_of(checkpoint) / _MIB:.0f} MiB{free}). Checkpoints that were saved before are intact. Make room, and "
        "give the same command again with resume=auto"
    )


def _bytes_of(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, dict):
        return sum(_bytes_of(value) for value in content.values())
    if isinstance(content, list | tuple):
        return sum(_bytes_of(value) for value in content)
    return 0
