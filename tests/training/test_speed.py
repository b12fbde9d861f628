"""Speed, by hand and with a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from musicgen_train.data.batch import Batch
from musicgen_train.training.logs.speed import Speed, peak_memory_mb, rates_of
from musicgen_train.training.module import MusicgenTraining


def test_rates_by_hand() -> None:
    rates = rates_of(frames=600, busy=3.0, waited=1.0, num_codebooks=4, frame_rate=50.0)
    assert rates == {"tokens_per_s": 600.0, "audio_s_per_s": 3.0, "data_wait": 0.25}


class LoggedModule(MusicgenTraining):
    """Logs every second step of two micro-batches; holds what was logged."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cpu")

    def ends_step(self, batch_idx: int) -> bool:
        return batch_idx % 2 == 1

    def step_is_logged(self, batch_idx: int) -> bool:
        return batch_idx % 4 == 3

    def log_dict(self, values: Any, *args: Any, **kwargs: Any) -> None:
        self.logged.append(dict(values))


def test_only_training_and_waiting_count() -> None:
    now = 0.0
    speed = Speed(clock=lambda: now)
    manifest = SimpleNamespace(num_codebooks=4, frame_rate=50.0)
    trainer: Any = SimpleNamespace(
        train_dataloader=SimpleNamespace(waited=0.0), datamodule=SimpleNamespace(manifest=manifest)
    )
    module = LoggedModule()
    speed.on_train_start(trainer, module)
    for batch_idx in range(8):
        # Each micro-batch has half of its step's 300 frames, which the sum over micro-batches may not count twice.
        batch = Batch(*[torch.empty(0)] * 4, step_frames=torch.tensor([100, 200]))
        trainer.train_dataloader.waited += 0.5
        now += 0.5
        speed.on_train_batch_start(trainer, module, batch, batch_idx)
        now += 1.5 if batch_idx < 4 else 0.5
        speed.on_train_batch_end(trainer, module, None, batch, batch_idx)
        now += 100.0  # validation, sampling, saving
    first, second = module.logged
    assert first.pop("peak_mem_mb") > 0
    second.pop("peak_mem_mb")
    # Two steps of 300 frames: in 4 x (1.5 + 0.5) s, then in 4 x (0.5 + 0.5) s.
    assert first == pytest.approx({"tokens_per_s": 600 * 4 / 8, "audio_s_per_s": 12 / 8, "data_wait": 0.25})
    assert second == pytest.approx({"tokens_per_s": 600 * 4 / 4, "audio_s_per_s": 12 / 4, "data_wait": 0.5})


def test_peak_memory_grows_with_use() -> None:
    before = peak_memory_mb(torch.device("cpu"))
    block = torch.ones(40 * 2**20 + int(before) * 2**18)  # 160 MiB beyond what was ever in use
    assert peak_memory_mb(torch.device("cpu")) > before + 100
    assert block.sum() > 0
