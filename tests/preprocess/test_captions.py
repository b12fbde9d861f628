"""Captions: how a source's fields are read, and which texts are made of them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_train.preprocess.settings import CaptionSettings
from musicgen_train.preprocess.sources.captions import (
    Description,
    caption_variants,
    drop_words,
    fill,
    metadata_json,
)


def variants(description: Description, track: str = "t", **settings: Any) -> list[str]:
    return caption_variants(description, track, CaptionSettings(**settings))


def test_fields_are_sorted_into_captions_tags_and_metadata() -> None:
    fields = {
        "captions": ["a jazz  trio", "slow piano"],
        "description": "late night\n jazz",
        "keywords": "piano, bass,, piano ",
        "genre": ["jazz"],
        "bpm": 92,
        "key": None,
        "raw": b"\x00",
    }
    found = Description.from_fields(fields, CaptionSettings(), captions=["from the text file", " "])
    assert found.captions == ["from the text file", "late night jazz", "a jazz trio", "slow piano"]
    assert found.tags == ["piano", "bass", "jazz"]
    assert found.metadata == {name: value for name, value in fields.items() if name != "raw"}
    assert Description.from_fields({"caption": None, "text": 7}, CaptionSettings()).captions == []


def test_metadata_is_always_json() -> None:
    found = Description.from_fields(
        {"a": float("nan"), "b": {"c": (1, {2})}, "d": "x\ud800y\x00", 5: object}, CaptionSettings()
    ).metadata
    again = json.loads(metadata_json(found))
    assert again["a"] is None
    assert again["b"] == {"c": [1, [2]]}
    assert again["d"] == "x?y"
    assert metadata_json(found).encode("utf-8")


def test_own_captions_come_first_then_tags_then_templates() -> None:
    description = Description(
        captions=["one", "two"], tags=["pop"], metadata={"bpm": 120.0, "genre": ["rock", "pop"], "key": ""}
    )
    templates = ("{genre} at {bpm} bpm", "in {key}", "by {artist}")
    assert variants(description, templates=templates) == ["one", "two", "pop", "rock, pop at 120 bpm"]
    # The source's own captions are never left out; made ones are added up to the number wanted.
    assert variants(description, templates=templates, variants=1) == ["one", "two"]
    assert variants(description, templates=templates, variants=3) == ["one", "two", "pop"]
    assert variants(description, templates=templates, tags=False) == ["one", "two", "rock, pop at 120 bpm"]


def test_random_texts_fill_up_to_the_count() -> None:
    description = Description(captions=["a b c d e f"], tags=["x", "y", "z"])
    texts = variants(description, variants=9, word_dropout=0.3)
    assert texts[:2] == ["a b c d e f", "x, y, z"]
    assert len(texts) == len(set(texts)) == 9
    for text in texts[2:]:
        if "." in text:
            caption, tags = text.split(". ")
            assert caption == "a b c d e f"
            assert sorted(tags.split(", ")) == ["x", "y", "z"]
        else:
            # Words are left out, and their order is kept.
            source = ["a", "b", "c", "d", "e", "f"] if text[0] in "abcdef" else ["x,", "y,", "z"]
            kept = iter(source)
            assert all(word in kept for word in text.split())


def test_texts_follow_from_seed_and_track_alone() -> None:
    description = Description(captions=["a b c d e f g h i j"])
    options = {"variants": 5, "word_dropout": 0.5}
    assert variants(description, **options) == variants(description, **options)
    assert variants(description, track="u", **options) != variants(description, **options)
    assert variants(description, seed=1, **options) != variants(description, **options)


def test_nothing_said_is_no_caption() -> None:
    assert variants(Description(), word_dropout=0.5) == []
    assert variants(Description(metadata={"bpm": 3}), templates=("{bpm} bpm",)) == ["3 bpm"]


def test_one_word_is_never_dropped_to_nothing() -> None:
    assert variants(Description(captions=["jazz"]), word_dropout=0.99, variants=8) == ["jazz"]


def test_words_are_dropped_with_their_probability() -> None:
    rng = random.Random(0)
    words = "w " * 1000
    left = [len(drop_words(words, 0.3, rng).split()) for _ in range(20)]
    # 20 000 draws: four standard deviations are 1.3 %.
    assert sum(left) / 20_000 == pytest.approx(0.7, abs=0.013)


@given(st.lists(st.text(max_size=12), max_size=4), st.lists(st.text(max_size=6), max_size=4), st.integers(1, 6))
def test_any_text_gives_distinct_storable_captions(captions: list[str], tags: list[str], count: int) -> None:
    found = Description.from_fields({"captions": captions, "tags": tags}, CaptionSettings())
    texts = variants(found, variants=count, word_dropout=0.4)
    assert len(texts) == len(set(texts)) <= max(count, len(found.captions))
    assert texts[: len(found.captions)] == found.captions
    for text in texts:
        assert text == " ".join(text.split()) != ""
        text.encode("utf-8")


def test_templates_need_all_their_fields() -> None:
    assert fill("{a}, {b}!", {"a": "x", "b": [1, 2.0]}) == "x, 1, 2!"
    assert fill("{a} {b}", {"a": "x"}) is None
    assert fill("{a}", {"a": {"nested": 1}}) is None
    assert fill("{{{a}}}", {"a": "x"}) == "{x}"
