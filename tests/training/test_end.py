"""The end of a run: stopped early, made longer, killed on the way to its export, exported with the best weights."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import RunWith

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.doctor.run_state import look_at_run
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.training import export

# So large a step that it only gets worse: one validation without a lower loss is enough.
WORSE = ["optimizer.lr=1", "schedule=constant", "validate_every=1", "trainer.max_steps=9"]
STOPS_EARLY = [*WORSE, "callbacks=early_stopping", "callbacks.early_stopping.patience=2"]


class KilledError(Exception):
    """Stands for the end of the process."""


def _die(*_: object, **__: object) -> None:
    raise KilledError


def step_of(run: Path, name: str = "last") -> int:
    return int(torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["global_step"])


def state_of(composite: Path) -> dict[str, torch.Tensor]:
    return dict(MusicgenForConditionalGeneration.from_pretrained(composite).state_dict())


def numbers_of_card(composite: Path) -> dict[str, float]:
    card = (composite / "README.md").read_text()
    return {name: float(value) for name, value in re.findall(r"^\| (\S+/\S+) \| ([-\d.]+) \|$", card, re.M)}


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def killed_before_export(run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped early, and killed before it had written its model."""
    with monkeypatch.context() as patch:
        patch.setattr("musicgen_train.training.run.export", _die)
        with pytest.raises(KilledError):
            run_with(tmp_path / "run", *STOPS_EARLY)
    return tmp_path / "run"


def test_a_run_that_was_stopped_early_stays_stopped(
    run_with: RunWith, killed_before_export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed_before_export
    stopped_at = step_of(run)
    assert stopped_at < 9
    before = rows_of(run)
    weights = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]

    made = run_with(run, *STOPS_EARLY, "resume=auto")
    assert made.trainer.global_step == step_of(run) == stopped_at
    assert rows_of(run) == before
    found = state_of(made.composite)
    assert all(torch.equal(found[name], value) for name, value in weights.items() if name in found)
    assert re.search(
        rf"^stopped early, after step {stopped_at}: .* did not improve in the last 2 records\. Best score: [\d.]+\. To "
        r"train on, give the same command with resume=auto and a larger callbacks\.early_stopping\.patience$",
        capsys.readouterr().out,
        re.M,
    )
    starts = json.loads((run / "provenance.json").read_text())["starts"]
    assert [start["outcome"] for start in starts] == ["stopped early", "stopped early"]


def test_its_export_is_that_of_a_run_that_was_not_killed(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged = [*STOPS_EARLY, "callbacks=ema_early_stopping", "callbacks.ema.decay=0.5"]
    expected = state_of(run_with(tmp_path / "straight", *averaged).composite)
    monkeypatch.setattr("musicgen_train.training.run.export", _die)
    with pytest.raises(KilledError):
        run_with(tmp_path / "run", *averaged)
    monkeypatch.undo()
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] < 9
    found = state_of(run_with(tmp_path / "run", *averaged, "resume=auto").composite)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_more_patience_lets_it_go_on(run_with: RunWith, killed_before_export: Path) -> None:
    stopped_at = step_of(killed_before_export)
    longer = [*STOPS_EARLY, "callbacks.early_stopping.patience=4"]
    assert run_with(killed_before_export, *longer, "resume=auto").trainer.global_step == stopped_at + 2


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # Lightning names what was left out
def test_without_early_stopping_it_goes_on(run_with: RunWith, killed_before_export: Path) -> None:
    assert run_with(killed_before_export, *WORSE, "resume=auto").trainer.global_step == 9


def test_the_doctor_knows_that_it_was_stopped_early(killed_before_export: Path) -> None:
    said = "\n".join(finding.what for finding in look_at_run(killed_before_export))
    assert "stopped early, and the model is not there" in said
    assert "can go on" not in said


