"""Training, scoring and preprocessing on tensors that have a CUDA device but no values: see `fake_cuda.py`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from fake_cuda import CUDA, composite, fake_cuda
from torch import nn

from musicgen_train import (
    EncodecConfig,
    EncodecModel,
    T5Config,
    T5EncoderModel,
)
from musicgen_train.data.batch import Batch
from musicgen_train.evaluation.cross_entropy import score_split
from musicgen_train.preprocess.encoding.encoders import AudioCoder, TextCoder
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.step.schedule import ScheduleSettings
from musicgen_train.training.step.verdict import measure_step

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

B, K, T, L = 2, 4, 9, 5


def batch() -> Batch:
    with CUDA:
        return Batch(
            codes=torch.zeros(B, K, T, dtype=torch.long),
            text_states=torch.zeros(B, L, tiny.TEXT["d_model"]),
            text_mask=torch.ones(B, L, dtype=torch.bool),
            frames=torch.full((B,), T),
            step_frames=torch.full((2 * B,), T),
        )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("attend_to_padding", [False, True])
def test_a_step_looks_at_the_device_once(precision: str, attend_to_padding: bool) -> None:
    with fake_cuda() as watch:
        model = composite()
        module = MusicgenTraining(
            model.decoder,
            model.enc_to_dec_proj,
            make_optimizer=torch.optim.AdamW,
            schedule=ScheduleSettings(shape="constant", warmup_steps=0, floor=0.0),
            total_steps=2,
            attend_to_padding=attend_to_padding,
        ).train()
        module._trainer = SimpleNamespace(accumulate_grad_batches=2, world_size=1)  # type: ignore[assignment]
        dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
        for number in range(2):
            with torch.autocast("cuda", dtype, enabled=precision != "32-true"):
                loss = module.training_step(batch(), number)
            assert (loss.device, loss.dtype, loss.requires_grad) == (CUDA, torch.float32, True)
        with torch.no_grad():
            parameters = list(module.parameters())
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            assert not watch.looks
            measure_step(module._parts[0].share, norm)
            assert watch.looks == ["measure_step"]
            nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
            module.validation_step(batch(), 0)
        assert watch.looks == ["measure_step"]


def test_evaluation_scores_on_the_device() -> None:
    with fake_cuda(copies=True):
        scores = score_split(composite(), [batch(), batch()])
        assert scores.cross_entropy.device.type == "cpu"


def test_clips_and_captions_are_encoded_on_the_device() -> None:
    with fake_cuda(copies=True):
        with CUDA:
            codec = EncodecModel(EncodecConfig(**tiny.CODEC)).eval()
            text = T5EncoderModel(T5Config(**tiny.TEXT)).eval()
        clips = [np.zeros((1, 100), dtype=np.float32)] * 3
        codes = AudioCoder(codec, 1).encode(clips, rows=4)
        assert (codes.device.type, codes.dtype, len(codes)) == ("cpu", torch.int16, 3)
        tokenizer = SimpleNamespace(encode=lambda text: [5, 6, 1])
        coder = TextCoder(text, tokenizer, max_tokens=8, batch_tokens=64)  # type: ignore[arg-type]
        (encoded,) = coder.encode(["a piano"])
        assert encoded.states_LD.device.type == "cpu"
