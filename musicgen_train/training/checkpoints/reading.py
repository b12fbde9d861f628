"""Reading checkpoints: they are checked before they are trusted, and nothing in them is executed.

`writing.py` writes them.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from musicgen_train.files import PARTIAL
from musicgen_train.hub.weights import CheckpointError

EXTENSION = ".ckpt"
# The entry that holds ours beside Lightning's own; see `MusicgenTraining.on_save_checkpoint`.
CHECKPOINT_KEY = "musicgen_train"
# The ending that a damaged checkpoint gets.
DAMAGED = ".damaged"


def read_plain(path: Path) -> dict[str, Any]:
    """Read a checkpoint with its tensors on the meta device, without their values; nothing in it is executed.

    Raises:
        CheckpointError: the file cannot be read, or is none of a training run.
    """
    content = load_plain(path, map_location="meta")
    if "global_step" not in content:
        raise CheckpointError(f"{path} is no checkpoint of a training run")
    return content


def load_plain(path: Path, map_location: str) -> dict[str, Any]:
    """Read a file of tensors and plain values, memory-mapped; nothing in it is executed.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
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
    """Read a whole checkpoint and compare its checksums; return what is wrong with it, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return f"is cut short, or no checkpoint at all ({error})"
    return None if record is None else f"is damaged (checksum of {record})"


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that cannot be used."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def newest_intact(folder: Path, prefer: str) -> tuple[Path | None, list[Damaged]]:
    """The intact checkpoint of the latest step, if there is one, and the damaged ones that were passed over.

    Args:
        folder: the folder of the checkpoints.
        prefer: the file name to take among checkpoints of the same step.
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
    """Remove the partial files of runs that were killed while they wrote a checkpoint; return their paths."""
    left = sorted(folder.glob(f"{PARTIAL}*"))
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return left


def keep_also_as(path: Path, name: str) -> None:
    """Give a checkpoint a second name in its folder, replacing the file that has that name.

    It is a hard link, which takes no room as long as the first name stays. If the file system has no hard links, the
    checkpoint is renamed.
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


def _unreadable(error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "unsupported global" in reason.lower():
        return (
            "holds more than tensors and plain values, e.g. Python code; it was not loaded and nothing in it was "
            "executed"
        )
    return f"cannot be read ({type(error).__name__}: {reason[:200]})"
