"""The curves of a training run from its `metrics.csv`, drawn as SVG.

Lines take their colours from CSS classes (`line-0` to `line-7`), so that the page decides how they look.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from musicgen_train.evaluation.report.templates import render

COLOURS = 8
"""The page has this many colours; further curves begin with the first again."""

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 34
_MOST_POINTS = 300
_STEP = "step"


@dataclass(kw_only=True)
class Curve:
    """One column of the metrics over the steps of the run."""

    label: str
    points: list[tuple[float, float]]
    """Step and value; only finite ones, in order of steps."""
    colour: int = 0


@dataclass(kw_only=True)
class Chart:
    """Curves that share axes."""

    title: str
    curves: list[Curve]
    note: str = ""


def read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Each column of a `metrics.csv` as points (step, value), without cells that are empty or not finite.

    Raises:
        ValueError: the file has no column `step`.
    """
    columns: dict[str, dict[float, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if _STEP not in (reader.fieldnames or []):
            raise ValueError(f"{path} has no column {_STEP!r}: it is no metrics.csv of a training run")
        for row in reader:
            step = _number(row[_STEP])
            if step is None:
                continue
            for name, cell in row.items():
                value = _number(cell)
                if name is not None and name != _STEP and value is not None:
                    # A resumed run may have written a step again; the later value counts.
                    columns.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in columns.items()}


def charts_of_run(metrics: dict[str, list[tuple[float, float]]]) -> list[Chart]:
    """Charts of loss, cross-entropy per codebook, learning rate and gradient norm: those that have a curve to show."""
    charts = [
        Chart(
            title="Loss",
            note="Cross-entropy in nats, mean over codebooks. Validation going up while training goes down is "
            "overfitting.",
            curves=_curves(metrics, {"train/loss": "training", "val/loss": "validation"}),
        ),
        *(
            Chart(
                title=f"Cross-entropy per codebook, {name}",
                note="The first codebook carries the coarse sound and is learned first; later ones hold detail that is "
                "hard to predict.",
                curves=[
                    Curve(label=f"codebook {number}", points=metrics[column], colour=number - 1)
                    for number, column in _codebooks(metrics, f"{part}/ce_q")
                ],
            )
            for part, name in (("val", "validation"), ("train", "training"))
        ),
        Chart(title="Learning rate", curves=_curves(metrics, {"lr": "learning rate"})),
        Chart(
            title="Gradient norm",
            note="Before clipping. Spikes are usual, a lasting rise is a warning.",
            curves=_curves(metrics, {"grad_norm": "gradient norm"}),
        ),
    ]
    return [chart for chart in charts if any(len(curve.points) > 1 for curve in chart.curves)]


def draw_chart(chart: Chart) -> Markup:
    """The chart as an `svg` element, with a text alternative that gives each curve's first and last value."""
    curves = [curve for curve in chart.curves if curve.points]
    thinned = [thin_out(curve.points) for curve in curves]
    steps = [step for points in thinned for step, _ in points]
    values = [value for points in thinned for _, value in points]
    x_ticks, y_ticks = ticks(min(steps), max(steps), 6), ticks(min(values), max(values), 5)
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    y_low, y_high = min(y_ticks[0], *values), max(y_ticks[-1], *values)

    def x(step: float) -> float:
        return _LEFT + (step - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (y_high - value) / ((y_high - y_low) or 1) * (_HEIGHT - _TOP - _BOTTOM)

    described = "; ".join(
        f"{curve.label} from {curve.points[0][1]:.3g} to {curve.points[-1][1]:.3g}" for curve in curves
    )
    return render(
        "chart.svg.j2",
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        description=f"{chart.title} over training steps: {described}",
        y_ticks=[(y(tick), f"{tick:.4g}") for tick in y_ticks],
        x_ticks=[(x(tick), _steps(tick)) for tick in x_ticks if x_low <= tick <= x_high],
        curves=[
            (curve.colour % COLOURS, [(x(step), y(value)) for step, value in points])
            for curve, points in zip(curves, thinned, strict=True)
        ],
    )


def thin_out(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Reduce to at most 300 points, each the mean of its neighbours; the first and the last stay as they are."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    inner = points[1:-1]
    bins = _MOST_POINTS - 2
    means = []
    for number in range(bins):
        part = inner[number * len(inner) // bins : (number + 1) * len(inner) // bins]
        means.append((sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)))
    return [points[0], *means, points[-1]]


def ticks(low: float, high: float, about: int) -> list[float]:
    """About `about` round, evenly spaced numbers; the first is at or below `low`, the last at or above `high`."""
    if high <= low:
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _curves(metrics: dict[str, list[tuple[float, float]]], wanted: dict[str, str]) -> list[Curve]:
    return [
        Curve(label=label, points=metrics[column], colour=colour)
        for colour, (column, label) in enumerate(wanted.items())
        if column in metrics
    ]


def _codebooks(metrics: dict[str, list[tuple[float, float]]], prefix: str) -> list[tuple[int, str]]:
    found = ((re.fullmatch(re.escape(prefix) + r"(\d+)", name), name) for name in metrics)
    return sorted((int(match[1]), name) for match, name in found if match is not None)


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _steps(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
