"""The line that says how far a run is."""

from __future__ import annotations

from pathlib import Path

from tiny_run import RunWith

from musicgen_train.training.logs.progress_bar import ProgressBar

SHOWN = [
    "trainer.enable_progress_bar=true",
    "+callbacks.progress._target_=musicgen_train.training.logs.progress_bar.ProgressBar",
    "data.global_batch_size=4",
    "data.micro_batch_size=2",
]


def test_the_bar_counts_the_whole_run_also_where_it_goes_on(run_with: RunWith, tmp_path: Path) -> None:
    counted = []
    for settings in (["trainer.max_steps=2"], ["trainer.max_steps=5", "resume=auto"]):
        bar = run_with(tmp_path / "run", *SHOWN, *settings).trainer.progress_bar_callback
        assert isinstance(bar, ProgressBar)
        line = bar.train_progress_bar
        counted.append((line.initial, line.n, line.total))
    # Two micro-batches a step.
    assert counted == [(0, 4, 4), (4, 10, 10)]
