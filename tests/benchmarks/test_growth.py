"""The script that measures how cost grows, with models of next to no size."""

from __future__ import annotations

import dataclasses

import benchmark_plan
import growth
import pytest

TEST = ["--device", "cpu", "--size", "test", "--repeats", "1"]


def test_a_table_has_a_line_for_each_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main([*TEST, "--only", "layers", "--largest", "4", "--new-tokens", "9"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines] == ["layers", "---", "2", "4"]
    for line in lines[2:]:
        step, rate, generation, frames = (float(cell.split()[0].replace(",", "")) for cell in line.split("|")[2:6])
        assert step > 0
        # A row of 11 frames and a generation of 9 steps, 6 of which give a frame; printed in whole milliseconds.
        assert rate * step / 1000 == pytest.approx(11, rel=0.2, abs=0.6 * rate / 1000)
        assert frames * generation * 9 / 1000 == pytest.approx(6, rel=0.2)


@pytest.mark.parametrize("codebooks", [4, 8])
def test_a_generation_gives_the_frames_of_its_line(monkeypatch: pytest.MonkeyPatch, codebooks: int) -> None:
    size = benchmark_plan.SIZES["test"]
    decoder = {**size.decoder, "num_codebooks": codebooks}
    monkeypatch.setitem(benchmark_plan.SIZES, "test", dataclasses.replace(size, decoder=decoder))
    plan = benchmark_plan.Plan.of(growth.parse(TEST))
    for point in growth.points("frames", plan, largest=500):
        assert dataclasses.replace(plan, new_tokens=point.new_tokens).new_frames == point.frames


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--repeats", "0"], "--repeats: 0 is given; allowed are whole numbers from 1"),
        (["--threads", "-1"], "--threads: -1 is given; allowed are whole numbers from 1"),
        (["--largest", "x"], "--largest: x is given; allowed are whole numbers from 1"),
        (["--new-tokens", "0"], "--new-tokens: 0 is given; allowed are whole numbers from 1"),
        (["--new-tokens", "3"], "--new-tokens 3: the delay of 4 codebooks needs 4 at least"),
        (["--only", "texts"], "invalid choice: 'texts'"),
    ],
)
def test_values_that_cannot_be_measured_are_refused(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        growth.main(options)
    assert stopped.value.code == 2
    assert problem in capsys.readouterr().err
