"""Learning rates, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from musicgen_train.training.step.schedule import ScheduleSettings, make_schedule


def settings(shape: str = "cosine", warmup_steps: int | None = 4, floor: float = 0.0) -> ScheduleSettings:
    return ScheduleSettings(shape=shape, warmup_steps=warmup_steps, floor=floor)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_and_never_zero(shape: str) -> None:
    assert [settings(shape).factor(step, 20) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_after_it_each_shape_by_hand() -> None:
    # 16 steps after 4 of warm-up; step 12 is half of the way.
    assert settings("cosine").factor(8, 20) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert settings("cosine").factor(12, 20) == pytest.approx(0.5)
    assert settings("linear").factor(8, 20) == pytest.approx(0.75)
    assert settings("constant").factor(19, 20) == 1.0
    assert settings("cosine", floor=0.1).factor(12, 20) == pytest.approx(0.55)
    assert settings("linear", floor=0.2).factor(20, 20) == pytest.approx(0.2)
    assert settings("linear").factor(99, 20) == 0.0  # a run that is made longer than its schedule stays at the end


def test_warm_up_is_a_fortieth_where_nobody_says() -> None:
    assert settings(warmup_steps=None).warmup(1000) == 25
    assert settings(warmup_steps=None).warmup(10) == 0
    assert settings(warmup_steps=0).factor(0, 10) == 1.0


def test_it_drives_an_optimizer() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedule = make_schedule(settings("linear", 1), optimizer, 5)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.375, 0.25, 0.125])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": "cosin"}, r"schedule\.shape is 'cosin'; allowed are cosine, linear, constant"),
        ({"warmup_steps": -1}, r"schedule\.warmup_steps is -1"),
        ({"floor": 1.5}, r"schedule\.floor is 1\.5"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        settings(**changes)  # type: ignore[arg-type]
