"""Every way to name a model, and encoders that do not belong to a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_world import World, make_composite, save_composite

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.evaluation.model import check_encoders, load_model
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.latents.manifest import Manifest
from musicgen_train.training.weights import model_source
from musicgen_train.training.weights.model_source import ModelSource


def find_model(name: str) -> ModelSource:
    return model_source.find_model(name, "model")


def state_of(source: ModelSource) -> dict[str, torch.Tensor]:
    return load_model(source).model.state_dict()


def test_a_hub_folder(world: World) -> None:
    source = find_model(str(world.composite))
    assert source == ModelSource(folder=str(world.composite))
    assert source.metrics is None
    for name, value in state_of(source).items():
        assert torch.equal(value, world.model.state_dict()[name]), name


def test_a_run(training_run: Path) -> None:
    source = find_model(str(training_run))
    assert source == ModelSource(folder=str(training_run / "composite"), run=training_run)
    assert source.metrics == training_run / "metrics.csv"
    assert find_model(str(training_run / "composite")) == source


def test_a_checkpoint_takes_the_place_of_decoder_and_projection(world: World, training_run: Path) -> None:
    source = find_model(str(training_run / "checkpoints" / "last.ckpt"))
    assert source.metrics == training_run / "metrics.csv"
    evaluated = load_model(source)
    assert evaluated.text_source == str(training_run / "composite")
    trained, base = make_composite(seed=7).state_dict(), world.model.state_dict()
    for name, value in evaluated.model.state_dict().items():
        expected = trained if name.startswith(("decoder.", "enc_to_dec_proj.")) else base
        assert torch.equal(value, expected[name]), name
    assert not evaluated.model.training
    assert evaluated.model.generation_config.guidance_scale == 3.0


def test_a_run_that_has_not_ended_is_its_last_checkpoint(world: World, training_run: Path) -> None:
    (training_run / "composite").rename(training_run / "elsewhere")
    source = find_model(str(training_run))
    assert source.checkpoint == training_run / "checkpoints" / "last.ckpt"
    evaluated = load_model(source)
    # The encoders are then those that the checkpoint names.
    assert evaluated.text_source == str(world.composite)
    (training_run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no checkpoints/last\.ckpt"):
        find_model(str(training_run))


def test_what_is_no_model(world: World, training_run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a run's folder nor a model's"):
        find_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"is a file, but no \.ckpt"):
        find_model(str(training_run / "metrics.csv"))
    with pytest.raises(FileNotFoundError, match="no folder on this machine"):
        load_model(find_model(str(tmp_path / "missing")))
    damaged = training_run / "checkpoints" / "damaged.ckpt"
    damaged.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt is cut short, or no checkpoint at all"):
        load_model(find_model(str(damaged)))


def test_a_checkpoint_of_another_text_width(training_run: Path) -> None:
    path = training_run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["enc_to_dec_proj.bias"]
    content["state_dict"]["enc_to_dec_proj.weight"] = torch.zeros(24, 11)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"1 missing: bias; 1 of another shape: weight is \[24, 11\]"):
        load_model(find_model(str(path)))


def test_fingerprints_are_of_the_files_whatever_the_dtype(world: World) -> None:
    source = find_model(str(world.composite))
    half, full = load_model(source, dtype=torch.bfloat16), load_model(source)
    assert half.model.dtype == torch.bfloat16
    assert (half.text_encoder, half.audio_encoder) == (full.text_encoder, full.audio_encoder)
    check_encoders(half, Manifest.load(world.latents), "latents")


def test_float16_leaves_in_float32_what_it_has_no_range_for(world: World) -> None:
    # As `from_pretrained` reads it.
    expected = MusicgenForConditionalGeneration.from_pretrained(world.composite, dtype=torch.float16).state_dict()
    found = load_model(find_model(str(world.composite)), dtype=torch.float16).model.state_dict()
    assert {str(value.dtype) for value in found.values()} == {"torch.float16", "torch.float32"}
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("part", ["text", "audio"])
def test_other_encoders_are_refused(world: World, tmp_path: Path, part: str) -> None:
    other = make_composite()
    with torch.no_grad():
        next(getattr(other, f"{part}_encoder").parameters()).view(-1)[0] += 1e-3
    evaluated = load_model(find_model(str(save_composite(other, tmp_path / "other"))))
    with pytest.raises(ValueError, match=f"other encoders than the model has: its {part} encoder was .* preprocess"):
        check_encoders(evaluated, Manifest.load(world.latents), "latents")


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("num_codebooks", 8, "8 codebooks, the model has 4"),
        ("codebook_size", 2048, "2048 entries per codebook, the model has 64"),
        ("audio_channels", 2, "2 audio channels, the model has 1"),
        ("text_width", 768, "768 numbers per text state, the model has 20"),
    ],
)
def test_other_codes_are_refused(world: World, field: str, value: int, what: str) -> None:
    manifest = Manifest.load(world.latents)
    setattr(manifest, field, value)
    evaluated = load_model(find_model(str(world.composite)))
    with pytest.raises(ValueError, match=what):
        check_encoders(evaluated, manifest, "latents")
