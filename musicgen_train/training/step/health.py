"""The health of a run: counts of the steps that were left out, spikes of the loss, and the lines that tell of them.

`verdict.py` decides which steps are left out.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from musicgen_train.training.logs.console import warn
from musicgen_train.training.step.collectives import local_part

# Columns of metrics.csv; see `Health.metrics`.
HEALTH_COLUMNS = ("skipped_steps", "scaler_skips", "train/loss_spike")
# Before so many losses are known, none is called a spike.
_FEWEST_LOSSES = 20
# The standard deviation of normally distributed numbers, as a multiple of their median absolute deviation.
_DEVIATIONS = 1.4826
# Nats. Once a model has learned its clips by heart the losses hardly differ, and everything would be a spike.
_SMALLEST_DEVIATION = 1e-3


@dataclass(kw_only=True)
class HealthSettings:
    """When a run is stopped, and what is called a spike."""

    max_skipped_in_a_row: int = 5
    """The run stops after so many steps in a row that were not finite."""
    max_skipped: int = 100
    """The run stops after so many such steps in all."""
    spike_threshold: float = 10.0
    """A loss so many robust standard deviations above the median of those before it is a spike."""
    spike_window: int = 200
    """The median and the deviation are those of so many losses before it."""

    def __post_init__(self) -> None:
        for name in ("max_skipped_in_a_row", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"health.{name} is {getattr(self, name)}; it must be 1 or more steps")
        if self.spike_threshold <= 0:
            raise ValueError(f"health.spike_threshold is {self.spike_threshold:g}; it must be above 0")
        if self.spike_window < _FEWEST_LOSSES:
            raise ValueError(f"health.spike_window is {self.spike_window}; it must be {_FEWEST_LOSSES} or more steps")


class UnhealthyRunError(ValueError):
    """A run was stopped because its numbers are not finite; what it had saved before is intact."""


@dataclass(kw_only=True)
class NotFinite:
    """What is not finite in a step, as far as one rank knows; `+` joins what two ranks know."""

    codebooks: list[int] = field(default_factory=list)
    """Codebooks whose losses are not finite, counted from 1."""
    gradients: list[str] = field(default_factory=list)
    """Parameters whose gradients are not finite."""
    weights: list[str] = field(default_factory=list)
    """Parameters whose values are not finite."""
    clips: list[str] = field(default_factory=list)
    """Clips of the micro-batches whose loss is not finite; of all micro-batches where every loss is."""

    def __add__(self, other: NotFinite) -> NotFinite:
        return NotFinite(
            codebooks=sorted({*self.codebooks, *other.codebooks}),
            gradients=list(dict.fromkeys([*self.gradients, *other.gradients])),
            weights=list(dict.fromkeys([*self.weights, *other.weights])),
            clips=[*self.clips, *other.clips],
        )

    def __str__(self) -> str:
        if self.codebooks:
            what = f"the loss of {', '.join(f'q{number}' for number in self.codebooks)} is not finite"
        elif self.gradients:
            what = f"the loss is finite, the gradient of {some_of(self.gradients)} is not"
        else:
            # Each gradient is finite, and the sum of their squares overflows.
            what = "the norm of the gradients is not finite"
        return f"{what}; clips: {some_of(self.clips, 8) if self.clips else 'unknown'}"


@dataclass(frozen=True)
class SpikeScore:
    """How a loss compares with those before it."""

    deviations: float
    """How many robust standard deviations it is above their median; 0 while there are too few."""
    usual: float
    """Their median; the loss itself where there is none before it."""


class LossSpikes:
    """Measures how far the loss of a step is above those before it, in robust standard deviations.

    It uses the median and the median absolute deviation, which earlier spikes hardly change (Iglewicz and Hoaglin
    1993, "How to detect and handle outliers").

    Args:
        window: how many of the latest losses are kept.
    """

    def __init__(self, window: int) -> None:
        self.losses: deque[float] = deque(maxlen=window)

    def score(self, loss: float) -> SpikeScore:
        """Compare a loss with those before it, then add it to them."""
        median = statistics.median(self.losses or [loss])
        deviations = 0.0
        if len(self.losses) >= _FEWEST_LOSSES:
            deviation = _DEVIATIONS * statistics.median(abs(value - median) for value in self.losses)
            deviations = (loss - median) / max(deviation, _SMALLEST_DEVIATION)
        self.losses.append(loss)
        return SpikeScore(deviations, median)


class Health:
    """Counts the steps of a run that were left out, and watches its losses for spikes."""

    def __init__(self, settings: HealthSettings) -> None:
        self.settings = settings
        self.skipped = self.in_a_row = self.scaler_skips = 0
        self._spikes = LossSpikes(settings.spike_window)
        self._in_spike = False
        self._highest = 0.0

    def kept(self, loss: float) -> SpikeScore | None:
        """Count a step that is made; return its score if a spike begins with it, else None."""
        self.in_a_row = 0
        score = self._spikes.score(loss)
        self._highest = max(self._highest, score.deviations)
        was, self._in_spike = self._in_spike, score.deviations > self.settings.spike_threshold
        return score if self._in_spike and not was else None

    def report_spike(self, step: int, loss: float, score: SpikeScore, clips: list[str]) -> None:
        """Print a line about a spike."""
        warn(
            f"step {step}: the loss is {loss:.3f}, {score.deviations:.0f} standard deviations above the usual "
            f"{score.usual:.3f}; clips: {some_of(clips, 8) if clips else 'unknown'}"
        )

    def left_out(self) -> None:
        """Count a step that is left out."""
        self.skipped += 1
        self.in_a_row += 1

    def metrics(self) -> dict[str, float]:
        """The counts so far and the highest spike since the last call, under the names of `HEALTH_COLUMNS`."""
        highest, self._highest = self._highest, 0.0
        return dict(zip(HEALTH_COLUMNS, (float(self.skipped), float(self.scaler_skips), highest), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The counts and losses as plain values, for a checkpoint."""
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "scaler_skips": self.scaler_skips,
            "losses": list(self._spikes.losses),
            "in_spike": self._in_spike,
            "highest": self._highest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the counts and losses of a checkpoint."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.scaler_skips = state["scaler_skips"]
        self._spikes.losses.clear()
        self._spikes.losses.extend(state["losses"])
        self._in_spike, self._highest = state["in_spike"], state["highest"]


REMEDY = (
    "The checkpoints are of before and intact. Lower optimizer.lr, keep trainer.gradient_clip_val=1 and "
    "trainer.precision=auto, look at the clips that were named, then go on with resume=auto"
)


def not_finite(named: Iterable[tuple[str, torch.Tensor | None]]) -> list[str]:
    """The names of tensors, or of this rank's shards of them, with a NaN or an infinity."""
    held = [(name, local_part(tensor)) for name, tensor in named if tensor is not None]
    if not held:
        return []
    # The host waits for a GPU once, not once per tensor.
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in held]).tolist()
    return [name for (name, _), good in zip(held, finite, strict=True) if not good]


def some_of(names: list[str], count: int = 3) -> str:
    """The first of some names, as text that says how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
