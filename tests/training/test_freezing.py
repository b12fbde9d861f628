"""Groups of parameters: they divide the model, and what is frozen stays as it is, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_latents import ClipSpec, write_latents
from tiny_run import RunWith

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.training.weights.freezing import (
    PARAMETER_GROUPS,
    FreezeSettings,
    group_predicate,
    is_trainable_part,
)

PARTS = {
    "embeddings": r"embed_tokens",
    "heads": r"lm_heads",
    "self_attention": r"layers\.\d\.self_attn\.",
    "cross_attention": r"layers\.\d\.encoder_attn\.",
    "feed_forward": r"fc\d",
    "norms": r"layer_norm",
    "text_projection": r"enc_to_dec_proj",
}


@pytest.fixture(scope="module")
def names(composite: Path) -> list[str]:
    model = MusicgenForConditionalGeneration.from_pretrained(composite)
    return [name for name, _ in model.named_parameters() if is_trainable_part(name)]


def test_every_parameter_is_in_one_group(names: list[str]) -> None:
    for name in names:
        [group] = [group for group in PARAMETER_GROUPS if group_predicate(group, 2, "freeze")(name)]
        assert re.search(PARTS[group], name)


def test_layers_are_ranges_with_both_ends() -> None:
    within = group_predicate("layers.2-11", 24, "freeze")
    found = [layer for layer in range(24) if within(f"decoder.model.decoder.layers.{layer}.fc1.weight")]
    assert found == list(range(2, 12))
    assert not within("decoder.model.decoder.layer_norm.weight")
    assert group_predicate("layers.3", 24, "freeze")("decoder.model.decoder.layers.3.self_attn_layer_norm.bias")
    assert not group_predicate("layers.3", 24, "freeze")("decoder.model.decoder.layers.13.fc1.weight")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["freeze=[embeddings,norms,layers.0]"],
            lambda name: not re.search(r"embed_tokens|layer_norm|layers\.0", name),
        ),
        (["train_only=[cross_attention,text_projection]"], lambda name: re.search(r"encoder_attn\.|enc_to_dec", name)),
    ],
)
# Weight decay and momentum would move a parameter without a gradient too, if an optimizer had it; averages round.
@pytest.mark.parametrize("callbacks", ["default", "ema"])
def test_what_is_frozen_stays_and_has_no_optimizer_state(
    run_with: RunWith, composite: Path, tmp_path: Path, settings: list[str], expected: object, callbacks: str
) -> None:
    assert callable(expected)
    made = run_with(
        tmp_path / "run", *settings, f"callbacks={callbacks}", "optimizer.lr=0.01", "optimizer.weight_decay=0.5"
    )
    base = MusicgenForConditionalGeneration.from_pretrained(composite).state_dict()
    found = MusicgenForConditionalGeneration.from_pretrained(made.composite).state_dict()
    trained = [name for name, _ in made.module.named_parameters() if expected(name)]
    assert 0 < len(trained) < len(list(made.module.parameters()))
    for name, value in found.items():
        assert torch.equal(value, base[name]) == (name not in trained), name
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    states = checkpoint["optimizer_states"][0]["state"].values()
    assert sum(value["exp_avg"].numel() for value in states) == sum(found[name].numel() for name in trained)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["freeze=[self_atention]"],
            r"names the group 'self_atention', which there is not; the nearest is self_attent",
        ),
        (["train_only=[all]"], r"There are: embeddings, heads, self_attention, .*text_projection, and layers such as"),
        (["freeze=[layers.1-2]"], r"freeze names layers\.1-2, but the decoder has the layers 0 to 1"),
        (["freeze=[layers.1-0]"], r"freeze names layers\.1-0"),
        (["freeze=heads"], r"freeze is 'heads'; expected a list, as in \[heads\]"),
        (["freeze=[norms]", "train_only=[heads]"], r"freeze and train_only are both given"),
        (["freeze=[layers.0-1,embeddings,heads,norms,text_projection]"], r"leave nothing to train"),
    ],
)
def test_settings_that_make_no_sense(run_with: RunWith, tmp_path: Path, overrides: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        run_with(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_what_is_new_has_to_be_trained(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    MusicgenForConditionalGeneration.from_pretrained(composite).decoder.save_pretrained(tmp_path / "decoder")
    with pytest.raises(ValueError, match="the projection of the text is new and random"):
        run_with(tmp_path / "run", f"init_from={tmp_path / 'decoder'}", "freeze=[text_projection]")
    stereo = write_latents(tmp_path / "latents", composite, [ClipSpec(30)], num_codebooks=8, audio_channels=2)
    with pytest.raises(ValueError, match=r"begins with equal channels, .*; heads would not be"):
        run_with(tmp_path / "run", "model=stereo", f"data.path={stereo}", "train_only=[layers.0-1,embeddings]")


def test_stereo_with_frozen_layers(run_with: RunWith, composite: Path, tmp_path: Path) -> None:
    latents = write_latents(
        tmp_path / "latents", composite, [ClipSpec(30), ClipSpec(34)], num_codebooks=8, audio_channels=2
    )
    made = run_with(
        tmp_path / "run", "model=stereo", f"data.path={latents}", "freeze=[layers.0-1]", "optimizer.lr=0.01"
    )
    base = MusicgenForConditionalGeneration.from_pretrained(composite).state_dict()
    found = MusicgenForConditionalGeneration.from_pretrained(made.composite).state_dict()
    for name, value in found.items():
        if ".layers." in name and name.startswith("decoder."):
            assert torch.equal(value, base[name])
    assert not torch.equal(found["decoder.lm_heads.0.weight"], found["decoder.lm_heads.1.weight"])


def test_freezing_nothing_trains_all(names: list[str]) -> None:
    assert all(map(FreezeSettings().trains(2), names))
