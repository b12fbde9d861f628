"""The end of a run: stopped early, made longer, killed on the way to its export, exported with the best weights."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from omegaconf import OmegaConf
from tiny_run import RunWith

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.doctor.run_state import look_at_run
from musicgen_train.evaluation.model import load_model
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.training import export
from musicgen_train.training.early_stopping import EarlyStopping
from musicgen_train.training.weights.model_source import ModelSource, find_model

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


@pytest.mark.parametrize(
    ("reason", "settings", "still"),
    [
        ("NOT_STOPPED", {}, False),
        ("STOPPING_THRESHOLD", {"stopping_threshold": 0.5}, True),
        ("STOPPING_THRESHOLD", {}, False),
        ("DIVERGENCE_THRESHOLD", {"divergence_threshold": 9.0}, True),
        ("DIVERGENCE_THRESHOLD", {}, False),
        ("PATIENCE_EXHAUSTED", {"patience": 2}, True),
        ("PATIENCE_EXHAUSTED", {"patience": 3}, False),
        ("NON_FINITE_METRIC", {}, True),
        ("NON_FINITE_METRIC", {"check_finite": False}, False),
    ],
)
def test_a_reason_holds_while_its_setting_does(reason: str, settings: dict[str, Any], still: bool) -> None:
    state = {"stopping_reason": EarlyStoppingReason[reason].value, "wait_count": 2}
    assert EarlyStopping("val/loss", **settings).has_ended(state) is still


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (EarlyStoppingReason.PATIENCE_EXHAUSTED, "a larger callbacks.early_stopping.patience"),
        (EarlyStoppingReason.NON_FINITE_METRIC, "an earlier checkpoint"),
        (EarlyStoppingReason.STOPPING_THRESHOLD, "callbacks=default"),
    ],
)
def test_the_way_on_is_that_of_its_reason(reason: EarlyStoppingReason, advice: str) -> None:
    callback = EarlyStopping("val/loss")
    callback.stopping_reason = reason
    assert advice in callback.way_on


def test_best_weights_that_nobody_has_kept_yet(run_with: RunWith, tmp_path: Path) -> None:
    run_with(tmp_path / "run", "~callbacks.best")
    with pytest.raises(ValueError, match=r"has kept no checkpoint; the same command with resume=auto export"):
        run_with(tmp_path / "run", "resume=auto", "export.weights=best")


def test_the_doctor_executes_nothing_that_a_config_names(run_with: RunWith, tmp_path: Path) -> None:
    run_with(tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    content = OmegaConf.load(config)
    content.callbacks.hostile = {"_target_": "os.mkdir", "path": str(tmp_path / "trace")}
    OmegaConf.save(content, config)
    assert "finished; its model is" in "\n".join(finding.what for finding in look_at_run(tmp_path / "run"))
    assert not (tmp_path / "trace").exists()


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


def test_what_a_longer_run_has_exported_before_is_no_longer_the_run(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, longer = tmp_path / "run", ["schedule=constant", "optimizer.lr=0.05", "resume=auto"]
    run_with(run, *longer, "trainer.max_steps=2")
    earlier = state_of(run / "composite")
    assert find_model(str(run), "model").folder == str(run / "composite")
    longer.append("trainer.max_steps=4")
    with monkeypatch.context() as patch:
        patch.setattr("musicgen_train.training.run.export", _die)
        with pytest.raises(KilledError):
            run_with(run, *longer)

    # Whoever reads the run now gets its newest weights, with the encoders that the earlier end has left.
    source = find_model(str(run), "model")
    assert source == ModelSource(folder=str(run / "composite"), checkpoint=run / "checkpoints/last.ckpt", run=run)
    newest = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    found = load_model(source).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in newest.items())
    assert "has gone on from step 2" in (run / "composite-is-outdated.txt").read_text()
    assert "finished, and the model is not there" in "\n".join(finding.what for finding in look_at_run(run))
    # The folder itself is what it was: other runs may have their encoders from there.
    assert all(torch.equal(state_of(run / "composite")[name], value) for name, value in earlier.items())

    made = run_with(run, *longer)
    assert not (run / "composite-is-outdated.txt").exists()
    assert find_model(str(run), "model").folder == str(run / "composite")
    exported = state_of(made.composite)
    assert all(torch.equal(exported[name], value) for name, value in newest.items())
    run_with(run, *longer)
    assert not (run / "composite-is-outdated.txt").exists(), "nothing was left to train"


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

    def differs(*_: object, **__: object) -> None:
        raise CheckpointError("other tensors")

    monkeypatch.setattr(export, "compare_with_folder", differs)
    with pytest.raises(CheckpointError, match="other tensors"):
        run_with(tmp_path / "run", "resume=auto", "seed=0")
    assert {path.name: path.read_bytes() for path in made.composite.iterdir()} == before


def test_a_callback_that_is_null_is_left_out(run_with: RunWith, tmp_path: Path) -> None:
    run_with(tmp_path / "run", "+callbacks.progress=null", "callbacks.best=null")
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()
