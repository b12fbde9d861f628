"""The Lightning module: decoder and text projection, nothing else.

The frozen encoders are not in it, so they are in no optimizer, no checkpoint and no average of weights.

Axes: B batch, K codebooks, T frames, L text length, D width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from torch import nn

from musicgen_train.data.batch import Batch
from musicgen_train.hub.weights import list_some
from musicgen_train.models.causal_lm import MusicgenForCausalLM
from musicgen_train.training.step.health import (
    REMEDY,
    Health,
    HealthSettings,
    NotFinite,
    UnhealthyRunError,
    from_all_ranks,
    local_part,
    not_finite,
    sum_over_ranks,
)
from musicgen_train.training.step.schedule import ScheduleSettings, make_schedule
from musicgen_train.training.step.scores import Scores, counts_of, metric_names, score
from musicgen_train.training.weights.adapters import check_resumed_adapter

# What a checkpoint holds beside Lightning's own entries: see `on_save_checkpoint`.
CHECKPOINT_KEY = "musicgen_train"
_DROPOUT = 3

MakeOptimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class _Part:
    """A micro-batch of the optimizer step that is under way."""

    scores: Scores
    share: torch.Tensor
    """What it adds to the loss of the step."""
    clips: tuple[tuple[int, int], ...]
    """See `Batch.clips`."""


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
        health: when steps that are not finite stop the run, and what is called a spike of the loss.
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
        """Whether the last optimizer step was left out, its weights being those of the step before."""
        self._parts: list[_Part] = []
        self._since_log: Scores | None = None
        self._validated: dict[int, Scores] = {}
        self._step_metrics: dict[str, Any] = {}

    def score(self, batch: Batch) -> Scores:
        """Sums and counts of a batch; see `scores.score`."""
        labels = batch.labels(self.decoder.delays, self.decoder.config.pad_token_id)
        return Scores(*self(labels, batch.text_states, batch.text_mask))

    def forward(
        self, labels_BTK: torch.Tensor, text_states_BLD: torch.Tensor, text_mask_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fields of `Scores`: everything that has weights runs in here, and plain tensors go in and out, as
        sharding asks for."""
        text_BLD = self.project(text_states_BLD, text_mask_BL)
        scores = score(self.decoder, labels_BTK, text_BLD, None if self._attend_to_padding else text_mask_BL)
        return scores.sums_K, scores.counts_K, scores.correct_K

    def project(self, states_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Text states of the decoder's width, zero on padding: masked last, since the projection has a bias."""
        if self.enc_to_dec_proj is not None:
            states_BLD = self.enc_to_dec_proj(states_BLD)
        return states_BLD.masked_fill(~mask_BL[..., None], 0.0)

    def on_fit_start(self) -> None:
        # Models come from disk in eval mode, and Lightning leaves them in the mode it finds them in.
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Whatever is drawn, dropout or a callback's, follows from the step alone: a resumed run draws the same.
        seeds = np.random.SeedSequence([self._seed, _DROPOUT, batch.index, self.global_rank])
        seed = int(seeds.generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """This batch's part of the loss of its optimizer step.

        The loss of a step is the mean over codebooks of the mean over all codes of the step, over micro-batches and
        ranks. Their number is known beforehand from the lengths, so each part is divided by the whole number and the
        parts add up exactly. What Lightning (micro-batches) and DDP (ranks) divide by is multiplied in before.
        """
        scores = self.score(batch)
        assert batch.step_frames is not None
        counts_K = counts_of(batch.step_frames, self.decoder.delays)
        share = (scores.sums_K / counts_K.clamp(min=1)).sum() / (counts_K > 0).sum().clamp(min=1)
        self._parts.append(_Part(scores.detach(), share.detach(), batch.clips))
        return share * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients together; where loss or norm is not finite, drop them: nothing is changed.

        The one place of a step where the host looks at its numbers.

        Raises:
            UnhealthyRunError: there were too many steps that are not finite.
        """
        self._unscale(optimizer)
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        loss, norm_value, finite = self._loss_and_norm(norm)
        parts, self._parts = self._parts, []
        self.step_was_skipped = not finite
        self._step_metrics = {"lr": optimizer.param_groups[0]["lr"], "grad_norm": norm_value if finite else math.nan}
        if not finite:
            self._note_skipped(parts, loss_is_finite=math.isfinite(loss))
            for parameter in parameters:
                # Optimizers pass over parameters without a gradient: neither weight decay nor moments move.
                parameter.grad = None
            return
        for part in parts:
            self._since_log = part.scores if self._since_log is None else self._since_log + part.scores
        spike = self.health.kept(loss)
        if spike is not None:
            clips = [clip for held in from_all_ranks(self._clip_names(parts)) for clip in held]
            self.health.report_spike(self.global_step + 1, loss, spike, clips)
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

    def _loss_and_norm(self, norm: torch.Tensor) -> tuple[float, float, bool]:
        """The loss of the step over all ranks, the norm of its gradients, and whether both are finite everywhere."""
        if hasattr(norm, "full_tensor"):  # of shards, which each rank has its own of
            norm = norm.full_tensor()
        loss = torch.stack([part.share for part in self._parts]).sum()
        found = sum_over_ranks(torch.stack([loss, (~torch.isfinite(norm)).to(loss.dtype)]))
        loss_value, bad_norms, norm_value = torch.cat([found, norm.to(found.dtype)[None]]).tolist()
        return loss_value, norm_value, math.isfinite(loss_value) and not bad_norms

    def _note_skipped(self, parts: list[_Part], *, loss_is_finite: bool) -> None:
        scaler = self._scaler()
        if scaler is not None and loss_is_finite and scaler.get_scale() > 1:
            # How a scaler finds the largest scale that works, and no fault of the run.
            self.health.scaler_skips += 1
            return
        bad_PK = torch.stack([~torch.isfinite(part.scores.sums_K) for part in parts]).tolist()
        bad_parts = [part for part, bad_K in zip(parts, bad_PK, strict=True) if loss_is_finite or any(bad_K)]
        mine = NotFinite(
            codebooks=[number for number, column in enumerate(zip(*bad_PK, strict=True), start=1) if any(column)],
            gradients=not_finite((name, parameter.grad) for name, parameter in self.named_parameters()),
            weights=not_finite(self.named_parameters()),
            clips=self._clip_names(bad_parts),
        )
        first, *others = from_all_ranks(mine)
        self.health.skip(self.global_step + 1, sum(others, start=first))

    def _clip_names(self, parts: list[_Part]) -> list[str]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.describe_clips(clip for part in parts for clip in part.clips)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self.step_is_logged(batch_idx):
            return
        # Where every step since the last row was left out there is nothing to tell, and Lightning would tell the old.
        metrics = dict.fromkeys(metric_names("train", self.decoder.num_codebooks), torch.tensor(math.nan))
        if self._since_log is not None:
            scores, self._since_log = self._over_ranks(self._since_log), None
            metrics = scores.metrics("train")
        self.log("train/loss", metrics.pop("train/loss"), prog_bar=True)
        self.log_dict({**metrics, **self._step_metrics, **self.health.metrics(), **self._place()})

    def step_is_logged(self, batch_idx: int) -> bool:
        """Whether a micro-batch that is done ended an optimizer step that is written to the logs."""
        return self.ends_step(batch_idx) and self.global_step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def ends_step(self, batch_idx: int) -> bool:
        """Whether a micro-batch is the last of its optimizer step."""
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
            # What all ranks had together goes on with one of them.
            mine = 1 if self.global_rank == 0 else 0
            self._since_log = Scores(**{name: mine * value.to(self.device) for name, value in since_log.items()})

    def _place(self) -> dict[str, float]:
        """The step, for the x axis of every log, and how many passes over the clips it makes."""
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
        # All ranks find the same, also where each has its own shard: one that went on alone would wait for ever.
        finite = torch.stack([torch.isfinite(local_part(parameter)).all() for parameter in self.parameters()]).all()
        if sum_over_ranks((~finite).long()):
            names = [name for found in from_all_ranks(not_finite(self.named_parameters())) for name in found]
            raise UnhealthyRunError(
                f"stopped at step {self.global_step}, and nothing saved: the weights of {list_some(names)} are not "
                f"finite. {REMEDY}"
            )
