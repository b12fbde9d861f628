"""What does not change a run: how its steps are split, and doing it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import QUICK, RunWith

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"

# Plain gradient descent: a difference in gradients is a difference in weights of the same size, not hidden by AdamW.
PLAIN = [
    "optimizer=sgd",
    "optimizer.lr=0.5",
    "optimizer.momentum=0",
    "trainer.gradient_clip_val=null",
    "trainer.precision=64-true",
    "data.global_batch_size=4",
    "data.cfg_dropout=0.3",
    "trainer.max_steps=3",
    "data.validation_clips=0",
]


def weights(run_with: RunWith, output: Path, *overrides: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run_with(output, *overrides).module.state_dict().items()}


def test_a_batch_of_four_equals_four_of_one(run_with: RunWith, tmp_path: Path) -> None:
    # Clips of different lengths, some without a caption: the counts of the parts differ.
    whole = weights(run_with, tmp_path / "whole", *PLAIN)
    started = weights(run_with, tmp_path / "none", *PLAIN, "optimizer.lr=0")
    for micro in (1, 2):
        parts = weights(run_with, tmp_path / f"parts{micro}", *PLAIN, f"data.micro_batch_size={micro}")
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-12)
    moved = max((whole[name] - started[name]).abs().max().item() for name in whole)
    assert moved > 1e-3  # not because nothing happens


def test_two_processes_equal_one(run_with: RunWith, composite: Path, poisoned: Path, tmp_path: Path) -> None:
    # Two micro-batches each, clipping that bites, and a clip that makes both of them leave a step out.
    with_validation = [*PLAIN, "data.validation_clips=3", "trainer.gradient_clip_val=0.1", f"data.path={poisoned}"]
    alone = run_with(tmp_path / "alone", *with_validation)
    assert 0 < alone.module.health.skipped < 3
    where = [f"init_from={composite}", f"output={tmp_path / 'two'}"]
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.micro_batch_size=1"]
    # The second process is this command again, started by Lightning.
    command = [sys.executable, "-W", "error", str(SCRIPT), *where, *QUICK, *with_validation, *two]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "two/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in alone.module.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    assert done.stdout.count("done: 3 steps") == 1
    assert done.stderr.count("left out (") == alone.module.health.skipped
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("alone", "two")]
    assert len(rows[0]) == len(rows[1])
    for one, both in zip(rows[0][1:], rows[1][1:], strict=True):  # all but the timings, the last four
        numbers = [[float(cell or 0) for cell in row.split(",")[:-4]] for row in (one, both)]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-5, nan_ok=True)


def test_a_mean_of_means_would_have_been_seen(
    run_with: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(run_with, tmp_path / "whole", *PLAIN)

    def own_counts(frames: torch.Tensor, delays: list[int]) -> torch.Tensor:
        return (torch.full((4,), int(frames.float().mean()))[:, None] - torch.tensor(delays)).clamp(min=0).sum(dim=0)

    monkeypatch.setattr("musicgen_train.training.module.counts_of", own_counts)
    parts = weights(run_with, tmp_path / "parts", *PLAIN, "data.micro_batch_size=1")
    assert max((parts[name] - value).abs().max().item() for name, value in whole.items()) > 1e-6


def test_the_same_seed_gives_the_same_weights_to_the_bit(run_with: RunWith, tmp_path: Path) -> None:
    drawing = ["model.dropout=0.2", "data.crop_seconds=0.5", "data.cfg_dropout=0.3", "init_from=scratch"]
    size = ["model=tiny", "model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1"]
    one, again, other = (
        weights(run_with, tmp_path / name, *drawing, *size, f"seed={seed}")
        for name, seed in (("one", 3), ("again", 3), ("other", 4))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "norm" not in name)
