"""Learning-rate schedules over a number of steps that the config states.

The number is not taken from the trainer: reading Lightning's `estimated_stepping_batches` while the optimizer is set up
makes a resumed run lose its place in the data (lightning#20550).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(kw_only=True)
class ScheduleSettings:
    """The shape of the learning rate over a run, relative to its peak."""

    shape: str
    """After warm-up: `cosine` or `linear` down to `floor`, or `constant`."""
    warmup_steps: int | None
    """Steps of linear warm-up; None takes a fortieth of the run."""
    floor: float
    """The learning rate at the end, as a share of the peak; `constant` has none."""

    def __post_init__(self) -> None:
        if self.shape not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule.shape is {self.shape!r}; allowed are cosine, linear, constant")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {self.warmup_steps}; it must be 0 or more, or null")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"schedule.floor is {self.floor}; it must be 0 to 1, a share of the peak")

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of `total_steps`."""
        return total_steps // 40 if self.warmup_steps is None else self.warmup_steps

    def factor(self, step: int, total_steps: int) -> float:
        """The learning rate of a step as a share of the peak; the first step is number 0.

        A warm-up does not start at 0, where a step would change nothing. The floor would be reached at
        `step == total_steps`, one step after the last.
        """
        warmup = self.warmup(total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.shape == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        left = 1 - progress if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.floor + (1 - self.floor) * left


def make_schedule(
    settings: ScheduleSettings, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Make torch's scheduler, which is stepped once per optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.factor(step, total_steps))
