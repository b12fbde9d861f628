"""A run that was interrupted goes on as if it had not been, wherever it was interrupted."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reliability import differences
from tiny_run import RunWith

from musicgen_train.training.checkpoints.last_checkpoint import LastCheckpoint
from musicgen_train.training.logs.metrics_file import MetricsFile
from musicgen_train.training.module import MusicgenTraining

# Dropout, caption dropout, random crops, a schedule, accumulated micro-batches, an average of weights, early stopping:
# everything that draws or counts. Rows of metrics, validations and checkpoints all come at other steps, and together.
WHOLE = [
    "trainer.max_steps=9",
    "model.dropout=0.1",
    "data.cfg_dropout=0.3",
    "data.crop_seconds=0.6",
    "data.global_batch_size=4",
    "data.micro_batch_size=2",
    "trainer.log_every_n_steps=4",
    "validate_every=2",
    "callbacks.last.every_n_train_steps=3",
    "callbacks=ema_early_stopping",
    "+callbacks.drawn._target_=drawing_callback.Drawn",
]
TIMED = {"tokens_per_s", "audio_s_per_s", "data_wait", "peak_mem_mb"}


class KilledError(Exception):
    """Stands for the end of the process."""


def checkpoint_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def numbers_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name not in TIMED} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs are made, one after the other, since checkpoints have paths in them; the first is kept beside."""
    return tmp_path_factory.mktemp("runs") / "run"


def die_at(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int, *, after: bool = False) -> None:
    """Die in a call of a method, counted from 1, before or after what it does."""
    original, calls = getattr(owner, method), 0

    def call_or_die(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise KilledError
        result = original(*args, **kwargs)
        if calls == call:
            raise KilledError
        return result

    monkeypatch.setattr(owner, method, call_or_die)


MOMENTS = {
    "in the second micro-batch of a step": (MusicgenTraining, "training_step", 10, False),
    "before the row of a step": (MetricsFile, "log_metrics", 4, False),
    "in a validation, at a checkpoint": (MusicgenTraining, "validation_step", 9, False),
    "before a checkpoint": (LastCheckpoint, "_save", 2, False),
    "after a checkpoint": (LastCheckpoint, "_save", 2, True),
    "after the last checkpoint": (LastCheckpoint, "_save", 3, True),
}


@pytest.mark.parametrize(("moment", "workers"), [(moment, number % 2) for number, moment in enumerate(MOMENTS)])
def test_killed_and_resumed_equals_never_killed(
    run_with: RunWith, place: Path, monkeypatch: pytest.MonkeyPatch, moment: str, workers: int
) -> None:
    straight = place.with_name("straight")
    if not straight.exists():
        run_with(place, *WHOLE)
        place.rename(straight)
    shutil.rmtree(place, ignore_errors=True)
    owner, method, call, after = MOMENTS[moment]
    with monkeypatch.context() as patch:
        die_at(patch, owner, method, call, after=after)
        with pytest.raises(KilledError):
            run_with(place, *WHOLE)
    assert checkpoint_of(place)["global_step"] in (3, 6, 9)
    run_with(place, *WHOLE, "resume=auto", f"data.workers={workers}")

    expected, found = checkpoint_of(straight), checkpoint_of(place)
    assert expected["global_step"] == found["global_step"] == 9
    for content in (expected, found):
        del content["callbacks"]["Speed"]  # seconds
        # Lightning counts the validation before a checkpoint once more where it skips it; nothing follows from that.
        del content["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
        for name, state in content["callbacks"].items():
            if name.startswith("ModelCheckpoint"):
                del state["current_score"]  # Lightning does not restore it, nor needs it
    assert differences(expected, found) == []
    assert numbers_of(straight) == numbers_of(place)
