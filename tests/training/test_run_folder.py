"""Where a run goes on, and what is said where it cannot."""

from __future__ import annotations

import csv
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_latents import ClipSpec, write_composite, write_latents
from tiny_run import TRAIN, VALIDATION, RunWith, compose

from musicgen_train.hub.weights import CheckpointError
from musicgen_train.training.logs.loggers import make_logger
from musicgen_train.training.run_folder import make_ready, open_run
from musicgen_train.training.settings import read_settings

SIX = ["trainer.max_steps=6", "callbacks.last.every_n_train_steps=2", "schedule=constant", "validate_every=3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made") / "run"


@pytest.fixture
def six_steps(made: Path, run_with: RunWith, tmp_path: Path) -> Path:
    """A run of six steps, of which 6 and 4 are saved, moved to another place."""
    if not made.exists():
        run_with(made, *SIX)
        # It may be of the last step too.
        (made / "checkpoints/best.ckpt").unlink()
    return shutil.copytree(made, tmp_path / "run")


def weights_of(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    run_with: RunWith, made: Path, six_steps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = six_steps / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    capsys.readouterr()
    again = run_with(six_steps, *SIX, "resume=auto")
    printed = capsys.readouterr().out
    assert f"warning: {last} is cut short, or no checkpoint at all; it is now last.ckpt.damaged" in printed
    assert f"goes on from {six_steps}/checkpoints/previous.ckpt" in printed
    assert again.trainer.global_step == 6
    expected, found = weights_of(made / "checkpoints/last.ckpt"), weights_of(last)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    with (six_steps / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == list("123456")
    # Not the damaged one, which the next save would otherwise have kept in its place.
    assert torch.load(six_steps / "checkpoints/previous.ckpt", weights_only=True)["global_step"] == 4


def test_where_all_are_damaged_nothing_begins_anew(run_with: RunWith, six_steps: Path) -> None:
    for checkpoint in (six_steps / "checkpoints").iterdir():
        checkpoint.write_bytes(b"")
    before = sorted(path.relative_to(six_steps) for path in six_steps.rglob("*"))
    with pytest.raises(CheckpointError, match=r"has no checkpoint that can be used: .*last\.ckpt is cut short.*backup"):
        run_with(six_steps, *SIX, "resume=auto")
    assert sorted(path.relative_to(six_steps) for path in six_steps.rglob("*")) == before


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(run_with: RunWith, six_steps: Path, tmp_path: Path) -> None:
    last = six_steps / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"is cut short.*; the newest beside it that is intact is .*previous\.ckpt"
    ):
        run_with(tmp_path / "other", *SIX, f"resume={last}")
    assert not (tmp_path / "other").exists()


def test_a_run_that_was_asked_for_goes_on_from_its_newest(run_with: RunWith, six_steps: Path, tmp_path: Path) -> None:
    assert open_run(tmp_path / "other", str(six_steps)).checkpoint == six_steps / "checkpoints/last.ckpt"
    last = six_steps / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    opened = open_run(tmp_path / "other", str(six_steps))
    assert opened.checkpoint == six_steps / "checkpoints/previous.ckpt"
    [line] = make_ready(tmp_path / "other", opened)
    assert re.match(r"warning: .*last\.ckpt is cut short.*; the run goes on from .*previous\.ckpt$", line)
    assert last.exists(), "another run's is left alone"
    with pytest.raises(FileNotFoundError, match=r"resume=\S+ is a folder and no run; give auto, a checkpoint, or"):
        open_run(tmp_path / "other", str(six_steps / "checkpoints"))


def test_what_killed_saves_have_left_is_removed(six_steps: Path) -> None:
    left = [six_steps / "checkpoints/.saving-last.ckpt", six_steps / ".saving-config.yaml"]
    for path in left:
        path.write_bytes(b"half")
    opened = open_run(six_steps, "auto")
    assert opened.checkpoint == six_steps / "checkpoints/last.ckpt"
    assert all(path.exists() for path in left), "only looked at"
    lines = make_ready(six_steps, opened)
    assert lines == [f"removed {left[0]}, which a killed run has left"]
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize(
    "left",
    [
        [".saving-provenance.json"],
        ["provenance.json", "uncommitted-0123456789ab.patch"],
        ["provenance.json", ".saving-config.yaml"],
    ],
)
def test_a_run_that_was_killed_in_its_first_moment_begins_anew(
    tmp_path: Path, left: list[str], resume: str | None
) -> None:
    for name in left:
        (tmp_path / name).write_text("")
    assert open_run(tmp_path, resume).checkpoint is None


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=r"output=.* cannot be written \(Permission denied\); choose a folder"):
        make_ready(tmp_path / "run", open_run(tmp_path / "run", None))


