"""Packing of codes and states, fingerprints, and the manifest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from musicgen_train import EncodecModel, MusicgenForConditionalGeneration, T5EncoderModel
from musicgen_train.latents.format import pack_codes, pack_states, unpack_codes, unpack_states
from musicgen_train.latents.manifest import EncoderRecord, Manifest, SplitRecord
from musicgen_train.models.fingerprint import fingerprint


def test_codes_are_little_endian_rows() -> None:
    codes = torch.tensor([[1, 2, 258], [2047, 0, 5]])
    assert pack_codes(codes) == bytes([1, 0, 2, 0, 2, 1, 0xFF, 7, 0, 0, 5, 0])
    assert np.array_equal(unpack_codes(pack_codes(codes), 2), codes.numpy())


def test_codes_beyond_int16_are_refused() -> None:
    with pytest.raises(ValueError, match="codes range from 0 to 32768; int16 holds 0 to 32767"):
        pack_codes(torch.tensor([[0, 32768]]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_states_come_back_in_their_dtype(dtype: str) -> None:
    states = torch.randn(7, 5)
    again = unpack_states(pack_states(states, dtype), 7, dtype)
    assert again.dtype == getattr(torch, dtype)
    assert torch.equal(again, states.to(again.dtype))


def test_states_beyond_the_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match="text states reach 70000, which float16 does not hold"):
        pack_states(torch.tensor([[70000.0]]), "float16")


def test_a_fingerprint_is_of_values_and_config_not_of_spelling(tmp_path: Path) -> None:
    reference = tiny.reference_composite()
    reference.save_pretrained(tmp_path / "theirs")
    ours = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    for model_class in (T5EncoderModel, EncodecModel):
        first = fingerprint(model_class.from_pretrained(tmp_path / "theirs"))
        assert fingerprint(model_class.from_pretrained(tmp_path / "ours")) == first
        changed = model_class.from_pretrained(tmp_path / "ours")
        with torch.no_grad():
            next(changed.parameters()).view(-1)[0] += 1e-3
        assert fingerprint(changed) != first
    longer = T5EncoderModel.from_pretrained(tmp_path / "ours", relative_attention_max_distance=99)
    assert fingerprint(longer) != fingerprint(ours.text_encoder)


def manifest() -> Manifest:
    return Manifest(
        text_encoder=EncoderRecord(name="t5", fingerprint="a" * 64),
        audio_encoder=EncoderRecord(name="encodec", fingerprint="b" * 64),
        sampling_rate=32_000,
        frame_rate=50.0,
        num_codebooks=4,
        codebook_size=2048,
        audio_channels=1,
        text_width=768,
        states_dtype="float16",
        splits={"train": SplitRecord(clips=3, tracks=2, hours=0.5)},
        captions=5,
        counts={"files": 4},
        settings={"clip_seconds": 30},
        command="preprocess.py input=x",
        versions={"torch": "2"},
        created="2026-11-22T00:00:00Z",
    )


def test_a_manifest_round_trips(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    assert Manifest.load(tmp_path) == manifest()


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no latent dataset: it has no manifest\.json"):
        Manifest.load(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    dataclasses.replace(manifest(), format_version=2).save(tmp_path)
    with pytest.raises(ValueError, match="format version 2; this version reads 1"):
        Manifest.load(tmp_path)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "splits": {}}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Manifest.load(tmp_path)
