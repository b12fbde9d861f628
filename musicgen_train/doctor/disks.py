"""Checks the folders that files go to: may they be written, and is there room."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from musicgen_train.doctor.findings import Finding, note, ok, wrong
from musicgen_train.training.logs.wandb_account import is_offline

_GIB = 2**30
# Two checkpoints of musicgen-small with its optimizer, and its composite.
_PLENTY = 20 * _GIB
_LEAST = _GIB // 4


def look_at_disks(output: Path) -> Iterator[Finding]:
    """Check the folders of results, temporary files and the hub's models, and what the environment sets for the hub."""
    # Imported here because it is slow to import.
    from huggingface_hub.constants import HF_HUB_CACHE

    for topic, folder, setting in (
        ("output", output, "give another output"),
        ("temporary", Path(tempfile.gettempdir()), "set TMPDIR to a folder with room"),
        ("hub cache", Path(HF_HUB_CACHE), "set HF_HOME to a folder with room"),
    ):
        yield _look_at(topic, folder, setting)
    offline = [
        name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("0", "")
    ]
    if offline:
        yield note("hub", f"{offline[0]} is set: models come from folders and the cache alone")
    mode = os.environ.get("WANDB_MODE")
    told = f"WANDB_MODE={mode}: " if mode else ""
    unless = "" if is_offline() else " unless logger.wandb.offline=false"
    yield ok("wandb", f"{told}numbers of runs with logger=wandb stay on this machine{unless}")


def _look_at(topic: str, folder: Path, setting: str) -> Finding:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return wrong(topic, f"{folder} cannot be made: {existing} is a file", setting)
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        return wrong(topic, f"{folder} cannot be written: {error.strerror}", setting)
    free = shutil.disk_usage(existing).free
    shown = f"{folder}: {free / _GIB:.1f} GiB free"
    if free < _LEAST:
        return wrong(topic, shown, setting)
    return ok(topic, shown) if free >= _PLENTY else note(topic, f"{shown}, little for checkpoints of larger models")
