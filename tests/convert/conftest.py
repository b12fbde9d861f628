"""Tiny models as files, and the reference tensors of audiocraft where they are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_audiocraft import (
    FIXTURES,
    State,
    build_reference,
    codec_state_by_hand,
    lm_state_by_hand,
    settings_by_hand,
    write_package,
)


@pytest.fixture(scope="session")
def audiocraft_fixture() -> Callable[[str], tuple[State, State, dict[str, Any]]]:
    """Loader of a reference fixture: the state dict, the other tensors, and the description."""

    def load(name: str) -> tuple[State, State, dict[str, Any]]:
        path = FIXTURES / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"the optional reference tensors are not here: {path.name}")
        tensors = load_file(path)
        state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
        others = {key: value for key, value in tensors.items() if not key.startswith("state.")}
        return state, others, json.loads(path.with_suffix(".json").read_text())

    return load


@pytest.fixture(scope="session")
def reference() -> Any:
    return build_reference()


@pytest.fixture
def text_encoder(tmp_path: Path, reference: Any) -> Path:
    """A folder with the composite's text encoder, and a file that stands for its tokenizer."""
    folder = tmp_path / "t5"
    reference.text_encoder.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(b"the pieces")
    return folder


@pytest.fixture
def audiocraft_folder(tmp_path: Path, reference: Any) -> Path:
    """The composite's two files in audiocraft's layout."""
    folder = tmp_path / "audiocraft"
    folder.mkdir()
    lm_settings, codec_settings = settings_by_hand(reference)
    write_package(folder / "state_dict.bin", lm_state_by_hand(reference), lm_settings)
    write_package(folder / "compression_state_dict.bin", codec_state_by_hand(reference.audio_encoder), codec_settings)
    return folder
