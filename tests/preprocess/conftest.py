"""Fixtures of the preprocessing tests: encoders in a folder, the same encoders in transformers, and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from audio_corpus import SettingsMaker, write_encoders

from musicgen_train.preprocess.encoding.encoders import AudioCoder
from musicgen_train.preprocess.settings import PreprocessSettings


@pytest.fixture(scope="session")
def encoders_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="session")
def reference(encoders_folder: Path) -> transformers.MusicgenForConditionalGeneration:
    """The reference: the same weights in transformers."""
    return transformers.MusicgenForConditionalGeneration.from_pretrained(encoders_folder).eval()


@pytest.fixture(scope="session")
def tokenizer(encoders_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(encoders_folder)


@pytest.fixture
def make_settings(tmp_path: Path, encoders_folder: Path) -> SettingsMaker:
    """Make settings from `tmp_path/input` to `tmp_path/output` in one process; a test may give others instead."""

    def make(**given: Any) -> PreprocessSettings:
        values: dict[str, Any] = {
            "input": str(tmp_path / "input"),
            "output": str(tmp_path / "output"),
            "encoders": str(encoders_folder),
            "clip_seconds": 1.0,
            "min_clip_seconds": 0.3,
            "workers": 0,
            "device": "cpu",
            **given,
        }
        return PreprocessSettings.from_dict(values)

    return make


@pytest.fixture
def encoded_clips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of clips in each call of the codec."""
    calls: list[int] = []
    encode = AudioCoder.encode

    def counted(coder: AudioCoder, clips: Any, rows: int) -> Any:
        calls.append(len(clips))
        return encode(coder, clips, rows)

    monkeypatch.setattr(AudioCoder, "encode", counted)
    return calls
