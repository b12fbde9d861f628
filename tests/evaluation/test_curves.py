"""Reading `metrics.csv` and drawing it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from musicgen_train.evaluation.report.curves import (
    Chart,
    Curve,
    charts_of_run,
    draw_chart,
    read_metrics,
    thin_out,
    ticks,
)


def test_cells_that_are_empty_or_not_finite_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,epoch,train/loss,val/loss\n1,0,4.5,\n2,0,nan,\n2,0,,5.0\n3,0,inf,\n4,0,3.5,\n4,1,3.25,\n,0,9,9\n"
    )
    assert read_metrics(tmp_path / "metrics.csv") == {
        "epoch": [(1, 0), (2, 0), (3, 0), (4, 1)],
        "train/loss": [(1, 4.5), (4, 3.25)],
        "val/loss": [(2, 5.0)],
    }


def test_a_file_without_steps(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("loss\n1\n")
    with pytest.raises(ValueError, match="no column 'step'"):
        read_metrics(tmp_path / "metrics.csv")


def test_charts_of_a_run(training_run: Path) -> None:
    charts = charts_of_run(read_metrics(training_run / "metrics.csv"))
    assert [chart.title for chart in charts] == [
        "Loss",
        "Cross-entropy per codebook, validation",
        "Cross-entropy per codebook, training",
        "Learning rate",
        "Gradient norm",
    ]
    assert [curve.label for curve in charts[0].curves] == ["training", "validation"]
    # Codebook 2 has no finite value in validation.
    assert [curve.label for curve in charts[1].curves] == ["codebook 1"]
    assert charts_of_run({"train/loss": [(1.0, 2.0)]}) == []


def test_codebooks_are_in_numerical_order() -> None:
    points = [(1.0, 1.0), (2.0, 2.0)]
    (chart,) = charts_of_run({f"val/ce_q{number}": points for number in (10, 2, 1)})
    assert [curve.label for curve in chart.curves] == ["codebook 1", "codebook 2", "codebook 10"]


def test_the_drawing() -> None:
    chart = Chart(
        title='A <"chart">',
        curves=[
            Curve(label="first", points=[(0, 1.0), (50, 3.0), (100, 2.0)]),
            Curve(label="single", points=[(100, 2.5)], colour=9),
            Curve(label="empty", points=[]),
        ],
    )
    root = ElementTree.fromstring(draw_chart(chart))
    assert root.get("aria-label") == 'A <"chart"> over training steps: first from 1 to 2; single from 2.5 to 2.5'
    (line,) = root.findall("polyline")
    points = [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
    left, middle, right = points
    # Steps go to the right evenly, values up.
    assert middle[0] - left[0] == pytest.approx(right[0] - middle[0], abs=0.2)
    assert left[1] - right[1] == pytest.approx(right[1] - middle[1], abs=0.2)
    assert left[1] > right[1] > middle[1]
    (dot,) = root.findall("circle")
    assert dot.get("class") == "dot dot-1"
    labels = [text.text for text in root.findall("text")]
    assert {"0", "100", "1", "3"} <= set(labels)


@pytest.mark.parametrize("points", [[(1, 5.0), (2, 5.0)], [(7, 0.0), (7, 0.0)], [(1, 1e-6), (2000, 3e-6)], [(1, -2.0)]])
def test_flat_and_tiny_curves(points: list[tuple[float, float]]) -> None:
    drawn = draw_chart(Chart(title="flat", curves=[Curve(label="flat", points=points)]))
    assert not re.search("nan|inf", drawn)
    ElementTree.fromstring(drawn)


def test_long_curves_are_thinned_out() -> None:
    points = [(float(step), 2.0 * step) for step in range(10_001)]
    thin = thin_out(points)
    assert len(thin) == 300
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    # Means of a line lie on it.
    assert all(value == pytest.approx(2 * step) for step, value in thin)
    assert thin_out(points[:300]) == points[:300]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1.3, 7.6, [0, 2, 4, 6, 8]), (-0.3, 0.9, [-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)
