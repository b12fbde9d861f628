"""Samples and tables of numbers, as `results.json` and the report hold them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from musicgen_train.evaluation.requests import Kind
from musicgen_train.metrics.signal_statistics import SignalStatistics

Unit = Literal["nats", "percent", "number", "count", "decibels", "hertz"]


@dataclass(kw_only=True)
class AudioRecord:
    """An audio file of the report."""

    file: str
    """Relative to the report's folder."""
    seconds: float
    gain_db: float
    """The change of level, so that it does not clip or has the loudness asked for."""
    signal: SignalStatistics
    warnings: list[str]


@dataclass(kw_only=True)
class SampleRecord:
    """A generated sample."""

    kind: Kind
    index: int
    text: str
    guidance_scale: float
    repetition: int
    seed: int
    """The seed of its `torch.Generator`."""
    prompt_seconds: float
    """Length of the audio at its start that it continues."""
    origin: dict[str, Any]
    audio: AudioRecord
    reference: AudioRecord | None
    """The recording that the text belongs to, through the codec."""


@dataclass(kw_only=True)
class MetricRow:
    """A line of a table."""

    label: str
    values: dict[str, float | None]
    """By column."""
    meaning: str = ""
    """Explains the row to the reader, in plain words."""
    unit: Unit | None = None
    """Its unit where that differs from the columns'."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals by column, where they are known."""


@dataclass(kw_only=True)
class Column:
    """A column of a table."""

    name: str
    unit: Unit = "number"
    meaning: str = ""


@dataclass(kw_only=True)
class MetricTable:
    """One block of numbers. A further measurement is one more of these."""

    key: str
    """Its name in `results.json`; changes with the method, so that unlike numbers are not compared."""
    title: str
    explanation: str
    """Says what is measured, in plain words."""
    columns: list[Column]
    rows: list[MetricRow]
    findings: list[str] = field(default_factory=list)
    """Conclusions from the numbers, in plain words."""
    bars: bool = False
    """Show percentages as bars, too."""

    def as_json(self) -> dict[str, Any]:
        """The table by names of rows and columns."""
        intervals = {row.label: row.intervals for row in self.rows if row.intervals}
        return {
            "title": self.title,
            "explanation": self.explanation,
            "columns": {column.name: column.meaning for column in self.columns},
            "rows": {row.label: row.values for row in self.rows},
            "findings": self.findings,
            **({"intervals": intervals} if intervals else {}),
        }


def json_value(value: Any) -> Any:
    """Convert to what JSON knows: dataclasses become objects, NaN and infinity null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: json_value(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
