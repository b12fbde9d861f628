"""Batches in page-locked memory, from workers and from two loaders at once: what arrives on a GPU is what was read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from musicgen_train.data.batch import Batch
from musicgen_train.data.datamodule import DataSettings, LatentDataModule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STEPS = 200
NAMES = ("codes", "text_states", "text_mask", "frames")


def data_of(latents: Path, workers: int, device: str) -> LatentDataModule:
    settings = DataSettings(
        path=str(latents),
        crop_seconds=0.5,
        global_batch_size=4,
        micro_batch_size=None,
        cfg_dropout=0.3,
        validation_clips=None,
        workers=workers,
    )
    data = LatentDataModule(settings, seed=0, total_steps=STEPS)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=0, strategy=SimpleNamespace(root_device=torch.device(device))
    )
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_a_gpu_as_they_were_read(latents: Path, workers: int) -> None:
    here, there = data_of(latents, 0, "cpu"), data_of(latents, workers, "cuda")
    expected = list(here.train_dataloader())
    validation = there.val_dataloader()
    busy = torch.randn(2048, 2048, device="cuda")
    arrived: list[Batch] = []
    for number, batch in enumerate(there.train_dataloader()):
        assert all(getattr(batch, name).is_pinned() for name in NAMES)
        for _ in range(20):  # so that copies wait in the queue while the next batches are read
            busy = (busy @ busy).clamp(-1, 1)
        arrived.append(batch.to("cuda"))
        del batch
        if number % 50 == 0:
            assert all(held.codes.is_pinned() for held in validation)
    for one, other in zip(arrived, expected, strict=True):
        assert all(torch.equal(getattr(one, name).cpu(), getattr(other, name)) for name in NAMES)
