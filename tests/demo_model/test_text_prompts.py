"""Texts to train the text encoder on: what they say, against what is true of the pieces that captions describe."""

from __future__ import annotations

from text_prompts import PromptSource, free_prompt, rephrase
from text_quality import HAND_WRITTEN, facts_of

from musicgen_train.demo.caption_reading import MULTIPLE, SINGLE, read_facts, ways_to_say
from musicgen_train.demo.composition import compose
from musicgen_train.demo.descriptions import describe_piece
from musicgen_train.demo.draws import Draws
from musicgen_train.demo.styles import STYLES


def test_captions_say_nothing_but_the_truth() -> None:
    for index in range(15 * len(STYLES)):
        piece = compose(77, index, seconds=4.0)
        true = facts_of(piece)
        description, *captions = describe_piece(piece, Draws("captions", 77, index))
        for caption in (description, *captions):
            assert read_facts(caption) <= true, caption
            assert ("style", piece.style_name) in read_facts(caption)
        # The first names everything, but for one of two words that share a place in its forms.
        assert {kind for kind, _ in true - read_facts(description)} <= {"energy"}, description


def test_other_words_same_meaning() -> None:
    draws = Draws("test", 1)
    changed = 0
    for index in range(50):
        caption = describe_piece(compose(78, index, seconds=4.0), draws)[0]
        other = rephrase(caption, draws)
        # A new word may join its neighbour to a longer phrase, but never says something of another kind.
        assert {kind for kind, _ in read_facts(other)} <= {kind for kind, _ in read_facts(caption)}, other
        changed += other != caption
    assert changed == 50
    assert rephrase("slow jazz", draws, share=0.0) == "slow jazz"


def test_prompts_combine_what_the_corpus_does_not() -> None:
    draws = Draws("test", 2)
    facts = [read_facts(free_prompt(draws)) for _ in range(3000)]
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
