"""The script that measures how cost grows, with models of next to no size."""

from __future__ import annotations

import benchmark_growth
import pytest


def test_a_table_has_a_line_for_each_value(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--size", "test", "--only", "layers", "--largest", "4", "--repeats", "1"]
    assert benchmark_growth.main([*options, "--new-tokens", "9"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines] == ["layers", "---", "2", "4"]
    for line in lines[2:]:
        step, rate, generation, frames = (float(cell.split()[0].replace(",", "")) for cell in line.split("|")[2:6])
        assert step > 0
        # A row of 11 frames and a generation of 9 steps, 6 of which give a frame; printed in whole milliseconds.
        assert rate * step / 1000 == pytest.approx(11, rel=0.2, abs=0.6 * rate / 1000)
        assert frames * generation * 9 / 1000 == pytest.approx(6, rel=0.2)


def test_values_that_cannot_be_measured_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark_growth.main(["--repeats", "0"])
    assert "must be 1 or more" in capsys.readouterr().err
