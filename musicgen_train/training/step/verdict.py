"""What becomes of an optimizer step: it is made, it is left out, or it stops the run. Decided here and nowhere else.

All ranks decide on the same numbers, so they all decide the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from musicgen_train.training.logs.console import warn
from musicgen_train.training.step.collectives import from_all_ranks, sum_over_ranks
from musicgen_train.training.step.health import REMEDY, Health, NotFinite, UnhealthyRunError, some_of


@dataclass(frozen=True)
class StepNumbers:
    """The numbers that decide on a step. `loss` and `finite` are equal on all ranks."""

    loss: float
    """The loss of the whole step, over all micro-batches and ranks."""
    grad_norm: float
    """The norm of all gradients, before clipping."""
    finite: bool
    """True if the loss and every rank's norm are finite."""


def measure_step(loss: torch.Tensor, grad_norm: torch.Tensor) -> StepNumbers:
    """Read the numbers of a step: one sum over the ranks, and the only time in it that the host waits for the device.

    Args:
        loss: this rank's part of the loss, scalar.
        grad_norm: the norm of the gradients, scalar; under FSDP a tensor that is divided among the ranks.
    """
    if hasattr(grad_norm, "full_tensor"):
        grad_norm = grad_norm.full_tensor()
    sums = sum_over_ranks(torch.stack([loss, (~torch.isfinite(grad_norm)).to(loss.dtype)]))
    loss_value, bad_norms, norm_value = torch.cat([sums, grad_norm.to(sums.dtype)[None]]).tolist()
    return StepNumbers(loss_value, norm_value, finite=math.isfinite(loss_value) and not bad_norms)


@dataclass(frozen=True)
class Verdict:
    """The decision on a step that does not stop the run."""

    is_made: bool
    """False leaves the step out: its gradients are dropped, and weights and optimizer stay as they are."""
    metrics: dict[str, float]
    """What is logged about it; the norm of a step that is left out is NaN."""


def judge_step(
    step: int,
    numbers: StepNumbers,
    health: Health,
    scaler: torch.amp.GradScaler | None,
    *,
    clips: Callable[[], list[str]],
    faults: Callable[[], NotFinite],
) -> Verdict:
    """Decide on a step, count it in `health`, and print a line if it is left out or a spike begins with it.

    Args:
        step: its number, from 1.
        numbers: see `measure_step`.
        health: the counts of the run, which is changed.
        scaler: the gradient scaler of 16-mixed; None in other precisions.
        clips: names this rank's clips; called on all ranks or on none.
        faults: names what is not finite on this rank; called on all ranks or on none.

    Raises:
        UnhealthyRunError: the run has to stop, because its weights are not finite or too many steps were left out.
    """
    if numbers.finite:
        spike = health.kept(numbers.loss)
        if spike is not None:
            names = [name for held in from_all_ranks(clips()) for name in held]
            health.report_spike(step, numbers.loss, spike, names)
        return Verdict(True, {"grad_norm": numbers.grad_norm})
    if _scaler_lowers_its_scale(scaler, numbers.loss):
        health.scaler_skips += 1
    else:
        first, *others = from_all_ranks(faults())
        leave_out(step, sum(others, start=first), health)
    return Verdict(False, {"grad_norm": math.nan})


def leave_out(step: int, faults: NotFinite, health: Health) -> None:
    """Count a step as left out because of its faults, and print a line about it.

    Raises:
        UnhealthyRunError: the weights are not finite, or too many steps were left out.
    """
    health.left_out()
    if faults.weights:
        raise UnhealthyRunError(
            f"stopped at step {step}: the weights of {some_of(faults.weights)} are not finite. {REMEDY}"
        )
    warn(f"step {step} left out ({health.in_a_row} in a row, {health.skipped} in all): {faults}")
    for setting, count, kind in (
        ("max_skipped_in_a_row", health.in_a_row, "in a row"),
        ("max_skipped", health.skipped, "in all"),
    ):
        limit = getattr(health.settings, setting)
        if count >= limit:
            raise UnhealthyRunError(
                f"stopped at step {step}: {count} steps {kind} were not finite (health.{setting}={limit}); the last: "
                f"{faults}. {REMEDY}"
            )


def _scaler_lowers_its_scale(scaler: torch.amp.GradScaler | None, loss: float) -> bool:
    # This is how a scaler finds the largest scale without overflow; it is no fault of the run.
    return scaler is not None and math.isfinite(loss) and scaler.get_scale() > 1