def test_stopping_at_the_last_step_is_no_early_stop(
    run_with: RunWith, killed_before_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = step_of(killed_before_export)
    capsys.readouterr()
    run_with(tmp_path / "other", *STOPS_EARLY, f"trainer.max_steps={last}")
    assert "stopped early" not in capsys.readouterr().out


def test_what_a_longer_run_has_exported_before_is_put_aside(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    lora = ["adapter=lora", "schedule=constant"]
    run_with(run, *lora, "trainer.max_steps=2")
    earlier = state_of(run / "composite")
    with monkeypatch.context() as patch:
        patch.setattr("musicgen_train.training.run.export", _die)
        with pytest.raises(KilledError):
            run_with(run, *lora, "trainer.max_steps=4", "resume=auto")
    # Whoever reads the run now gets its newest weights, not those of the earlier end.
    assert not (run / "composite").exists()
    assert not (run / "adapter").exists()
    kept = state_of(run / "composite-before-step-3")
    assert all(torch.equal(kept[name], value) for name, value in earlier.items())
    assert (run / "adapter-before-step-3/adapter_model.safetensors").is_file()
    run_with(run, *lora, "trainer.max_steps=4", "resume=auto")
    assert (run / "composite/config.json").is_file()
    assert not (run / "composite-before-step-5").exists(), "nothing was left to train"


def test_a_second_export_from_the_same_step_gets_another_name(run_with: RunWith, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_with(run, "schedule=constant", "trainer.max_steps=2")
    shutil.copy(run / "checkpoints/last.ckpt", tmp_path / "two.ckpt")
    for _ in range(2):
        run_with(run, "schedule=constant", "trainer.max_steps=3", f"resume={tmp_path / 'two.ckpt'}")
    assert {path.name for path in run.glob("composite*")} == {
        *("composite", "composite-before-step-3", "composite-before-step-3.1")
    }


def test_the_card_has_the_numbers_of_the_weights_that_were_exported(run_with: RunWith, tmp_path: Path) -> None:
    made = run_with(tmp_path / "run", *WORSE, "export.weights=best")
    best = step_of(tmp_path / "run", "best")
    assert best < 9
    [row] = [row for row in rows_of(tmp_path / "run") if row["step"] == str(best) and row["val/loss"]]
    numbers = numbers_of_card(made.composite)
    assert numbers["val/loss"] == pytest.approx(float(row["val/loss"]), abs=1e-4)
    [row] = [row for row in rows_of(tmp_path / "run") if row["step"] == str(best) and row["train/loss"]]
    assert numbers["train/loss"] == pytest.approx(float(row["train/loss"]), abs=1e-4)
    assert f"trained for {best} steps" in (made.composite / "README.md").read_text()


def test_a_run_that_is_resumed_at_its_end_has_the_same_card(run_with: RunWith, tmp_path: Path) -> None:
    expected = numbers_of_card(run_with(tmp_path / "run").composite)
    again = numbers_of_card(run_with(tmp_path / "run", "resume=auto").composite)
    assert again == expected
    assert {"train/loss", "val/loss", "val/ce_q1"} <= set(expected)


@pytest.mark.parametrize("override", ["~callbacks.best", "callbacks.best=null", "callbacks.best.monitor=null"])
def test_best_weights_need_who_keeps_them(run_with: RunWith, tmp_path: Path, override: str) -> None:
    with pytest.raises(ValueError, match=r"export\.weights=best exports what callbacks\.best has kept"):
        run_with(tmp_path / "run", "export.weights=best", override)
    assert not (tmp_path / "run").exists()


def test_best_weights_are_found_where_they_are_kept(run_with: RunWith, tmp_path: Path) -> None:
    elsewhere = [f"callbacks.best.dirpath={tmp_path}/kept", "callbacks.best.filename=mine"]
    made = run_with(tmp_path / "run", *WORSE, "export.weights=best", *elsewhere)
    best = torch.load(tmp_path / "kept/mine.ckpt", weights_only=True)["state_dict"]
    found = state_of(made.composite)
    assert all(torch.equal(found[name], value) for name, value in best.items() if name in found)


def test_an_export_that_is_read_back_otherwise_replaces_nothing(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_with(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in made.composite.iterdir()}

    def differs(*_: object) -> None:
        raise CheckpointError("other tensors")

    monkeypatch.setattr(export, "compare_with_folder", differs)
    with pytest.raises(CheckpointError, match="other tensors"):
        run_with(tmp_path / "run", "resume=auto", "seed=0")
    assert {path.name: path.read_bytes() for path in made.composite.iterdir()} == before


def test_a_callback_that_is_null_is_left_out(run_with: RunWith, tmp_path: Path) -> None:
    run_with(tmp_path / "run", "+callbacks.progress=null", "callbacks.best=null")
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()
