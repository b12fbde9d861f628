"""Reading texts: against readings by hand, and against what is true of the pieces that captions describe."""

from __future__ import annotations

import pytest

from musicgen_train.demo.composition import compose
from musicgen_train.demo.descriptions import describe
from musicgen_train.demo.draws import Draws
from musicgen_train.demo.reading import MULTIPLE, SINGLE, find, nearest_tempo, read, ways_to_say
from musicgen_train.demo.styles import STYLES
from musicgen_train.demo.text_prompts import PromptSource, free_prompt, rephrase
from musicgen_train.demo.text_quality import HAND_WRITTEN, facts_of

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
    assert read(text) == BY_HAND[text]


def test_captions_say_nothing_but_the_truth() -> None:
    for index in range(15 * len(STYLES)):
        piece = compose(77, index, seconds=4.0)
        true = facts_of(piece)
        description, *captions = describe(piece, Draws("captions", 77, index))
        for caption in (description, *captions):
            assert read(caption) <= true, caption
            assert ("style", piece.style_name) in read(caption)
        # The first names everything, but for one of two words that share a place in its forms.
        assert {kind for kind, _ in true - read(description)} <= {"energy"}, description


def test_every_way_to_say_something_says_just_that() -> None:
    for facts, texts in ways_to_say().items():
        for text in texts:
            assert read(text) == facts, text
    said = {fact for facts in ways_to_say() for fact in facts}
    everything = {(kind, value) for kinds in (SINGLE, MULTIPLE) for kind, values in kinds.items() for value in values}
    assert said == {fact for fact in everything if fact[0] != "bpm"}


def test_places_of_phrases() -> None:
    text = "Slow JAZZ with a double bass."
    assert [text[phrase.start : phrase.end] for phrase in find(text)] == ["Slow", "JAZZ", "double bass"]


@pytest.mark.parametrize(("bpm", "nearest"), [(60, "60"), (102, "100"), (120, "125"), (240, "214"), (40, "41")])
def test_nearest_tempo(bpm: int, nearest: str) -> None:
    assert nearest_tempo(bpm) == nearest


def test_other_words_same_meaning() -> None:
    draws = Draws("test", 1)
    changed = 0
    for index in range(50):
        caption = describe(compose(78, index, seconds=4.0), draws)[0]
        other = rephrase(caption, draws)
        # A new word may join its neighbour to a longer phrase, but never says something of another kind.
        assert {kind for kind, _ in read(other)} <= {kind for kind, _ in read(caption)}, other
        changed += other != caption
    assert changed == 50
    assert rephrase("slow jazz", draws, share=0.0) == "slow jazz"


def test_prompts_combine_what_the_corpus_does_not() -> None:
    draws = Draws("test", 2)
    facts = [read(free_prompt(draws)) for _ in range(3000)]
    assert any({("style", "house"), ("instrument", "harp")} <= said for said in facts)
    assert {fact for said in facts for fact in said if fact[0] != "bpm"} == {
        fact for facts in ways_to_say() for fact in facts
    }


def test_equal_seeds_equal_texts() -> None:
    first, second, other = PromptSource(1, 5), PromptSource(1, 5), PromptSource(2, 5)
    texts = [[source.draw() for _ in range(40)] for source in (first, second, other)]
    assert texts[0] == texts[1] != texts[2]


def test_expectations_by_hand_are_of_the_corpus() -> None:
    for text, wanted in HAND_WRITTEN:
        for kind, value in wanted.items():
            assert value in {**SINGLE, **MULTIPLE}[kind], text
