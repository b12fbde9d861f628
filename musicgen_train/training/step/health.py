"""Which optimizer steps are made: those that are not finite are left out, counted and named, and spikes are seen.

All ranks take the same decisions, since they decide on numbers that are the same on all of them.
"""

from __future__ import annotations

import statistics
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

T = TypeVar("T")

# Columns of the logs.
NAMES = ("skipped_steps", "scaler_skips", "train/loss_spike")
# Before so many losses are known, none is called a spike.
_FEWEST_LOSSES = 20
# A standard deviation as a multiple of the median absolute deviation, for normally distributed numbers.
_DEVIATIONS = 1.4826
# In nats: once a model has learned its clips by heart the losses hardly differ, and everything would be a spike.
_SMALLEST_DEVIATION = 1e-3


@dataclass(kw_only=True)
class HealthSettings:
    """When a run is stopped, and what is called a spike."""

    max_skipped_in_a_row: int = 5
    """A run stops at so many steps in a row that were not finite."""
    max_skipped: int = 100
    """A run stops at so many such steps in all."""
    spike_threshold: float = 10.0
    """A loss so many robust standard deviations above the median of those before it is a spike."""
    spike_window: int = 200
    """How many losses before it are looked at."""

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
    """What is not finite in a step, as far as one rank knows; `+` puts the ranks together."""

    codebooks: list[int] = field(default_factory=list)
    """Whose losses are not, from 1."""
    gradients: list[str] = field(default_factory=list)
    """Parameters whose gradients are not."""
    weights: list[str] = field(default_factory=list)
    """Parameters that are not themselves."""
    clips: list[str] = field(default_factory=list)
    """Of the micro-batches whose loss is not; of all, where every loss is finite."""

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
            what = f"the loss is finite, the gradient of {_some(self.gradients)} is not"
        else:
            # Each number is finite, and the sum of their squares is not.
            what = "the norm of the gradients is not finite"
        return f"{what}; clips: {_some(self.clips, 8) if self.clips else 'unknown'}"


@dataclass(frozen=True)
class SpikeScore:
    """A loss beside those before it."""

    deviations: float
    """How many robust standard deviations it is above their median; 0 while there are too few."""
    usual: float
    """Their median; the loss itself where there is none before it."""


class LossSpikes:
    """How far the loss of a step is above those before it, in robust standard deviations.

    Median and median absolute deviation, so that spikes do not widen what they are measured with (Iglewicz and
    Hoaglin 1993, "How to detect and handle outliers").

    Args:
        window: how many losses are looked at.
    """

    def __init__(self, window: int) -> None:
        self.losses: deque[float] = deque(maxlen=window)

    def score(self, loss: float) -> SpikeScore:
        """Of a loss among those before it, which it then belongs to."""
        median = statistics.median(self.losses or [loss])
        deviations = 0.0
        if len(self.losses) >= _FEWEST_LOSSES:
            deviation = _DEVIATIONS * statistics.median(abs(value - median) for value in self.losses)
            deviations = (loss - median) / max(deviation, _SMALLEST_DEVIATION)
        self.losses.append(loss)
        return SpikeScore(deviations, median)


class Health:
    """Keeps count of the steps of a run and says what is wrong, in one line each.

    Args:
        settings: see `HealthSettings`.
    """

    def __init__(self, settings: HealthSettings) -> None:
        self.settings = settings
        self.skipped = self.in_a_row = self.scaler_skips = 0
        self._spikes = LossSpikes(settings.spike_window)
        self._in_spike = False
        self._highest = 0.0

    def kept(self, loss: float) -> SpikeScore | None:
        """Take note of a step that is made; its score if a spike begins with it."""
        self.in_a_row = 0
        score = self._spikes.score(loss)
        self._highest = max(self._highest, score.deviations)
        was, self._in_spike = self._in_spike, score.deviations > self.settings.spike_threshold
        return score if self._in_spike and not was else None

    def report_spike(self, step: int, loss: float, score: SpikeScore, clips: list[str]) -> None:
        """Print a line about a spike."""
        _say(
            f"step {step}: the loss is {loss:.3f}, {score.deviations:.0f} standard deviations above the usual "
            f"{score.usual:.3f}; clips: {_some(clips, 8) if clips else 'unknown'}"
        )

    def skip(self, step: int, found: NotFinite) -> None:
        """Take note of a step that is left out, and print a line about it.

        Raises:
            UnhealthyRunError: the weights are no longer finite, or there were too many such steps.
        """
        self.skipped += 1
        self.in_a_row += 1
        if found.weights:
            raise UnhealthyRunError(
                f"stopped at step {step}: the weights of {_some(found.weights)} are not finite. {REMEDY}"
            )
        _say(f"step {step} left out ({self.in_a_row} in a row, {self.skipped} in all): {found}")
        for name, count in (("max_skipped_in_a_row", self.in_a_row), ("max_skipped", self.skipped)):
            limit = getattr(self.settings, name)
            if count >= limit:
                kind = "in a row" if name == "max_skipped_in_a_row" else "in all"
                raise UnhealthyRunError(
                    f"stopped at step {step}: {count} steps {kind} were not finite (health.{name}={limit}); the last: "
                    f"{found}. {REMEDY}"
                )

    def metrics(self) -> dict[str, float]:
        """Counts so far, and the highest spike since the last call, under `NAMES`."""
        highest, self._highest = self._highest, 0.0
        return dict(zip(NAMES, (float(self.skipped), float(self.scaler_skips), highest), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "scaler_skips": self.scaler_skips,
            "losses": list(self._spikes.losses),
            "in_spike": self._in_spike,
            "highest": self._highest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
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
    # One look at all of them: on a GPU each one would wait for it.
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in held]).tolist()
    return [name for (name, _), good in zip(held, finite, strict=True) if not good]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor that FSDP has divided; any other tensor as it is."""
    part = tensor.detach()
    return part.to_local() if hasattr(part, "to_local") else part


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on each of them, without waiting for it."""
    # Lightning's own reduction waits for all ranks first.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def from_all_ranks(value: T) -> list[T]:
    """A small value of each rank, on each of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _some(names: list[str], count: int = 3) -> str:
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
