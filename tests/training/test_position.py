"""A run that goes on with other devices, micro-batches or another global batch: the same clips, none twice."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_latents import ClipSpec, write_latents
from tiny_run import QUICK, TRAIN, VALIDATION, RunWith, compose

from musicgen_train.data.batch import Batch
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.run import run

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
# Plain gradient descent in float64: a step is the same however it is split, to rounding.
PLAIN = [
    *("optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0", "trainer.gradient_clip_val=null"),
    *("trainer.precision=64-true", "schedule=constant", "data.global_batch_size=4", "data.crop_seconds=0.6"),
    *("data.cfg_dropout=0.3", "validate_every=3"),
]
WHOLE, PART = "trainer.max_steps=6", "trainer.max_steps=3"


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The clips of every training batch, as they come."""
    clips: list[tuple[int, int]] = []
    step = MusicgenTraining.training_step

    def recording_step(self: MusicgenTraining, batch: Batch, batch_idx: int) -> torch.Tensor:
        clips.extend(batch.clips)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(MusicgenTraining, "training_step", recording_step)
    return clips


def assert_same_weights(one: Path, other: Path) -> None:
    expected, found = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, other))
    assert expected["global_step"] == found["global_step"] == 6
    for name, value in expected["state_dict"].items():
        # Lightning reads a checkpoint into the float32 model that it then makes float64.
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (2, 1)])
def test_a_run_goes_on_with_other_micro_batches(
    run_with: RunWith, tmp_path: Path, trained_on: list[tuple[int, int]], before: int, after: int
) -> None:
    run_with(tmp_path / "straight", *PLAIN, WHOLE)
    straight = trained_on.copy()
    trained_on.clear()
    run_with(tmp_path / "run", *PLAIN, PART, f"data.micro_batch_size={before}")
    run_with(tmp_path / "run", *PLAIN, WHOLE, f"data.micro_batch_size={after}", "resume=auto")
    assert trained_on == straight
    assert_same_weights(tmp_path / "straight", tmp_path / "run")


def test_a_run_goes_on_with_another_global_batch(
    run_with: RunWith, tmp_path: Path, trained_on: list[tuple[int, int]]
) -> None:
    run_with(tmp_path / "run", *PLAIN, PART)
    run_with(tmp_path / "run", *PLAIN, "trainer.max_steps=6", "data.global_batch_size=7", "resume=auto")
    # 3 steps of 4 and 3 of 7 are 3 passes over 11 clips.
    assert Counter(trained_on) == {(0, row): 3 for row in range(11)}
    done = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["LatentDataModule"]["done"]
    assert done == [[3, 4], [3, 7]]


@pytest.mark.heavy
def test_a_run_of_two_processes_goes_on_in_one(
    run_with: RunWith, composite: Path, latents: Path, tmp_path: Path
) -> None:
    run_with(tmp_path / "straight", *PLAIN, WHOLE)
    where = [f"data.path={latents}", f"init_from={composite}", f"output={tmp_path / 'run'}"]
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.micro_batch_size=1"]
    command = [sys.executable, "-W", "error", str(SCRIPT), *where, *QUICK, *PLAIN, PART, *two]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run_with(tmp_path / "run", *PLAIN, WHOLE, "resume=auto")
    assert_same_weights(tmp_path / "straight", tmp_path / "run")


def test_a_mix_is_trained_and_each_part_validated_on(
    run_with: RunWith, composite: Path, latents: Path, tmp_path: Path
) -> None:
    prior = write_latents(tmp_path / "prior", composite, [ClipSpec(30)] * 6, [ClipSpec(25)], seed=3)
    still = ["optimizer.lr=0", "trainer.max_steps=2", "validate_every=2"]
    mix = f"data.mix=[{{path: {latents}, weight: 0.75}}, {{path: {prior}, weight: 0.25}}]"
    where = ["data=mix", mix, f"init_from={composite}", f"output={tmp_path / 'run'}"]
    made = run(compose("train", *where, *QUICK, *still))
    assert len(made.data.train_clips.frames) == len(TRAIN) + 6
    assert (made.composite / "model.safetensors").is_file()
    found = validated(tmp_path / "run")
    for name, folder in (("latents", latents), ("prior", prior)):
        run_with(tmp_path / f"only_{name}", f"data.path={folder}", *still)
        assert found[f"val/loss_{name}"] == pytest.approx(validated(tmp_path / f"only_{name}")["val/loss"], rel=1e-6)
    assert found["val/loss_latents"] != found["val/loss_prior"]
    # All codes count alike: 3 clips of 69 frames, and 1 of 25.
    scored = [sum(spec.frames for spec in VALIDATION), 25]
    both = scored[0] * found["val/loss_latents"] + scored[1] * found["val/loss_prior"]
    assert found["val/loss"] == pytest.approx(both / sum(scored), abs=0.002)


def validated(run: Path) -> dict[str, float]:
    """The last numbers of a run's validation."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    return {name: float(value) for name, value in rows[-1].items() if name.startswith("val/") and value}


def test_a_mix_has_to_be_given() -> None:
    # scripts/train.py asks for what is missing by its name.
    assert "data.mix" in OmegaConf.missing_keys(compose("train", "output=x", "data=mix"))
    assert "data.path" in OmegaConf.missing_keys(compose("train", "output=x"))
