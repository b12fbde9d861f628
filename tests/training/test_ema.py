"""The moving average: its value, who sees it, and that it survives an interruption."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import RunWith

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.weights.ema import EMA

EVERY_STEP = ["optimizer.lr=0.02", "callbacks=ema", "callbacks.ema.decay=0.7", "trainer.max_steps=6"]


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """What the weights were after each optimizer step."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    end = MusicgenTraining.on_train_batch_end

    def watch(self: MusicgenTraining, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen[self.global_step] = {name: value.detach().clone() for name, value in self.named_parameters()}
        end(self, outputs, batch, batch_idx)

    monkeypatch.setattr(MusicgenTraining, "on_train_batch_end", watch)
    return seen


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return dict(MusicgenForConditionalGeneration.from_pretrained(folder).state_dict())


@pytest.mark.parametrize("every", [1, 2])
def test_the_average_is_what_is_exported(
    run_with: RunWith, tmp_path: Path, weights: dict[int, dict[str, torch.Tensor]], every: int
) -> None:
    made = run_with(tmp_path / "run", *EVERY_STEP, f"callbacks.ema.every_n_steps={every}")
    found = exported(made.composite)
    assert sorted(weights) == [1, 2, 3, 4, 5, 6]
    for name in weights[1]:
        # Written out: begun with the first weights, then 0.7 of the old and 0.3 of the new.
        average = weights[every][name].double()
        for step in range(2 * every, 7, every):
            average = 0.7 * average + 0.3 * weights[step][name].double()
        torch.testing.assert_close(found[name].double(), average, rtol=1e-6, atol=1e-7)
        assert not torch.equal(found[name], weights[6][name])


def test_checkpoints_have_both(run_with: RunWith, tmp_path: Path, weights: dict[int, dict[str, torch.Tensor]]) -> None:
    made = run_with(tmp_path / "run", *EVERY_STEP)
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    average = exported(made.composite)
    for name, value in weights[6].items():
        assert torch.equal(checkpoint["current_model_state"][name], value)
        assert torch.equal(checkpoint["state_dict"][name], average[name])


def test_the_average_is_validated_and_the_best_of_it_exported(
    run_with: RunWith, tmp_path: Path, weights: dict[int, dict[str, torch.Tensor]]
) -> None:
    made = run_with(tmp_path / "run", *EVERY_STEP, "validate_every=2", "export.weights=best", "optimizer.lr=1")
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    step = best["global_step"]
    with (tmp_path / "run/metrics.csv").open() as file:
        losses = {int(row["step"]): float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]}
    assert min(losses, key=losses.__getitem__) == step < 6
    found = exported(made.composite)
    assert all(torch.equal(found[name], value) for name, value in best["state_dict"].items())
    # The exported model has the loss that validation found, the weights of that step another one.
    assert validate(made.module, found, made) == pytest.approx(losses[step], rel=1e-5)
    assert validate(made.module, weights[step], made) != pytest.approx(losses[step], rel=1e-3)


def validate(module: MusicgenTraining, state: dict[str, torch.Tensor], made: Any) -> float:
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    clips = made.data.validation_clips
    with torch.no_grad():
        first, *others = [module.eval().score(clips[rows]) for rows in clips.batches(2)]
    return float(sum(others, start=first).loss)


def test_the_average_is_sampled(run_with: RunWith, tmp_path: Path) -> None:
    # A run that starts from a checkpoint of another samples its average first.
    samples = ["samples.every=2", "samples.seconds=0.4"]
    run_with(tmp_path / "run", *EVERY_STEP, *samples, "trainer.max_steps=4")
    between = tmp_path / "run/checkpoints/previous.ckpt"
    assert torch.load(between, weights_only=True)["global_step"] == 2
    run_with(tmp_path / "again", *samples, f"init_from={between}", "trainer.max_steps=1")
    for prompt in range(3):
        found = (tmp_path / f"run/samples/step_0000002/prompt_{prompt}.wav").read_bytes()
        assert found == (tmp_path / f"again/samples/step_0000000/prompt_{prompt}.wav").read_bytes()


def test_training_is_what_it_is_without(run_with: RunWith, tmp_path: Path) -> None:
    drawing = ["model.dropout=0.1", "validate_every=1", "samples.every=2", "samples.seconds=0.2"]
    run_with(tmp_path / "with", *EVERY_STEP, *drawing)
    without = run_with(tmp_path / "without", *drawing, "optimizer.lr=0.02", "trainer.max_steps=6").module.state_dict()
    current = torch.load(tmp_path / "with/checkpoints/last.ckpt", weights_only=True)["current_model_state"]
    assert all(torch.equal(current[name], value) for name, value in without.items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_average_is_exact(run_with: RunWith, tmp_path: Path, accumulate: int) -> None:
    settings = [*EVERY_STEP, "schedule=constant", f"data.micro_batch_size={2 // accumulate}"]
    straight = run_with(tmp_path / "straight", *settings)
    run_with(tmp_path / "run", *settings, "trainer.max_steps=3", "validate_every=2")
    resumed = run_with(tmp_path / "run", *settings, "resume=auto")
    for name, value in exported(straight.composite).items():
        assert torch.equal(exported(resumed.composite)[name], value), name
    one, other = (
        torch.load(tmp_path / f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("straight", "run")
    )
    assert one["averaging_state"] == other["averaging_state"]
    assert all(torch.equal(other["current_model_state"][name], v) for name, v in one["current_model_state"].items())


def test_a_checkpoint_gives_its_average_to_a_new_run(run_with: RunWith, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", *EVERY_STEP)
    start = f"init_from={tmp_path}/run/checkpoints/last.ckpt"
    again = run_with(tmp_path / "again", start, "optimizer.lr=0")
    average = exported(made.composite)
    assert all(torch.equal(average[name], value) for name, value in exported(again.composite).items())


def test_steps_that_were_left_out_do_not_count(run_with: RunWith, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", *EVERY_STEP)
    [average] = [callback for callback in made.trainer.callbacks if isinstance(callback, EMA)]
    kept = {name: value.clone() for name, value in average._average_model.state_dict().items()}
    average._latest_update_step = 0
    made.module.step_was_skipped = True
    average.on_train_batch_end(made.trainer, made.module, None, None, 0)
    assert all(torch.equal(kept[name], value) for name, value in average._average_model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"decay": 1.0}, "decay of EMA is 1.0"), ({"decay": 0.9, "every_n_steps": 0}, "every_n_steps of EMA is 0")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        EMA(**settings)
