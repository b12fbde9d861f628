"""The speed of a run: codes and audio per second, the share of time spent waiting for data, peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning
import torch

from musicgen_train.data.batch import Batch
from musicgen_train.training.module import MusicgenTraining

SPEED_COLUMNS = ("tokens_per_s", "audio_s_per_s", "data_wait", "peak_mem_mb")


class Speed(lightning.Callback):
    """Logs the speed of all devices together since the last log, without the time of validation, sampling and saving.

    The time of callbacks before this one counts as training. `LastCheckpoint` (which saves between two steps, where the
    clock stands still) and the average of weights are the only ones.

    Args:
        clock: a clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin = self._busy = self._waited = self._waited_before = 0.0
        # Added up only when they are logged: they may be on a GPU, and reading them waits for it.
        self._step_frames: list[torch.Tensor] = []
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last log, so that a resumed run adds to them."""
        frames = sum(int(frames.sum()) for frames in self._step_frames)
        return {"busy": self._busy, "waited": self._waited, "frames": frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._busy, self._waited = state_dict["busy"], state_dict["waited"]
        self._step_frames = [torch.tensor([state_dict["frames"]])]
        self._resumed = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._waited_before = 0.0  # the loader is new
        if not self._resumed:
            self._busy = self._waited = 0.0
            self._step_frames = []
        self._resumed = False

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._begin = self._clock()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, MusicgenTraining)
        assert batch.step_frames is not None
        logged = pl_module.step_is_logged(batch_idx)
        if logged and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._busy += self._clock() - self._begin
        waited = trainer.train_dataloader.waited  # type: ignore[union-attr]
        self._waited += waited - self._waited_before
        self._waited_before = waited
        if pl_module.ends_step(batch_idx):
            self._step_frames.append(batch.step_frames)
        if logged:
            manifest = trainer.datamodule.manifest  # type: ignore[attr-defined]
            rates = rates_of(
                frames=sum(int(frames.sum()) for frames in self._step_frames),
                busy=self._busy,
                waited=self._waited,
                num_codebooks=manifest.num_codebooks,
                frame_rate=manifest.frame_rate,
            )
            self._busy, self._waited, self._step_frames = 0.0, 0.0, []
            pl_module.log_dict({**rates, "peak_mem_mb": peak_memory_mb(pl_module.device)})


def rates_of(*, frames: int, busy: float, waited: float, num_codebooks: int, frame_rate: float) -> dict[str, float]:
    """Turn amounts into the rates of `SPEED_COLUMNS`.

    Args:
        frames: frames of audio that were trained on, without padding.
        busy: seconds of computing.
        waited: seconds of waiting for data.
        num_codebooks: codes per frame.
        frame_rate: frames per second of audio.
    """
    seconds = busy + waited
    return {
        "tokens_per_s": frames * num_codebooks / seconds,
        "audio_s_per_s": frames / frame_rate / seconds,
        "data_wait": waited / seconds,
    }


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU if `device` is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # The system counts in KiB; macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
