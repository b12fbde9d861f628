"""A run's numbers as one CSV file."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from musicgen_train.training.scores import metric_names
from musicgen_train.training.speed import NAMES as SPEED_NAMES

METRICS_NAME = "metrics.csv"


def columns(num_codebooks: int) -> list[str]:
    """All columns of the file."""
    scores = [*metric_names("train", num_codebooks), *metric_names("val", num_codebooks)]
    return ["step", "epoch", *scores, "lr", "grad_norm", *SPEED_NAMES]


class MetricsFile(Logger):
    """Writes `metrics.csv`: a row per logged step, and a row per validation; what a row does not have is empty.

    Every row is on disk at once. A run that is resumed goes on in the file from the step it resumes at: rows beyond
    it, of steps that are made again, go away. (Lightning's own `CSVLogger` begins a file anew.)

    Args:
        folder: the run's.
        columns: of the file, in order; see `columns`.
        resumed_step: keep the rows up to this step; None starts anew.
    """

    def __init__(self, folder: str | os.PathLike[str], columns: Sequence[str], resumed_step: int | None = None) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS_NAME
        self._columns = list(columns)
        self._resumed_step = resumed_step
        self._started = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run's folder has its config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row.

        Raises:
            ValueError: a metric has no column.
        """
        self._start()
        # They come from float32 tensors: more digits would be those of its rounding.
        row = {"step": step, **{name: f"{value:.7g}" for name, value in metrics.items()}}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _start(self) -> None:
        if self._started:
            return
        kept: list[dict[str, str]] = []
        if self._resumed_step is not None and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= self._resumed_step]
        partial = self.path.with_suffix(".part")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(kept)
        partial.replace(self.path)
        self._started = True
