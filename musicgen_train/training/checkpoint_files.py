"""Checkpoints on disk: written whole or not at all, looked at before they are trusted, never executed."""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from musicgen_train.hub.folder import PARTIAL, write_atomically
from musicgen_train.hub.weights import CheckpointError

EXTENSION = ".ckpt"
# Of a file that was found to be broken.
DAMAGED = ".damaged"
_MIB = 2**20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves a checkpoint beside its place, makes sure that it is on the disk, and moves it there in one step.

    So at every moment there is the old one or the new one under the name, and nothing half written. (Lightning's own
    builds the whole file in memory first, may go through another file system, and does not wait for the disk.)

    Args:
        ranks_wait: other ranks wait for this one after a save. An error is then kept in `failure`, for the ranks to
            stop together, rather than raised, which would leave them waiting.
    """

    def __init__(self, *, ranks_wait: bool = False) -> None:
        super().__init__()
        self.failure: OSError | None = None
        self._ranks_wait = ranks_wait

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Save; what was there before stays if that fails.

        Raises:
            OSError: it cannot be written, e.g. because the disk is full. Says how much room it takes.
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


def read_plain(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its tensors without their values; nothing in it is executed.

    Raises:
        CheckpointError: it cannot be read.
    """
    content = load_plain(path, map_location="meta")
    if "global_step" not in content:
        raise CheckpointError(f"{path} is no checkpoint of a training run")
    return content


def load_plain(path: Path, map_location: str) -> dict[str, Any]:
    """What a file of tensors and plain values holds, memory-mapped; nothing in it is executed.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is cut short, or no checkpoint at all")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
        raise CheckpointError(f"{path} {_unreadable(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no checkpoint of a training run")
    return content


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Reads all of it and compares its checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return f"is cut short, or no checkpoint at all ({error})"
    return None if record is None else f"is damaged (checksum of {record})"


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def newest_intact(folder: Path, prefer: str) -> tuple[Path | None, list[Damaged]]:
    """The checkpoint of the latest step that is whole, and those that had to be passed over.

    Args:
        folder: of checkpoints.
        prefer: a name to take among checkpoints of the same step.
    """
    damaged: list[Damaged] = []
    readable: list[tuple[int, bool, Path]] = []
    for path in sorted(folder.glob(f"*{EXTENSION}")):
        if path.name.startswith(PARTIAL):
            continue
        try:
            readable.append((int(read_plain(path)["global_step"]), path.name == prefer, path))
        except CheckpointError as error:
            damaged.append(Damaged(path, str(error).removeprefix(f"{path} ")))
    for _, _, path in sorted(readable, reverse=True):
        reason = damage(path)
        if reason is None:
            return path, damaged
        damaged.append(Damaged(path, reason))
    return None, damaged


def remove_partial(folder: Path) -> list[Path]:
    """Remove what killed runs have left of checkpoints that were being written."""
    left = sorted(folder.glob(f"{PARTIAL}*"))
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return left


def keep_also_as(path: Path, name: str) -> None:
    """Give a checkpoint a second name in its folder, replacing what had it; costs no room until the first moves on.

    Where the file system has no hard links it gets the second name only.
    """
    if not path.is_file():
        return
    link = path.with_name(f"{PARTIAL}{name}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, path.with_name(name))
    else:
        os.replace(link, path.with_name(name))


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


def _unreadable(error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "unsupported global" in reason.lower():
        return (
            "holds more than tensors and plain values, e.g. Python code; it was not loaded and nothing in it was "
            "executed"
        )
    return f"cannot be read ({type(error).__name__}: {reason[:200]})"
