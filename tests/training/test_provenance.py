"""What a run's folder and its model card say of where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import RunWith

from musicgen_train.data.latent_dataset import LatentDataset
from musicgen_train.training.logs.origin import describe_amounts
from musicgen_train.training.module import MusicgenTraining

STEPS = ["trainer.max_steps=4", "callbacks.last.every_n_train_steps=2", "validate_every=4"]


class BrokenError(Exception):
    """Stands for anything that ends a run."""


def read(run: Path) -> dict[str, Any]:
    return json.loads((run / "provenance.json").read_text())


def test_every_start_of_a_run_is_kept(run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def break_in_step_four(self: MusicgenTraining, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            raise BrokenError("it broke")

    with monkeypatch.context() as patch:
        patch.setattr(MusicgenTraining, "on_train_batch_start", break_in_step_four)
        with pytest.raises(BrokenError):
            run_with(run, *STEPS)
    [start] = read(run)["starts"]
    assert (start["from_step"], start["step"], start["outcome"]) == (0, 3, "BrokenError: it broke")

    run_with(run, *STEPS, "resume=auto", "data.global_batch_size=3")
    first, second = read(run)["starts"]
    assert first == start
    assert (second["from_step"], second["step"], second["outcome"]) == (2, 4, "finished")
    assert (start["global_batch_size"], second["global_batch_size"]) == (2, 3)
    assert second["devices"] == 1
    assert second["ended"] >= second["started"]


def test_the_record_names_the_data_and_the_card_has_it(run_with: RunWith, latents: Path, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", *STEPS)
    found = read(tmp_path / "run")
    [data] = found["latents"]
    assert data["path"] == str(latents)
    assert data["fingerprint"] == LatentDataset(latents, "train").fingerprint()
    assert data["splits"]["train"]["clips"] == 11
    assert {"command", "started", "seed", "git", "versions", "machine", "init_from", "base", "encoders"} <= found.keys()
    card = (made.composite / "README.md").read_text()
    recorded = json.loads(card.partition("```json")[2].partition("```")[0])
    assert recorded["latents"] == [data]
    assert recorded["starts"][0]["outcome"] == "finished"


def test_amounts_in_words() -> None:
    splits = {"train": {"clips": 7, "tracks": 2, "hours": 0.1}, "validation": {"clips": 3, "tracks": 1, "hours": 0.05}}
    one = {"path": "data/own", "share": 1.0, "splits": splits}
    words = "train 7 clips of 2 tracks (0.10 h), validation 3 clips of 1 tracks (0.05 h)"
    assert describe_amounts([one]) == words
    mixed = [{**one, "share": 0.7}, {**one, "path": "prior", "share": 0.3}]
    assert describe_amounts(mixed) == f"70.0% from own: {words}; 30.0% from prior: {words}"
