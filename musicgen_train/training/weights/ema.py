"""An exponential moving average (EMA) of the weights, which is validated, sampled and exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(WeightAveraging):
    """Lightning's weight averaging as `average = decay * average + (1 - decay) * weights`.

    The first update copies the weights. Validation, samples, `best.ckpt` and the exported model use the average; a
    checkpoint holds both, and a resumed run goes on with both. When training ends, the average replaces the weights, so
    the last checkpoint has to be saved before. Unlike Lightning's own `EMAWeightAveraging`, it neither copies nor
    averages parameters that are not trained, which would round them, and a step that was left out does not count.

    Args:
        decay: how much of the average an update keeps; its horizon is 1 / (1 - decay) updates.
        every_n_steps: optimizer steps between two updates.
        device: where the average is kept, e.g. `cpu` to spare a GPU's memory; None keeps it beside the weights.
    """

    def __init__(self, decay: float, every_n_steps: int = 1, device: str | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of EMA is {decay}; it must be 0 or more, and below 1")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps of EMA is {every_n_steps}; it must be 1 or more")
        super().__init__(device=device, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._every_n_steps = every_n_steps

    def is_on(self, device: torch.device) -> bool:
        """Returns True if the average is kept on `device`, which is that of the weights."""
        return self._device is None or torch.device(self._device).type == device.type

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and (step_idx + 1) % self._every_n_steps == 0

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._share_frozen(pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not getattr(pl_module, "step_was_skipped", False):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @contextlib.contextmanager
    def in_place(self, pl_module: lightning.LightningModule) -> Iterator[None]:
        """Within the block the module holds the average, after it its own weights again."""
        self._swap_models(pl_module)
        try:
            yield
        finally:
            self._swap_models(pl_module)

    def _share_frozen(self, pl_module: lightning.LightningModule) -> None:
        assert self._average_model is not None
        average = self._average_model.module
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad:
                owner, _, attribute = name.rpartition(".")
                setattr(average.get_submodule(owner), attribute, parameter)


@contextlib.contextmanager
def averaged_weights(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> Iterator[None]:
    """Within the block the module holds the average of its weights, if the run keeps one."""
    with contextlib.ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                stack.enter_context(callback.in_place(pl_module))
        yield
