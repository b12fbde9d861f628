"""A run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import RunWith

from musicgen_train.training.module import MusicgenTraining

# Dropout, caption dropout, random crops, a schedule, accumulated micro-batches: everything that draws or counts.
WHOLE = [
    "trainer.max_steps=7",
    "model.dropout=0.1",
    "data.cfg_dropout=0.3",
    "data.crop_seconds=0.6",
    "data.global_batch_size=4",
    "data.micro_batch_size=2",
    "validate_every=2",
    "callbacks.last.every_n_train_steps=3",
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
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("straight") / "run"


def run_and_die(run_with: RunWith, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die within the fifth step, after its first micro-batch; the last checkpoint is of the third."""
    start = MusicgenTraining.on_train_batch_start

    def start_or_die(self: MusicgenTraining, batch: Any, batch_idx: int) -> None:
        if batch_idx == 9:
            raise KilledError
        start(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(MusicgenTraining, "on_train_batch_start", start_or_die)
        with pytest.raises(KilledError):
            run_with(output, *WHOLE)
    assert checkpoint_of(output)["global_step"] == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_never_killed(
    run_with: RunWith, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    if not straight.exists():
        run_with(straight, *WHOLE)
    halved = tmp_path / "run"
    run_and_die(run_with, halved, monkeypatch)
    run_with(halved, *WHOLE, "resume=auto", f"data.workers={workers}")

    expected, found = checkpoint_of(straight), checkpoint_of(halved)
    assert expected["global_step"] == found["global_step"] == 7
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, found["state_dict"][name]), name
    for number, moments in expected["optimizer_states"][0]["state"].items():
        assert torch.equal(moments["exp_avg_sq"], found["optimizer_states"][0]["state"][number]["exp_avg_sq"])
    assert numbers_of(straight) == numbers_of(halved)
