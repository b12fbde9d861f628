"""The decoder against audiocraft itself: logits, per-codebook cross-entropies, gradients, generated codes.

audiocraft attends to padded text positions, whose states are zero; here that is asked for by leaving the mask out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from audiocraft_models import Fixture, model_of
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from musicgen_train import MusicgenDecoderConfig, MusicgenForCausalLM
from musicgen_train.convert.audiocraft import lm_to_hub
from musicgen_train.models.delay_pattern import apply_delay, training_labels, undo_delay
from musicgen_train.training.weights.initialization import initialize_like_audiocraft

ASSETS = Path(__file__).parents[1] / "assets"


def fixture_of(name: str) -> Fixture:
    return load_file(ASSETS / "audiocraft" / f"{name}.safetensors")


@pytest.fixture(params=[("lm_mono_A", 1), ("lm_stereo_A", 2)], ids=["mono", "stereo"])
def trained(request: pytest.FixtureRequest) -> tuple[Fixture, MusicgenForCausalLM, nn.Linear]:
    fixture = fixture_of(request.param[0])
    return fixture, *model_of(fixture, request.param[1])


def text_of(fixture: Fixture, projection: nn.Linear) -> torch.Tensor:
    return projection(fixture["cond.embeds_pre_proj"]) * fixture["cond.mask"][..., None]


def test_projected_text_equals_audiocraft(trained: tuple[Fixture, MusicgenForCausalLM, nn.Linear]) -> None:
    fixture, _, projection = trained
    assert_close(text_of(fixture, projection), fixture["cond.embeds"], rtol=1e-5, atol=1e-6)


def test_logits_of_the_training_sequence_equal_audiocraft(
    trained: tuple[Fixture, MusicgenForCausalLM, nn.Linear],
) -> None:
    fixture, model, projection = trained
    sequence = fixture["seq.codes"]
    logits = model(sequence, encoder_hidden_states=text_of(fixture, projection)).logits
    batch, codebooks, steps = sequence.shape
    assert_close(logits.view(batch, codebooks, steps, -1), fixture["seq.logits"], rtol=1e-5, atol=1e-5)


def test_aligned_logits_of_our_labels_equal_audiocraft(
    trained: tuple[Fixture, MusicgenForCausalLM, nn.Linear],
) -> None:
    fixture, model, projection = trained
    codes = fixture["codes"]
    labels = training_labels(codes, model.delays, model.config.pad_token_id)
    logits = model(labels=labels, encoder_hidden_states=text_of(fixture, projection)).logits
    delayed = logits.view(*codes.shape[:2], codes.shape[2], -1)
    aligned = undo_delay(delayed, model.delays)
    frames = aligned.shape[2]  # those whose every codebook is predicted
    assert_close(aligned, fixture["pred.logits"][:, :, :frames], rtol=1e-5, atol=1e-5)


def test_null_text_equals_audiocraft(trained: tuple[Fixture, MusicgenForCausalLM, nn.Linear]) -> None:
    fixture, model, _ = trained
    codes = fixture["codes"]
    labels = training_labels(codes, model.delays, model.config.pad_token_id)
    states = torch.randn(codes.shape[0], 5, model.config.hidden_size)
    logits = model(
        labels=labels, encoder_hidden_states=states, encoder_attention_mask=torch.zeros(len(codes), 5)
    ).logits
    aligned = undo_delay(logits.view(*codes.shape[:2], codes.shape[2], -1), model.delays)
    assert_close(aligned, fixture["null.pred.logits"][:, :, : aligned.shape[2]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["full", "padded", "padded_special"])
def test_cross_entropies_equal_audiocraft(trained: tuple[Fixture, MusicgenForCausalLM, nn.Linear], case: str) -> None:
    fixture, model, projection = trained
    special = model.config.pad_token_id
    codes = fixture["codes"]
    valid = fixture[f"{case}.padding_mask"]
    labels = training_labels(codes.masked_fill(~valid, -100), model.delays, special)
    inputs = {"encoder_hidden_states": text_of(fixture, projection)}
    if case == "padded":
        # Here audiocraft leaves the codes of the padded frames in the input; -100 would make them the special id.
        whole = apply_delay(codes, model.delays, special)[..., : codes.shape[-1]]
        inputs["input_ids"] = torch.cat([torch.full_like(whole[..., :1], special), whole[..., :-1]], dim=-1)
    output = model(labels=labels, **inputs)
    assert_close(output.codebook_losses, fixture[f"{case}.ce_per_codebook"], rtol=1e-5, atol=1e-6)
    assert_close(output.loss, fixture[f"{case}.ce"].view(()), rtol=1e-5, atol=1e-6)
    assert torch.equal(output.codebook_counts, fixture[f"{case}.loss_mask"].sum(dim=(0, 2)))


def test_gradients_equal_audiocraft(trained: tuple[Fixture, MusicgenForCausalLM, nn.Linear]) -> None:
    fixture, model, projection = trained
    labels = training_labels(fixture["codes"], model.delays, model.config.pad_token_id)
    model(labels=labels, encoder_hidden_states=text_of(fixture, projection)).loss.backward()
    # Gradients take the way of the weights: the same table says which of ours an audiocraft tensor is.
    expected = {k.removeprefix("full.grad."): v for k, v in fixture.items() if k.startswith("full.grad.")}
    parameters = dict(model.named_parameters())
    compared = 0
    for key, gradient in expected.items():
        if key.startswith("condition_provider."):
            ours = getattr(projection, key.rsplit(".", 1)[1]).grad
            assert_close(ours, gradient, rtol=1e-4, atol=1e-6)
            compared += 1
            continue
        for name, part in lm_to_hub({key: gradient})[0].items():
            assert_close(parameters[name].grad, part, rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared >= len(expected) >= 10
    squares = [p.grad.square().sum() for p in [*parameters.values(), *projection.parameters()]]
    assert_close(torch.stack(squares).sum().sqrt(), fixture["full.grad_norm_total"].view(()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("texts", ["eq", "pad"])
@pytest.mark.parametrize("prompted", [False, True])
def test_guided_greedy_codes_equal_audiocraft(texts: str, prompted: bool) -> None:
    fixture = fixture_of("lm_generate_A")
    model, projection = model_of(fixture)
    rows = fixture["prompt"].shape[0]
    mask = fixture[f"{texts}.cfg_mask"][:rows]
    states = projection(fixture[f"{texts}.cfg_embeds_pre_proj"][:rows]) * mask[..., None]
    expected = fixture[f"{texts}.{'prompt' if prompted else 'noprompt'}.codes"]
    prompt = fixture["prompt"] if prompted else None
    got = model.generate(
        prompt, encoder_hidden_states=states, guidance_scale=3.0, do_sample=False, max_length=expected.shape[-1] + 4
    )
    assert torch.equal(got, expected)


def test_unguided_greedy_codes_equal_audiocraft() -> None:
    fixture = fixture_of("lm_generate_A")
    model, _ = model_of(fixture)
    states = fixture["eq.cfg_embeds"][: fixture["prompt"].shape[0]]
    got = model.generate(encoder_hidden_states=states, guidance_scale=1.0, do_sample=False, max_length=28)
    assert torch.equal(got, fixture["eq.noprompt_cfg1.codes"])


def test_initialisation_has_audiocrafts_statistics() -> None:
    recorded = json.loads((ASSETS / "audiocraft" / "lm_init_stats.json").read_text())["stats"]
    torch.manual_seed(0)
    # A quarter of the recorded model's widths, to be quick; deviations go with 1/sqrt(width), so they are doubled.
    decoder = MusicgenForCausalLM(MusicgenDecoderConfig(hidden_size=256, ffn_dim=1024))
    projection = nn.Linear(192, 256)
    initialize_like_audiocraft(decoder, projection)
    ours = {name: value.detach() for name, value in decoder.named_parameters()}
    checked = 0
    for key, expected in recorded.items():
        if key.startswith("condition_provider."):
            tensors = [getattr(projection, key.rsplit(".", 1)[1]).detach()]
        else:
            # The converter tells by name and shape which of our tensors stand for this one.
            names = lm_to_hub({key: torch.empty(expected["shape"], device="meta")})[0]
            tensors = [ours[name] for name in names]
        for tensor in tensors:
            is_norm = ".norm" in key or "out_norm" in key
            scale = 1 if is_norm else 2
            few = tensor.numel() < 10_000
            assert tensor.std().item() == pytest.approx(scale * expected["std"], rel=0.1 if few else 0.01, abs=1e-8), (
                key
            )
            assert tensor.abs().max().item() <= scale * expected["abs_max"] * 1.02, key
            checked += 1
    assert checked > len(recorded)


def test_a_new_model_scores_near_chance() -> None:
    torch.manual_seed(0)
    config = MusicgenDecoderConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128)
    loss = MusicgenForCausalLM(config).eval()(labels=torch.randint(0, 2048, (2, 20, 4))).loss
    assert abs(loss.item() - math.log(2048)) < 0.1
