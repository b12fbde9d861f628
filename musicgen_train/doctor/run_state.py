"""Checks a training run: how far it came, and whether it can be resumed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from musicgen_train.data.datamodule import DataSettings, LatentDataModule
from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.doctor.findings import Finding, note, ok, wrong
from musicgen_train.files import read_json
from musicgen_train.moved import current_name
from musicgen_train.training.checkpoints.reading import CHECKPOINT_KEY, newest_intact, read_plain
from musicgen_train.training.early_stopping import EarlyStopping
from musicgen_train.training.run_folder import (
    CHECKPOINTS_FOLDER,
    COMPOSITE_FOLDER,
    LAST_CHECKPOINT,
    METRICS_NAME,
    PROVENANCE_NAME,
    RUN_CONFIG_NAME,
    exported,
    is_run,
)
from musicgen_train.training.settings import make_callbacks
from musicgen_train.training.trainer import is_over

_TOPIC = "run"
_OWN_STOPPING = f"{EarlyStopping.__module__}.{EarlyStopping.__qualname__}"


def look_at_run(folder: Path) -> Iterator[Finding]:
    """Check the last checkpoint (read whole, with its checksums), skipped steps, data and result; list the starts."""
    if not is_run(folder):
        yield wrong(
            _TOPIC, f"{folder} is no folder of scripts/train.py: {RUN_CONFIG_NAME} or {PROVENANCE_NAME} is missing"
        )
        return
    config = OmegaConf.load(folder / RUN_CONFIG_NAME)
    assert isinstance(config, DictConfig)
    starts = read_json(folder / PROVENANCE_NAME).get("starts", [])
    yield ok(_TOPIC, f"{folder}: started {len(starts)} time(s), the last {_described(starts[-1] if starts else {})}")
    checkpoint, damaged = newest_intact(folder / CHECKPOINTS_FOLDER, prefer=LAST_CHECKPOINT)
    for each in damaged:
        yield wrong(_TOPIC, str(each), "resume=auto passes it over and keeps it aside")
    if checkpoint is None:
        yield wrong(_TOPIC, "no checkpoint can be read: nothing to go on from", "start again, in another folder")
    else:
        yield from _look_at_checkpoint(checkpoint, config, folder)
    if (folder / METRICS_NAME).is_file():
        yield _look_at_metrics(folder / METRICS_NAME)


def _described(start: dict[str, Any]) -> str:
    when = start.get("started", "at an unknown time")
    if "from_step" not in start:
        return f"{when}, never came to its first step"
    outcome = start.get("outcome", f"killed or running, last saved at {start.get('step', start['from_step'])}")
    return f"{when} from step {start['from_step']}, {outcome}"


def _look_at_checkpoint(checkpoint: Path, config: DictConfig, folder: Path) -> Iterator[Finding]:
    content = read_plain(checkpoint)
    step, total = int(content["global_step"]), int(config.trainer.max_steps)
    size = checkpoint.stat().st_size
    yield ok(_TOPIC, f"{checkpoint.name} is intact: step {step} of {total}, {size / 2**20:.0f} MiB")
    health = content.get(CHECKPOINT_KEY, {}).get("health") or {}
    if skipped := health.get("skipped", 0):
        yield note(_TOPIC, f"{skipped} steps were left out because they were not finite", "docs/troubleshooting.md")
    if "optimizer_states" not in content or LatentDataModule.__qualname__ not in content:
        yield wrong(_TOPIC, "it holds weights alone: a new run can begin with init_from, but not go on from it")
        return
    changed = list(_changed_data(content[LatentDataModule.__qualname__], config))
    yield from changed
    if changed:
        return
    # Only our own class is instantiated: a config may name any.
    callbacks = {
        name: each
        for name, each in config.callbacks.items()
        if each and current_name(str(each.get("_target_"))) == _OWN_STOPPING
    }
    if not is_over(make_callbacks(callbacks), content, total):
        yield ok(_TOPIC, "can go on: the same command with resume=auto")
        return
    ended = "stopped early" if step < total else "finished"
    if exported(folder) is not None:
        yield ok(_TOPIC, f"{ended}; its model is {folder / COMPOSITE_FOLDER}")
    else:
        yield note(_TOPIC, f"{ended}, and the model is not there", "the same command with resume=auto writes it")


def _changed_data(state: dict[str, Any], config: DictConfig) -> Iterator[Finding]:
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    for part, fingerprint in zip(DataSettings(**plain).parts, state["data"], strict=True):
        try:
            found = LatentDataset(part.path, "train").fingerprint()
        except (OSError, ValueError) as error:
            yield wrong(_TOPIC, f"its data cannot be read: {' '.join(str(error).split())}", "bring it back to go on")
            continue
        if found != fingerprint:
            yield wrong(
                _TOPIC,
                f"{part.path} is no longer what it was trained on ({found[:12]}, was {fingerprint[:12]})",
                "bring the old latents back to go on, or begin a new run with init_from",
            )


def _look_at_metrics(path: Path) -> Finding:
    losses = {"train/loss": "none", "val/loss": "none"}
    step = "0"
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = row["step"]
            losses.update({name: row[name] for name in losses if row.get(name)})
    shown = ", ".join(f"{name} {value}" for name, value in losses.items())
    return ok(_TOPIC, f"{METRICS_NAME} goes to step {step}: {shown}")
