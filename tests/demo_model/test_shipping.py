"""The folder that ships: it is what `ship` writes, and its card is written from its record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shipping import model_card, ship

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.demo.small_model import SHIPPED
from musicgen_train.files import read_json


def test_the_card_is_written_from_the_record() -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(SHIPPED)
    parts = ("text_encoder", "audio_encoder", "decoder")
    sizes = {part: sum(value.numel() for value in getattr(model, part).state_dict().values()) for part in parts}
    assert (SHIPPED / "README.md").read_text() == model_card(read_json(SHIPPED / "encoders.json"), sizes)


def test_shipping_what_ships_changes_nothing(tmp_path: Path) -> None:
    folder = ship(SHIPPED, SHIPPED, tmp_path / "again")
    names = sorted(path.name for path in SHIPPED.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    # Which library wrote a JSON file decides the order of its keys.
    same = {
        name: read_json(folder / name) == read_json(SHIPPED / name)
        if name.endswith(".json")
        else (folder / name).read_bytes() == (SHIPPED / name).read_bytes()
        for name in names
    }
    assert same == dict.fromkeys(names, True)


def test_another_codec_is_refused(tmp_path: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(SHIPPED)
    with torch.no_grad():
        next(model.audio_encoder.parameters()).add_(1.0)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"the audio_encoder of .*other is not that of"):
        ship(tmp_path / "other", SHIPPED, tmp_path / "shipped")
