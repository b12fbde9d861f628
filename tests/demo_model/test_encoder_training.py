"""Both encoders trained for next to nothing: a composite that loads, that the card describes, and that is made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from codec_training import CodecTraining
from encoder_training import EncoderTraining, train_encoders
from shipping import ship
from text_training import TextTraining

from musicgen_train import MusicgenForConditionalGeneration, MusicgenProcessor

SHORT = EncoderTraining(
    clips=5,
    held_out_clips=2,
    codec=CodecTraining(fitting_clips=5, passes=1, steps=1, batch_size=1, crop_frames=10),
    text=TextTraining(steps=2, batch_size=8, pieces=5, held_out_pieces=3),
)


def test_a_short_training_gives_a_composite_that_can_ship(tmp_path: Path) -> None:
    folder = train_encoders(tmp_path / "encoders", SHORT, lambda line: None)
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    inputs = MusicgenProcessor.from_pretrained(folder)(text=["slow jazz"], return_tensors="pt")
    audio = model.generate(**inputs, max_new_tokens=13)
    assert isinstance(audio, torch.Tensor)
    assert audio.shape == (1, 1, 10 * 640)
    shipped = ship(folder, folder, tmp_path / "shipped")
    assert "trained by gradients for 1 steps on 5 tracks" in (shipped / "README.md").read_text()

    def report(line: str) -> None:
        raise AssertionError(f"trained again: {line}")

    assert train_encoders(tmp_path / "encoders", SHORT, report) == folder
    with pytest.raises(ValueError, match=r"was begun with .*; asked for now: .* Give another folder"):
        train_encoders(tmp_path / "encoders", EncoderTraining(), report)
