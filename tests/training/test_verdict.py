"""What becomes of a step, decided from its numbers alone: made, left out, or the end of the run."""

from __future__ import annotations

import math

import pytest
import torch

from musicgen_train.training.step.health import Health, HealthSettings, NotFinite, UnhealthyRunError
from musicgen_train.training.step.verdict import StepNumbers, Verdict, judge_step, measure_step

NAN, INF = math.nan, math.inf


def judged(
    health: Health, loss: float, norm: float, scale: float | None = None, faults: NotFinite | None = None
) -> Verdict:
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    finite = math.isfinite(loss) and math.isfinite(norm)
    return judge_step(
        7,
        StepNumbers(loss, norm, finite),
        health,
        scaler,
        clips=lambda: ["a.wav"],
        faults=lambda: faults or NotFinite(gradients=["fc1"]),
    )


def test_a_finite_step_is_made_and_its_norm_logged() -> None:
    health = Health(HealthSettings())
    assert judged(health, 4.0, 2.5) == Verdict(True, {"grad_norm": 2.5})
    assert (health.skipped, health.scaler_skips) == (0, 0)


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (4.0, INF), (4.0, NAN)])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_a_step_that_is_not_finite_is_left_out(
    loss: float, norm: float, scale: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    health = Health(HealthSettings())
    verdict = judged(health, loss, norm, scale)
    assert not verdict.is_made
    assert math.isnan(verdict.metrics["grad_norm"])
    assert (health.skipped, health.scaler_skips) == (1, 0)
    assert capsys.readouterr().err.startswith("step 7 left out (1 in a row, 1 in all): ")


def test_a_scaler_that_lowers_its_scale_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    health = Health(HealthSettings(max_skipped=1))
    assert not judged(health, 4.0, INF, scale=65536.0).is_made
    assert (health.skipped, health.scaler_skips) == (0, 1)
    assert capsys.readouterr().err == ""
    # No scale makes a loss finite that is not.
    with pytest.raises(UnhealthyRunError):
        judged(health, NAN, INF, scale=65536.0)


def test_broken_weights_stop_the_run_at_once() -> None:
    with pytest.raises(UnhealthyRunError, match=r"stopped at step 7: the weights of fc2 are not finite"):
        judged(Health(HealthSettings()), NAN, NAN, faults=NotFinite(weights=["fc2"]))


def test_a_step_is_measured_with_one_look() -> None:
    norm, loss = torch.tensor(3.0, dtype=torch.float64), torch.tensor(2.0)
    assert measure_step(loss, norm) == StepNumbers(2.0, 3.0, finite=True)
    assert not measure_step(loss, torch.tensor(INF)).finite
    assert not measure_step(torch.tensor(NAN), norm).finite