def test_a_folder_that_cannot_be_made_is_refused() -> None:
    output = Path("/proc/1/run")  # not even for root
    with pytest.raises(OSError, match=r"output=/proc/1/run cannot be written \(.+\); choose a folder"):
        make_ready(output, open_run(output, None))


def test_a_checkpoint_of_another_model_is_refused(
    run_with: RunWith, six_steps: Path, composite: Path, tmp_path: Path
) -> None:
    other = write_composite(tmp_path / "other", num_hidden_layers=3, ffn_dim=36)
    before = (six_steps / "config.yaml").read_bytes()
    with pytest.raises(
        ValueError, match=r"is of another decoder: ffn_dim is 28, here 36, num_hidden_layers is 2, here 3\. Go on with"
    ):
        run_with(six_steps, *SIX, "resume=auto", f"init_from={other}", f"encoders={composite}")
    assert (six_steps / "config.yaml").read_bytes() == before


def test_a_checkpoint_of_other_data_is_refused(
    run_with: RunWith, six_steps: Path, composite: Path, tmp_path: Path
) -> None:
    other = write_latents(tmp_path / "latents", composite, [*TRAIN, ClipSpec(30)], VALIDATION)
    with pytest.raises(ValueError, match=r"the run to resume has clips=\[11\], this one \[12\]"):
        run_with(six_steps, *SIX, "resume=auto", f"data.path={other}")


def test_weights_alone_are_no_run_to_go_on_with(run_with: RunWith, six_steps: Path, tmp_path: Path) -> None:
    content = torch.load(six_steps / "checkpoints/last.ckpt", weights_only=True)
    del content["optimizer_states"]
    torch.save(content, tmp_path / "weights.ckpt")
    with pytest.raises(CheckpointError, match=r"weights\.ckpt is no checkpoint of scripts/train\.py, or holds weights"):
        run_with(six_steps, *SIX, f"resume={tmp_path}/weights.ckpt")


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.trace),))


def test_a_checkpoint_with_code_in_it_is_not_executed(run_with: RunWith, six_steps: Path, tmp_path: Path) -> None:
    last, trace = six_steps / "checkpoints/last.ckpt", tmp_path / "executed"
    content = torch.load(last, weights_only=True)
    torch.save({**content, "callbacks": {"LastCheckpoint": Hostile(trace)}}, last)
    with pytest.raises(CheckpointError, match=r"last\.ckpt holds more than tensors and plain values, e\.g\. Py"):
        run_with(six_steps, *SIX, f"resume={last}")
    again = run_with(six_steps, *SIX, "resume=auto")
    assert again.trainer.global_step == 6
    assert not trace.exists()
    torch.load(last.with_name("last.ckpt.damaged"), weights_only=False)
    assert trace.exists(), "the file would have executed its code"


def test_a_run_that_was_moved_knows_its_best(run_with: RunWith, tmp_path: Path) -> None:
    # So large a step that it only gets worse.
    worse = ["optimizer.lr=1", "schedule=constant", "validate_every=1"]
    run_with(tmp_path / "run", *worse, "trainer.max_steps=2")
    (tmp_path / "run").rename(tmp_path / "moved")
    best = (tmp_path / "moved/checkpoints/best.ckpt").read_bytes()
    moved = run_with(tmp_path / "moved", *worse, "trainer.max_steps=3", "resume=auto")
    assert moved.trainer.checkpoint_callback.best_model_path == f"{tmp_path}/moved/checkpoints/best.ckpt"
    assert (tmp_path / "moved/checkpoints/best.ckpt").read_bytes() == best


def test_wandb_is_given_the_same_id(tmp_path: Path) -> None:
    given = ["data.path=LATENTS", "init_from=MODEL", "trainer.max_steps=1", "logger=wandb", f"output={tmp_path}"]
    [make] = read_settings(compose("train", *given)).loggers
    first, second = (make_logger(make, tmp_path) for _ in range(2))
    assert first.version == second.version == (tmp_path / "wandb_run_id.txt").read_text()
    [make] = read_settings(compose("train", *given, "logger.wandb.id=mine")).loggers
    assert make_logger(make, tmp_path).version == "mine"


@pytest.mark.heavy
def test_wandb_goes_on_with_the_same_run(run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    for steps, resume in ((2, []), (4, ["resume=auto"])):
        run_with(tmp_path / "run", "logger=wandb", "schedule=constant", f"trainer.max_steps={steps}", *resume)
        wandb.teardown()
    ids = {path.name.rpartition("-")[2] for path in (tmp_path / "run/wandb").glob("offline-run-*")}
    assert ids == {(tmp_path / "run/wandb_run_id.txt").read_text()}
