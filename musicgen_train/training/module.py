"""The Lightning module: decoder and text projection, nothing else.

The frozen encoders are not in it, so they are in no optimizer, no checkpoint and no average of weights.

Axes: B batch, K codebooks, T frames, L text length, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch import nn

from musicgen_train.data.batch import Batch
from musicgen_train.models.decoder import MusicgenForCausalLM
from musicgen_train.training.schedule import ScheduleSettings, make_schedule
from musicgen_train.training.scores import Scores, counts_of, score

# What a checkpoint holds beside Lightning's own entries: see `on_save_checkpoint`.
CHECKPOINT_KEY = "musicgen_train"
_DROPOUT = 3

MakeOptimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


class MusicgenTraining(lightning.LightningModule):
    """Trains a decoder, and the projection of the text where there is one.

    Args:
        decoder: the model.
        enc_to_dec_proj: the composite's projection, or None where text and decoder are equally wide.
        make_optimizer: an optimizer from parameters.
        schedule: of the learning rate.
        total_steps: optimizer steps of the run.
        seed: of dropout.
        attend_to_padding: attend to the zeros of padded text, as audiocraft trained the released models; otherwise
            padding is masked, as transformers generates.
        description: entries that every checkpoint of the run carries, so that it can be used alone.
    """

    def __init__(
        self,
        decoder: MusicgenForCausalLM,
        enc_to_dec_proj: nn.Linear | None,
        *,
        make_optimizer: MakeOptimizer,
        schedule: ScheduleSettings,
        total_steps: int,
        seed: int = 0,
        attend_to_padding: bool = False,
        description: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.enc_to_dec_proj = enc_to_dec_proj
        self._make_optimizer = make_optimizer
        self._schedule = schedule
        self._total_steps = total_steps
        self._seed = seed
        self._attend_to_padding = attend_to_padding
        self._description = description or {}
        self._since_log: Scores | None = None
        self._validated: Scores | None = None
        self._step_metrics: dict[str, Any] = {}

    def score(self, batch: Batch) -> Scores:
        """Sums and counts of a batch; see `scores.score`."""
        labels = batch.labels(self.decoder.delays, self.decoder.config.pad_token_id)
        mask = None if self._attend_to_padding else batch.text_mask
        return score(self.decoder, labels, self.project(batch), mask)

    def project(self, batch: Batch) -> torch.Tensor:
        """Text states of the decoder's width, zero on padding: masked last, since the projection has a bias."""
        states_BLD = batch.text_states
        if self.enc_to_dec_proj is not None:
            states_BLD = self.enc_to_dec_proj(states_BLD)
        return states_BLD.masked_fill(~batch.text_mask[..., None], 0.0)

    def on_fit_start(self) -> None:
        # Models come from disk in eval mode, and Lightning leaves them in the mode it finds them in.
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout follows from the step alone, so a resumed run draws what the other would have drawn.
        seeds = np.random.SeedSequence([self._seed, _DROPOUT, batch.index, self.global_rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """This batch's part of the loss of its optimizer step.

        The loss of a step is the mean over codebooks of the mean over all codes of the step, over micro-batches and
        ranks. Their number is known beforehand from the lengths, so each part is divided by the whole number and the
        parts add up exactly. What Lightning (micro-batches) and DDP (ranks) divide by is multiplied in before.
        """
        scores = self.score(batch)
        self._since_log = scores.detach() if self._since_log is None else self._since_log + scores.detach()
        assert batch.step_frames is not None
        counts_K = counts_of(batch.step_frames, self.decoder.delays)
        share = (scores.sums_K / counts_K.clamp(min=1)).sum() / (counts_K > 0).sum().clamp(min=1)
        return share * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients together, and keep what it was before."""
        limit = math.inf if gradient_clip_val is None else gradient_clip_val
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        self._step_metrics = {"lr": optimizer.param_groups[0]["lr"], "grad_norm": norm}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self.step_is_logged(batch_idx):
            return
        assert self._since_log is not None
        scores, self._since_log = self._over_ranks(self._since_log), None
        metrics = scores.metrics("train")
        self._require_finite(metrics)
        self.log("train/loss", metrics.pop("train/loss"), prog_bar=True)
        self.log_dict({**metrics, **self._step_metrics, **self._place()})

    def step_is_logged(self, batch_idx: int) -> bool:
        """Whether a micro-batch that is done ended an optimizer step that is written to the logs."""
        return self.ends_step(batch_idx) and self.global_step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def ends_step(self, batch_idx: int) -> bool:
        """Whether a micro-batch is the last of its optimizer step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def on_validation_epoch_start(self) -> None:
        self._validated = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        scores = self.score(batch).detach()
        self._validated = scores if self._validated is None else self._validated + scores

    def on_validation_epoch_end(self) -> None:
        assert self._validated is not None
        metrics = self._over_ranks(self._validated).metrics("val")
        self.log("val/loss", metrics.pop("val/loss"), prog_bar=True)
        self.log_dict({**metrics, **self._place()})

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        schedule = make_schedule(self._schedule, optimizer, self._total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the weights without the run's folder: plain values only."""
        checkpoint[CHECKPOINT_KEY] = {
            "decoder_config": self.decoder.config.to_dict(),
            "generation_config": self.decoder.generation_config.to_dict(),
            **self._description,
        }

    def _place(self) -> dict[str, float]:
        """The step, for the x axis of every log, and how many passes over the clips it makes."""
        passes = self.global_step * self._clips_per_step() / self._clips()
        return {"step": float(self.global_step), "epoch": passes}

    def _clips_per_step(self) -> int:
        return self.trainer.datamodule.settings.global_batch_size  # type: ignore[attr-defined]

    def _clips(self) -> int:
        return len(self.trainer.datamodule.train_clips.frames)  # type: ignore[attr-defined]

    def _over_ranks(self, scores: Scores) -> Scores:
        def total(value: torch.Tensor) -> torch.Tensor:
            return self.trainer.strategy.reduce(value, reduce_op="sum")

        return Scores(total(scores.sums_K), total(scores.counts_K), total(scores.correct_K))

    def _require_finite(self, metrics: dict[str, torch.Tensor]) -> None:
        loss = metrics["train/loss"]
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {self.global_step}: lower optimizer.lr, keep "
                "trainer.gradient_clip_val=1, and use trainer.precision=bf16-mixed or 32-true rather than fp16. The "
                "checkpoints before it are intact"
            )
