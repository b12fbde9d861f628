"""The model card that ships is the one its record makes."""

from __future__ import annotations

from shipping import model_card

from musicgen_train import MusicgenForConditionalGeneration
from musicgen_train.demo.small_model import SHIPPED
from musicgen_train.files import read_json


def test_the_card_is_written_from_the_record() -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(SHIPPED)
    parts = ("text_encoder", "audio_encoder", "decoder")
    sizes = {part: sum(value.numel() for value in getattr(model, part).state_dict().values()) for part in parts}
    assert (SHIPPED / "README.md").read_text() == model_card(read_json(SHIPPED / "encoders.json"), sizes)
