"""The Lightning module, which holds the decoder and the text projection and nothing else.

The frozen encoders are not in it, so they are in no optimizer, no checkpoint and no average of weights.

Axes: B batch, P micro-batches of a step, K codebooks, T frames, L text length, D width.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from torch import nn

from musicgen_train.data.batch import Batch
from musicgen_train.hub.weights import list_some
from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.models.loss import mean_over_codebooks
from musicgen_train.training.checkpoints.reading import CHECKPOINT_KEY
from musicgen_train.training.step.collectives import from_all_ranks, local_part, sum_over_ranks
from musicgen_train.training.step.health import (
    REMEDY,
    Health,
    HealthSettings,
    NotFinite,
    UnhealthyRunError,
    not_finite,
)
from musicgen_train.training.step.optimizers import MakeOptimizer
from musicgen_train.training.step.schedule import ScheduleSettings, make_schedule
from musicgen_train.training.step.scores import Scores, counts_of, metric_names, score
from musicgen_train.training.step.verdict import judge_step, measure_step
from musicgen_train.training.weights.adapters import check_resumed_adapter

# Keeps the random numbers of dropout apart from others that come from the same seed.
_DROPOUT = 3


@dataclass
class _MicroBatch:
    """A scored micro-batch of the optimizer step in progress."""

    scores: Scores
    share: torch.Tensor
    """What it adds to the loss of the step, scalar."""
    clips: tuple[tuple[int, int], ...]
    """See `Batch.clips`."""


class MusicgenTraining(lightning.LightningModule):
    """Trains a decoder, and the projection of the text where there is one.

    Args:
        decoder: the model.
        enc_to_dec_proj: the composite's projection, or None where text and decoder are equally wide.
        make_optimizer: makes the optimizer from the parameters to train.
        schedule: the schedule of the learning rate.
        total_steps: optimizer steps of the run.
        seed: the seed of dropout.
        attend_to_padding: True attends to the zeros of padded text, as audiocraft trained the released models; False
            masks the padding, as transformers generates.
        description: entries that every checkpoint of the run carries, so that it can be used alone.
        health: when steps that are not finite stop the run, and what counts as a spike of the loss.
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
        health: HealthSettings | None = None,
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
        self.health = Health(health or HealthSettings())
        self.step_was_skipped = False
        """True if the last optimizer step was left out, so that the weights are those of the step before."""
        self._parts: list[_MicroBatch] = []
        self._since_log: Scores | None = None
        self._validated: dict[int, Scores] = {}
        self._step_metrics: dict[str, Any] = {}

    def score(self, batch: Batch) -> Scores:
        """Score a batch; see `scores.score`."""
        labels = batch.labels(self.decoder.delays, self.decoder.config.pad_token_id)
        return Scores(*self(labels, batch.text_states, batch.text_mask))

    def forward(
        self, labels_BTK: torch.Tensor, text_states_BLD: torch.Tensor, text_mask_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Score a batch and return the fields of `Scores`.

        FSDP gathers weights when a module is called and handles plain tensors only, so everything that has weights
        runs in here.

        Args:
            labels_BTK: see `Batch.labels`.
            text_states_BLD: states of the text encoder, before the projection.
            text_mask_BL: False on padding.
        """
        text_BLD = self.project(text_states_BLD, text_mask_BL)
        scores = score(self.decoder, labels_BTK, text_BLD, None if self._attend_to_padding else text_mask_BL)
        return scores.sums_K, scores.counts_K, scores.correct_K

    def project(self, states_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Text states of the decoder's width, zero on padding."""
        if self.enc_to_dec_proj is not None:
            states_BLD = self.enc_to_dec_proj(states_BLD)
        # Masked last, because the projection has a bias.
        return states_BLD.masked_fill(~mask_BL[..., None], 0.0)

    def on_fit_start(self) -> None:
        # Models come from disk in eval mode, and Lightning leaves them in the mode it finds them in.
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout, and whatever callbacks draw, depends on the step alone, so a resumed run draws the same.
        seeds = np.random.SeedSequence([self._seed, _DROPOUT, batch.index, self.global_rank])
        seed = int(seeds.generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return this micro-batch's part of the loss of its optimizer step.

        The loss of a step is that of one batch of all its clips. The lengths of all of them are known beforehand, so
        each part is divided by the counts of the whole step, and the parts of all micro-batches and ranks add up to
        exactly that loss. Lightning divides by the number of micro-batches and DDP by that of ranks; both are
        multiplied in here.
        """
        scores = self.score(batch)
        assert batch.step_frames is not None
        counts_K = counts_of(batch.step_frames, self.decoder.delays)
        share = mean_over_codebooks(scores.sums_K, counts_K)
        self._parts.append(_MicroBatch(scores.detach(), share.detach(), batch.clips))
        return share * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Have the step judged now that its gradients are complete: clip them, or drop them if it is left out.

        Raises:
            UnhealthyRunError: see `judge_step`.
        """
        self._unscale(optimizer)
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        parts, self._parts = self._parts, []
        numbers = measure_step(torch.stack([part.share for part in parts]).sum(), norm)
        verdict = judge_step(
            self.global_step + 1,
            numbers,
            self.health,
            self._scaler(),
            clips=lambda: self._clip_names(parts),
            faults=lambda: self._faults(parts, loss_is_finite=math.isfinite(numbers.loss)),
        )
        self.step_was_skipped = not verdict.is_made
        self._step_metrics = {"lr": optimizer.param_groups[0]["lr"], **verdict.metrics}
        if not verdict.is_made:
            for parameter in parameters:
                # Optimizers pass over parameters without a gradient: neither weight decay nor moments move.
                parameter.grad = None
            return
        for part in parts:
            self._since_log = part.scores if self._since_log is None else self._since_log + part.scores
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def _unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale of 16-mixed, where Lightning leaves that to a fused optimizer's step."""
        scaler = self._scaler()
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)

    def _scaler(self) -> torch.amp.GradScaler | None:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _faults(self, parts: list[_MicroBatch], *, loss_is_finite: bool) -> NotFinite:
        bad_PK = torch.stack([~torch.isfinite(part.scores.sums_K) for part in parts]).tolist()
        bad_parts = [part for part, bad_K in zip(parts, bad_PK, strict=True) if loss_is_finite or any(bad_K)]
        return NotFinite(
            codebooks=[number for number, column in enumerate(zip(*bad_PK, strict=True), start=1) if any(column)],
            gradients=not_finite((name, parameter.grad) for name, parameter in self.named_parameters()),
            weights=not_finite(self.named_parameters()),
            clips=self._clip_names(bad_parts),
        )

    def _clip_names(self, parts: list[_MicroBatch]) -> list[str]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.describe_clips(clip for part in parts for clip in part.clips)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self.step_is_logged(batch_idx):
            return
        # NaN if every step since the last row was left out: without a value Lightning would log the last one again.
        metrics = dict.fromkeys(metric_names("train", self.decoder.num_codebooks), torch.tensor(math.nan))
        if self._since_log is not None:
            scores, self._since_log = self._over_ranks(self._since_log), None
            metrics = scores.metrics("train")
        self.log("train/loss", metrics.pop("train/loss"), prog_bar=True)
        self.log_dict({**metrics, **self._step_metrics, **self.health.metrics(), **self._place()})

    def step_is_logged(self, batch_idx: int) -> bool:
        """Returns True if a finished micro-batch was the last of an optimizer step that is logged."""
        return self.ends_step(batch_idx) and self.global_step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def ends_step(self, batch_idx: int) -> bool:
        """Returns True if a micro-batch is the last of its optimizer step."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    def on_validation_epoch_start(self) -> None:
        self._validated = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        scores = self.score(batch).detach()
        before = self._validated.get(batch.dataset)
        self._validated[batch.dataset] = scores if before is None else before + scores

    def on_validation_epoch_end(self) -> None:
        # Every rank has batches of every dataset, in the same order.
        of_dataset = {number: self._over_ranks(scores) for number, scores in self._validated.items()}
        first, *others = of_dataset.values()
        metrics = sum(others, start=first).metrics("val")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        metrics |= {name: of_dataset[number].loss.float() for number, name in data.validation_losses.items()}
        self.log("val/loss", metrics.pop("val/loss"), prog_bar=True)
        self.log_dict({**metrics, **self._place()})

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        schedule = make_schedule(self._schedule, optimizer, self._total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the weights without the run's folder: plain values only.

        Raises:
            UnhealthyRunError: the weights are not finite, so nothing is saved.
        """
        self._require_finite_weights()
        checkpoint[CHECKPOINT_KEY] = {
            "decoder_config": self.decoder.config.to_dict(),
            "generation_config": self.decoder.generation_config.to_dict(),
            "precision": self.trainer.precision,
            "health": self.health.state_dict(),
            "step_was_skipped": self.step_was_skipped,
            "since_log": self._since_log_of_all_ranks(),
            **self._description,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint.get(CHECKPOINT_KEY, {})
        check_resumed_adapter(ours, self._description)
        if (state := ours.get("health")) is not None:
            self.health.load_state_dict(state)
        self.step_was_skipped = ours.get("step_was_skipped", False)
        since_log = ours.get("since_log")
        if since_log is not None:
            # The sums of all ranks were added up in the checkpoint; one rank carries them on.
            mine = 1 if self.global_rank == 0 else 0
            self._since_log = Scores(**{name: mine * value.to(self.device) for name, value in since_log.items()})

    def _place(self) -> dict[str, float]:
        """The step, for the x axis of every log, and the passes over the clips so far."""
        passes = self.trainer.datamodule.passes(self.global_step)  # type: ignore[attr-defined]
        return {"step": float(self.global_step), "epoch": passes}

    def _over_ranks(self, scores: Scores) -> Scores:
        def total(value: torch.Tensor) -> torch.Tensor:
            return self.trainer.strategy.reduce(value, reduce_op="sum")

        return Scores(total(scores.sums_K), total(scores.counts_K), total(scores.correct_K))

    def _since_log_of_all_ranks(self) -> dict[str, torch.Tensor] | None:
        if self._since_log is None:
            return None
        return {name: sum_over_ranks(value) for name, value in vars(self._since_log).items()}

    def _require_finite_weights(self) -> None:
        # Every rank has to know of every other's shard: a rank that went on alone would wait for ever.
        finite = torch.stack([torch.isfinite(local_part(parameter)).all() for parameter in self.parameters()]).all()
        if sum_over_ranks((~finite).long()):
            names = [name for found in from_all_ranks(not_finite(self.named_parameters())) for name in found]
            raise UnhealthyRunError(
                f"stopped at step {self.global_step}, and nothing saved: the weights of {list_some(names)} are not "
                f"finite. {REMEDY}"
            )
