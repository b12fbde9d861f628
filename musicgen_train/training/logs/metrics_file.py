"""`metrics.csv`: all numbers of a run in one file."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from musicgen_train.files import write_atomically
from musicgen_train.training.logs.speed import SPEED_COLUMNS
from musicgen_train.training.run_folder import METRICS_NAME
from musicgen_train.training.step.health import HEALTH_COLUMNS
from musicgen_train.training.step.scores import metric_names


def columns(num_codebooks: int, losses: Iterable[str] = ()) -> list[str]:
    """All columns of the file; `losses` are the names of the validation losses of the datasets in a mix."""
    scores = [*metric_names("train", num_codebooks), *metric_names("val", num_codebooks), *losses]
    return ["step", "epoch", *scores, "lr", "grad_norm", *HEALTH_COLUMNS, *SPEED_COLUMNS]


class MetricsFile(Logger):
    """Writes `metrics.csv`: a row per logged step and a row per validation, with empty fields for the other's columns.

    Each row is written at once, and flushed to the disk before a checkpoint says that its step is done. A resumed run
    goes on in the same file: rows after the step that it resumes at are removed, because their steps are made again,
    and a validation that is made again has one row. (Lightning's own `CSVLogger` starts a new file.)

    Args:
        folder: the run's folder.
        columns: the columns of the file, in order; see `columns`.
        resumed_step: keep the rows up to this step; None starts a new file.
    """

    def __init__(self, folder: str | os.PathLike[str], columns: Sequence[str], resumed_step: int | None = None) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS_NAME
        self._columns = list(columns)
        self._resumed_step = resumed_step
        self._started = False
        self._validated_steps: set[int] = set()

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's folder has its config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row.

        Raises:
            ValueError: there is no column for a metric.
        """
        self._start()
        if step is not None and any(name.startswith("val/") for name in metrics):
            if step in self._validated_steps:
                return
            self._validated_steps.add(step)
        # The numbers come from float32 tensors: further digits would be rounding errors.
        row = {"step": step, **{name: f"{value:.7g}" for name, value in metrics.items()}}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def save(self) -> None:
        """Flush the rows to the disk."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _start(self) -> None:
        if self._started:
            return
        kept: list[dict[str, str]] = []
        if self._resumed_step is not None and self.path.is_file():
            kept = [row for row in _whole_rows(self.path) if int(row["step"]) <= self._resumed_step]
        self._validated_steps = {int(row["step"]) for row in kept if row.get("val/loss")}
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_atomically(self.path, text.getvalue())
        self._started = True


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """All complete rows: the last one may have been cut off, as on a full disk."""
    whole, newline, _ = path.read_bytes().decode("utf-8", errors="replace").rpartition("\n")
    return list(csv.DictReader(io.StringIO(whole + newline, newline="")))


def numbers_at(path: Path, step: int) -> dict[str, float]:
    """The latest value of each column up to a step; columns without a value are left out."""
    found: dict[str, float] = {}
    for row in _whole_rows(path) if path.is_file() else []:
        if int(row["step"]) <= step:
            found |= {name: float(value) for name, value in row.items() if value}
    return found
