"""Models and runs compute what they did when the golden values were written, with the C code and without it.

On the machine that wrote them everything is exactly equal. The tolerances are for other processors, whose sums round
otherwise; codes are equal everywhere: `make_golden.py` refuses codes that float64 would choose differently.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from golden_inputs import GOLDEN
from golden_numbers import C_CODE, all_numbers, c_code_is_loaded, numbers_without_c_code
from golden_training import RUNS, STEPS, train

EXPECTED: dict[str, np.ndarray] = dict(np.load(GOLDEN / "numbers.npz"))
ANEW = "if that is meant: python tests/golden/make_golden.py numbers"
TOLERANCE = 1e-4
TOLERANCE_OF_STATES = 1e-5


@pytest.fixture(scope="module", params=["with C code", "without"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    if request.param == "without":
        numbers = numbers_without_c_code(tmp_path_factory.mktemp("numbers"))
        assert not numbers.pop(C_CODE)
        return numbers
    numbers = all_numbers()
    assert c_code_is_loaded() or not any(map(shutil.which, ("cc", "gcc", "clang")))
    return numbers


def test_there_are_the_same_numbers(found: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_numbers_are_what_they_were(name: str, found: dict[str, np.ndarray]) -> None:
    expected = EXPECTED[name]
    assert found[name].shape == expected.shape
    tolerance = TOLERANCE_OF_STATES if name == "text/states" else TOLERANCE
    if expected.dtype == np.int64:
        assert np.array_equal(found[name], expected), f"{name} has other codes; {ANEW}"
    else:
        np.testing.assert_allclose(found[name], expected, rtol=tolerance, atol=tolerance, err_msg=ANEW)


@pytest.mark.parametrize("name", RUNS)
def test_training_is_what_it_was(name: str, tmp_path: Path) -> None:
    expected = [line.split(",") for line in (GOLDEN / f"training_{name}.csv").read_text().splitlines()]
    found = [line.split(",") for line in train(name, tmp_path / "run").splitlines()]
    header, *rows = expected
    assert found[0] == header, ANEW
    assert sum(bool(row[header.index("train/loss")]) for row in rows[: STEPS + 2]) == STEPS
    for before, now in zip(rows, found[1:], strict=True):
        assert [_kind(value) for value in now] == [_kind(value) for value in before], ANEW
        values, given = ([float(value) for value in row if _kind(value) == "number"] for row in (before, now))
        assert given == pytest.approx(values, rel=TOLERANCE, abs=1e-6), f"{before[0]}; {ANEW}"


def _kind(value: str) -> str:
    """`number`, or the text itself where it is none."""
    try:
        float(value)
    except ValueError:
        return value
    return "number"
