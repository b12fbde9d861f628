"""What a run may start from, and what is said where things do not belong together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_latents import CODES, ClipSpec, write_composite, write_latents
from tiny_run import RunWith

from musicgen_train import MusicgenForCausalLM, MusicgenForConditionalGeneration
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.latents.manifest import Manifest
from musicgen_train.training.weights.starting import ModelSettings, Start, load_start


def start(init_from: Path | str, latents: Path, encoders: str | None = None, seed: int = 0, **settings: Any) -> Start:
    values = {"architecture": {}, "dropout": 0.0, "attend_to_padding": False}
    values |= {"activation_checkpointing": False, "compile": False}
    model = ModelSettings(**{**values, **settings})
    return load_start(str(init_from), encoders, model, Manifest.load(latents), str(latents), seed)


def tensors(model: MusicgenForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_hub_folder_is_taken_as_it_is(composite: Path, latents: Path) -> None:
    found = start(composite, latents, dropout=0.25)
    expected = MusicgenForConditionalGeneration.from_pretrained(composite)
    assert_same(tensors(found.composite), tensors(expected))
    assert found.composite.generation_config == expected.generation_config
    assert found.composite.decoder.config.dropout == 0.25
    trainable = {name.partition(".")[0] for name, p in found.composite.named_parameters() if p.requires_grad}
    assert trainable == {"decoder", "enc_to_dec_proj"}
    assert str(found.encoders) == str(composite)


def test_a_run_gives_its_composite_or_its_checkpoint(run_with: RunWith, latents: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", "optimizer.lr=0.01")
    trained = tensors(MusicgenForConditionalGeneration.from_pretrained(run.composite))
    assert_same(tensors(start(tmp_path / "run", latents).composite), trained)
    assert_same(tensors(start(tmp_path / "run/checkpoints/last.ckpt", latents).composite), trained)
    shutil.rmtree(run.composite)
    from_checkpoint = start(tmp_path / "run", latents).composite
    assert_same(tensors(from_checkpoint), trained)
    assert from_checkpoint.generation_config.max_length == 30


def test_from_scratch_is_drawn_as_audiocraft_does(composite: Path, latents: Path) -> None:
    size = {"hidden_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4, "ffn_dim": 60}
    one, again = (start("scratch", latents, architecture=size, seed=seed).composite for seed in (5, 5))
    assert_same(tensors(one), tensors(again))
    assert one.config.decoder.vocab_size == CODES
    assert one.decoder.lm_heads[0].weight.std().item() == pytest.approx(40**-0.5, rel=0.05)
    other = start("scratch", latents, architecture=size, seed=6).composite
    assert not torch.equal(one.enc_to_dec_proj.weight, other.enc_to_dec_proj.weight)
    # Without encoders= they are those that the latents were made with.
    expected = MusicgenForConditionalGeneration.from_pretrained(composite)
    assert_same(dict(one.text_encoder.state_dict()), dict(expected.text_encoder.state_dict()))
    assert_same(dict(one.audio_encoder.state_dict()), dict(expected.audio_encoder.state_dict()))


def test_a_decoder_alone_gets_a_new_projection(composite: Path, latents: Path, tmp_path: Path) -> None:
    decoder = MusicgenForCausalLM.from_pretrained(composite)
    decoder.save_pretrained(tmp_path / "decoder")
    found = start(tmp_path / "decoder", latents).composite
    assert_same(dict(found.decoder.state_dict()), dict(decoder.state_dict()))
    assert found.enc_to_dec_proj.weight.shape == (20, 12)


def test_mono_becomes_stereo(composite: Path, tmp_path: Path) -> None:
    stereo = write_latents(tmp_path / "latents", composite, [ClipSpec(30)], num_codebooks=8, audio_channels=2)
    found = start(composite, stereo, architecture={"audio_channels": 2, "num_codebooks": 8}).composite.decoder
    mono = MusicgenForCausalLM.from_pretrained(composite)
    assert found.delays == [0, 0, 1, 1, 2, 2, 3, 3]
    for codebook in range(8):
        assert torch.equal(found.lm_heads[codebook].weight, mono.lm_heads[codebook // 2].weight)
    assert not found.lm_heads[0].weight.is_meta
    assert found.lm_heads[0].weight.requires_grad


def test_stereo_codes_need_a_stereo_model(composite: Path, tmp_path: Path) -> None:
    stereo = write_latents(tmp_path / "latents", composite, [ClipSpec(30)], num_codebooks=8, audio_channels=2)
    with pytest.raises(ValueError, match=r"have 8 codebooks but .*composite expects 4; add model=stereo"):
        start(composite, stereo)


def test_other_codebooks_are_refused(composite: Path, tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", composite, [ClipSpec(30)], num_codebooks=3)
    with pytest.raises(
        ValueError, match=r"have 3 codebooks but .* expects 4; preprocess with the encoders of that model"
    ):
        start(composite, latents)


def test_other_codes_are_refused(composite: Path, tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", composite, [ClipSpec(30)], codebook_size=128)
    with pytest.raises(ValueError, match=r"are below 128, .* knows 64"):
        start(composite, latents)


@pytest.mark.parametrize("part", ["text", "audio"])
def test_other_encoders_are_refused_and_named(composite: Path, latents: Path, tmp_path: Path, part: str) -> None:
    other = write_composite(tmp_path / "other")
    model = MusicgenForConditionalGeneration.from_pretrained(other)
    with torch.no_grad():
        next(getattr(model, f"{part}_encoder").parameters()).mul_(1.01)
    model.save_pretrained(other)
    message = rf"the {part} encoder of .*other \(fingerprint \w{{12}}\) is not the one the latents were made with"
    with pytest.raises(ValueError, match=message) as error:
        start(composite, latents, encoders=str(other))
    assert f"encoders={composite}" in str(error.value)
    assert str(error.value).count("is not the one") == 1


def test_another_size_than_init_froms_is_refused(composite: Path, latents: Path) -> None:
    with pytest.raises(ValueError, match=r"another decoder than init_from=.* hidden_size is 128, its own 20\. Leave"):
        start(composite, latents, architecture={"hidden_size": 128, "num_codebooks": 4})


def test_scratch_needs_a_size(latents: Path) -> None:
    with pytest.raises(ValueError, match=r"init_from=scratch needs the size of the model; add e\.g\. model=tiny"):
        start("scratch", latents)


def test_checkpointing_can_be_turned_on(composite: Path, latents: Path) -> None:
    assert start(
        composite, latents, activation_checkpointing=True
    ).composite.decoder.model.decoder.gradient_checkpointing


def test_another_kind_of_model_is_refused(composite: Path, latents: Path, tmp_path: Path) -> None:
    MusicgenForConditionalGeneration.from_pretrained(composite).audio_encoder.save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="is of type encodec; init_from takes a musicgen"):
        start(tmp_path / "codec", latents)


def test_a_checkpoint_of_something_else_is_refused(latents: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt is no checkpoint of scripts/train\.py"):
        start(tmp_path / "other.ckpt", latents)


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_a_checkpoint_with_code_in_it_is_not_executed(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(CheckpointError, match=r"hostile\.ckpt holds more than tensors .* executed"):
        start(tmp_path / "hostile.ckpt", latents)
    assert "executed" not in capsys.readouterr().out
