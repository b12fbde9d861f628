"""Loss and metrics: audiocraft's numbers through the collator and the module, and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from audiocraft_models import Fixture, model_of
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.convert.audiocraft import lm_to_hub
from musicgen_train.data.batch import Batch, Example, collate
from musicgen_train.training.module import MusicgenTraining
from musicgen_train.training.step.schedule import ScheduleSettings
from musicgen_train.training.step.scores import Scores, counts_of, metric_names
from musicgen_train.training.weights.initialization import initialize_like_audiocraft

ASSETS = Path(__file__).parents[1] / "assets" / "audiocraft"


def module_around(decoder: MusicgenForCausalLM, projection: nn.Linear | None, **options: Any) -> MusicgenTraining:
    return MusicgenTraining(
        decoder,
        projection,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        schedule=ScheduleSettings(shape="constant", warmup_steps=0, floor=0.0),
        total_steps=10,
        **options,
    )


def module_of(fixture: Fixture, channels: int) -> MusicgenTraining:
    """A module with the fixture's weights that, like audiocraft, attends to padded text."""
    decoder, projection = model_of(fixture, channels)
    return module_around(decoder, projection, attend_to_padding=True)


def batch_of(fixture: Fixture) -> Batch:
    """The fixture's clips as they would come from a latent dataset: int16 codes, text states cut to their length."""
    examples = []
    for codes, states, mask in zip(
        fixture["codes"], fixture["cond.embeds_pre_proj"], fixture["cond.mask"].bool(), strict=True
    ):
        examples.append(Example(codes.to(torch.int16).numpy(), states[mask] if mask.any() else None))
    return collate(examples, fixture["cond.embeds_pre_proj"].shape[2])


@pytest.fixture(params=[("lm_mono_A", 1), ("lm_stereo_A", 2)], ids=["mono", "stereo"])
def trained(request: pytest.FixtureRequest) -> tuple[Fixture, MusicgenTraining]:
    fixture = load_file(ASSETS / f"{request.param[0]}.safetensors")
    return fixture, module_of(fixture, request.param[1])


def test_loss_through_collator_and_module_equals_audiocraft(trained: tuple[Fixture, MusicgenTraining]) -> None:
    fixture, module = trained
    scores = module.score(batch_of(fixture))
    assert_close(scores.sums_K / scores.counts_K, fixture["full.ce_per_codebook"], rtol=1e-5, atol=1e-6)
    assert_close(scores.loss, fixture["full.ce"], rtol=1e-5, atol=1e-6)
    assert torch.equal(scores.counts_K, fixture["full.loss_mask"].sum(dim=(0, 2)))


def test_gradients_through_collator_and_module_equal_audiocraft(trained: tuple[Fixture, MusicgenTraining]) -> None:
    fixture, module = trained
    module.score(batch_of(fixture)).loss.backward()
    expected = {key.removeprefix("full.grad."): value for key, value in fixture.items() if key.startswith("full.grad.")}
    decoder_gradients, projection_gradients = lm_to_hub(expected)
    assert projection_gradients is not None
    assert len(decoder_gradients) > 8
    ours = dict(module.named_parameters())
    for name, gradient in [
        *((f"decoder.{name}", value) for name, value in decoder_gradients.items()),
        *((f"enc_to_dec_proj.{name}", value) for name, value in projection_gradients.items()),
    ]:
        found = ours[name].grad
        assert found is not None
        assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_accuracy_is_that_of_audiocrafts_logits(trained: tuple[Fixture, MusicgenTraining]) -> None:
    fixture, module = trained
    right = (fixture["pred.logits"].argmax(dim=-1) == fixture["codes"]) & fixture["full.loss_mask"]
    scores = module.score(batch_of(fixture))
    assert torch.equal(scores.correct_K, right.sum(dim=(0, 2)))


def tiny_module(**options: Any) -> MusicgenTraining:
    config = MusicgenDecoderConfig(
        vocab_size=11,
        pad_token_id=11,
        bos_token_id=11,
        hidden_size=12,
        ffn_dim=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        dropout=0.0,
    )
    decoder, projection = MusicgenForCausalLM(config), nn.Linear(5, 12)
    initialize_like_audiocraft(decoder, projection)  # weights that are large enough for all to matter
    return module_around(decoder, projection, **options)


def tiny_batch(*clips: tuple[int, int]) -> Batch:
    """Clips of so many frames with texts of so many positions (0 for none)."""
    torch.manual_seed(3)
    codes = [torch.randint(0, 11, (4, frames), dtype=torch.int16).numpy() for frames, _ in clips]
    texts = [torch.randn(length, 5) if length else None for _, length in clips]
    return collate([Example(*pair) for pair in zip(codes, texts, strict=True)], 5)


def test_scores_of_clips_add_up_to_those_of_their_batch() -> None:
    module = tiny_module()
    batch = tiny_batch((7, 3), (13, 0), (5, 2))
    together = module.score(batch)
    parts = []
    for row in range(3):
        frames = int(batch.frames[row])
        part = Batch(
            batch.codes[row : row + 1, :, :frames],
            batch.text_states[row : row + 1],
            batch.text_mask[row : row + 1],
            batch.frames[row : row + 1],
        )
        parts.append(module.score(part))
    summed = parts[0] + parts[1] + parts[2]
    assert_close(summed.sums_K, together.sums_K, rtol=1e-5, atol=1e-6)
    assert torch.equal(summed.counts_K, together.counts_K)
    assert torch.equal(summed.correct_K, together.correct_K)
    assert together.counts_K.tolist() == [25, 22, 19, 16]  # 7 + 13 + 5, less the delay of each


@pytest.mark.parametrize(("frames", "expected"), [([7, 13, 5], [25, 22, 19, 16]), ([2, 3], [5, 3, 1, 0])])
def test_counts_follow_from_lengths(frames: list[int], expected: list[int]) -> None:
    assert counts_of(torch.tensor(frames), [0, 1, 2, 3]).tolist() == expected


def test_padded_text_is_neither_seen_nor_added_to_by_the_bias() -> None:
    module = tiny_module()
    batch = tiny_batch((7, 3))
    longer = Batch(
        batch.codes,
        torch.cat([batch.text_states, torch.full((1, 2, 5), 9.0)], dim=1),
        torch.tensor([[True, True, True, False, False]]),
        batch.frames,
    )
    assert not module.project(longer.text_states, longer.text_mask)[0, 3:].any()
    assert_close(module.score(longer).sums_K, module.score(batch).sums_K, rtol=1e-6, atol=1e-6)
    attending = tiny_module(attend_to_padding=True)
    attending.load_state_dict(module.state_dict())
    assert not torch.allclose(attending.score(longer).sums_K, module.score(batch).sums_K, rtol=1e-3)


def test_metrics_by_hand() -> None:
    scores = Scores(torch.tensor([6.0, 2.0, 0.0]), torch.tensor([4, 8, 0]), torch.tensor([1, 6, 0]))
    metrics = scores.metrics("val")
    assert list(metrics) == metric_names("val", 3)
    assert metrics["val/loss"] == pytest.approx((6 / 4 + 2 / 8) / 2)  # a codebook without codes is left out
    assert metrics["val/ce_q1"] == 1.5
    assert metrics["val/ce_q2"] == 0.25
    assert math.isnan(metrics["val/ce_q3"])
    assert metrics["val/ppl_q1"] == pytest.approx(math.exp(1.5))
    assert metrics["val/ppl_q2"] == pytest.approx(math.exp(0.25))
    assert metrics["val/acc_q1"] == 0.25
    assert metrics["val/acc_q2"] == 0.75
