"""metrics.csv: every column, every row, also over a resume."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from musicgen_train.training.logs.metrics_file import MetricsFile, columns


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_columns_in_order() -> None:
    names = columns(2)
    assert names == [
        *("step", "epoch"),
        *("train/loss", "train/ce_q1", "train/ce_q2", "train/ppl_q1", "train/ppl_q2", "train/acc_q1", "train/acc_q2"),
        *("val/loss", "val/ce_q1", "val/ce_q2", "val/ppl_q1", "val/ppl_q2", "val/acc_q1", "val/acc_q2"),
        *(
            "lr",
            "grad_norm",
            "skipped_steps",
            "scaler_skips",
            "train/loss_spike",
            "tokens_per_s",
            "audio_s_per_s",
            "data_wait",
            "peak_mem_mb",
        ),
    ]


def test_rows_are_written_at_once(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, columns(1))
    file.log_metrics({"train/loss": 1.25, "epoch": 0.5}, step=10)
    assert [row["train/loss"] for row in rows(tmp_path)] == ["1.25"]
    file.log_metrics({"val/loss": 1e-7}, step=10)
    assert [(row["step"], row["train/loss"], row["val/loss"]) for row in rows(tmp_path)] == [
        ("10", "1.25", ""),
        ("10", "", "1e-07"),
    ]


def test_a_resumed_run_goes_on_from_its_step(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path, columns(1))
    for step in (10, 20, 30):
        first.log_metrics({"train/loss": float(step)}, step=step)
    resumed = MetricsFile(tmp_path, columns(1), resumed_step=20)
    resumed.log_metrics({"train/loss": 31.0}, step=30)
    assert [(row["step"], row["train/loss"]) for row in rows(tmp_path)] == [("10", "10"), ("20", "20"), ("30", "31")]


def test_a_row_that_was_cut_off_goes_away(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path, columns(1))
    for step in (10, 20):
        first.log_metrics({"train/loss": float(step)}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")  # of step 15, as a full disk leaves it
    MetricsFile(tmp_path, columns(1), resumed_step=20).log_metrics({"train/loss": 30.0}, step=30)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20", "30"]


def test_a_validation_that_is_made_again_has_one_row(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path, columns(1))
    first.log_metrics({"train/loss": 1.0}, step=10)
    first.log_metrics({"val/loss": 2.0}, step=10)
    resumed = MetricsFile(tmp_path, columns(1), resumed_step=10)
    resumed.log_metrics({"val/loss": 2.0}, step=10)
    resumed.log_metrics({"val/loss": 3.0}, step=20)
    assert [(row["step"], row["val/loss"]) for row in rows(tmp_path)] == [("10", ""), ("10", "2"), ("20", "3")]


def test_a_new_run_begins_anew(tmp_path: Path) -> None:
    MetricsFile(tmp_path, columns(1)).log_metrics({"train/loss": 1.0}, step=1)
    MetricsFile(tmp_path, columns(1)).log_metrics({"train/loss": 2.0}, step=1)
    assert [row["train/loss"] for row in rows(tmp_path)] == ["2"]


def test_a_number_without_a_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train/los"):
        MetricsFile(tmp_path, columns(1)).log_metrics({"train/los": 1.0}, step=1)
