"""Reading texts: against readings by hand."""

from __future__ import annotations

import pytest

from musicgen_train.demo.caption_reading import MULTIPLE, SINGLE, find_phrases, nearest_tempo, read_facts, ways_to_say

BY_HAND = {
    "Calm piano melody": {("energy", "calm"), ("instrument", "piano")},
    "hip-hop, NO DRUMS": {("style", "hip hop"), ("drums", "no")},
    "drums and no piano, without a flute": {("drums", "yes"), ("instrument", "flute")},
    "a short piano chord": {("instrument", "piano")},
    "short piano chords": {("instrument", "piano"), ("figure", "stabs")},
    "short, piano chords": {("instrument", "piano"), ("figure", "comping")},
    "electric piano": {("instrument", "electric piano")},
    "rock, drums": {("style", "rock"), ("drums", "yes")},
    "E flat minor, c\u266f major": {("key", "Eb"), ("key", "Db"), ("mode", "minor"), ("mode", "major")},
    "in a minor key": {("mode", "minor")},
    "in A minor": {("key", "A"), ("mode", "minor")},
    "120bpm": {("bpm", "125"), ("tempo", "fast")},
    "88 beats per minute": {("bpm", "88"), ("tempo", "slow")},
    "bpm 88, 8-bit": {("bpm", "88"), ("tempo", "slow"), ("style", "chiptune")},
    "1000 bpm": set(),
    "": set(),
    "nothing that is known": set(),
}


@pytest.mark.parametrize("text", BY_HAND)
def test_readings_by_hand(text: str) -> None:
    assert read_facts(text) == BY_HAND[text]


def test_every_way_to_say_something_says_just_that() -> None:
    for facts, texts in ways_to_say().items():
        for text in texts:
            assert read_facts(text) == facts, text
    said = {fact for facts in ways_to_say() for fact in facts}
    everything = {(kind, value) for kinds in (SINGLE, MULTIPLE) for kind, values in kinds.items() for value in values}
    assert said == {fact for fact in everything if fact[0] != "bpm"}


def test_places_of_phrases() -> None:
    text = "Slow JAZZ with a double bass."
    assert [text[phrase.start : phrase.end] for phrase in find_phrases(text)] == ["Slow", "JAZZ", "double bass"]


@pytest.mark.parametrize(("bpm", "nearest"), [(60, "60"), (102, "100"), (120, "125"), (240, "214"), (40, "41")])
def test_nearest_tempo(bpm: int, nearest: str) -> None:
    assert nearest_tempo(bpm) == nearest
