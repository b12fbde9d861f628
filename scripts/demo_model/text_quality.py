"""Measures how well a text encoder reads what texts say about music, on texts it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from text_probes import Probes, mean_states
from text_prompts import free_prompt
from torch.nn import functional as F

from musicgen_train.demo.caption_reading import MULTIPLE, SINGLE, Facts, nearest_tempo, read_facts, ways_to_say
from musicgen_train.demo.composition import Piece, compose
from musicgen_train.demo.descriptions import describe_piece, tempo_class
from musicgen_train.demo.draws import Draws
from musicgen_train.models.t5 import T5EncoderModel
from musicgen_train.processing.t5_tokenizer import T5Tokenizer

# Far from the seeds people take for their corpora, and from those of training.
_HELD_OUT_SEED = 5_000_000

# Prompts written by hand, most with words that none of our tables has, and what a listener would expect of them.
HAND_WRITTEN: tuple[tuple[str, dict[str, str]], ...] = (
    ("calm piano melody", {"energy": "calm", "instrument": "piano"}),
    ("Calm Piano Melody!", {"energy": "calm", "instrument": "piano"}),
    ("peaceful piano music to fall asleep", {"energy": "calm", "instrument": "piano"}),
    ("some happy folk with a fiddle please", {"mode": "major", "style": "folk", "instrument": "fiddle"}),
    ("techno at 125 bpm", {"style": "house", "bpm": "125", "tempo": "fast"}),
    ("a fast, energetic techno track with a bright lead and heavy drums",
     {"style": "house", "tempo": "fast", "energy": "energetic", "drums": "yes"}),
    ("a slow, calm ambient piece in a minor key with soft pads",
     {"style": "ambient", "tempo": "slow", "energy": "calm", "mode": "minor", "instrument": "warm pad"}),
    ("a mid-tempo funk groove with electric piano and bass",
     {"style": "funk", "tempo": "medium", "instrument": "electric piano"}),
    ("sad violin over strings", {"mode": "minor", "instrument": "fiddle"}),
    ("80s pop track with bassy drums and synth", {"style": "synthwave", "drums": "yes", "instrument": "synth"}),
    ("90s rock song with loud guitars and heavy drums", {"style": "rock", "drums": "yes"}),
    ("lofi hip hop beats to study to", {"style": "lo-fi"}),
    ("chill lofi with a lazy beat and rhodes", {"style": "lo-fi", "energy": "calm", "instrument": "electric piano"}),
    ("dark and brooding synthwave in D minor",
     {"style": "synthwave", "brightness": "dark", "mode": "minor", "key": "D"}),
    ("an upbeat jazz tune, walking double bass and brushes",
     {"style": "jazz", "energy": "energetic", "instrument": "upright bass", "figure": "walking"}),
    ("swinging jazz trio with saxophone, no drums", {"style": "jazz", "drums": "no", "instrument": "brass"}),
    ("8 bit video game music, very fast", {"style": "chiptune", "tempo": "fast"}),
    ("cheerful chiptune in the key of G", {"style": "chiptune", "mode": "major", "key": "G"}),
    ("a waltz for accordion", {"style": "waltz", "instrument": "accordion"}),
    ("gentle waltz with music box, without drums", {"style": "waltz", "energy": "calm", "drums": "no"}),
    ("rock ballad in E major", {"style": "rock", "key": "E", "mode": "major"}),
    ("powerful rock, 136 bpm, no singing, distorted guitars", {"style": "rock", "energy": "energetic", "bpm": "136"}),
    ("meditation music with bells and choir", {"style": "ambient", "instrument": "bells"}),
    ("funky slap bass with a tight groove", {"style": "funk"}),
    ("rap beat, 88 bpm, moody", {"style": "hip hop", "bpm": "88", "mode": "minor"}),
    ("house music", {"style": "house"}),
    ("HOUSE MUSIC, LIVELY, BRIGHT", {"style": "house", "energy": "energetic", "brightness": "bright"}),
    ("acoustic guitar fingerpicking, warm and relaxed",
     {"instrument": "acoustic guitar", "energy": "calm", "brightness": "dark"}),
    ("irish tin whistle and strummed guitar", {"style": "folk", "instrument": "whistle", "figure": "strummed"}),
    ("slowly evolving drone", {"style": "ambient", "tempo": "slow"}),
    ("melanchollic pianno", {"mode": "minor", "instrument": "piano"}),
    ("relaxin jaz for a rainy evening", {"style": "jazz", "energy": "calm"}),
    ("F sharp minor, 100 bpm", {"key": "F#", "mode": "minor", "bpm": "100"}),
    ("Bb major jazz", {"key": "Bb", "mode": "major", "style": "jazz"}),
    ("harp arpeggios, crystal clear and bright", {"instrument": "harp", "brightness": "bright"}),
    ("no drums, just a flute", {"drums": "no", "instrument": "flute"}),
)  # fmt: skip


@dataclass(frozen=True)
class TextQuality:
    """How well unseen texts are read, and how close the states of similar texts are. Shares are from 0 to 1.

    Args:
        captions: number of texts: all captions of pieces of another seed.
        accuracy: by property, how often the probes name the right value where a caption states it.
        open: by property, how often they find nothing where a caption states nothing; without properties that every
            caption states.
        recall, precision: for instruments and for figures: the share found of those stated, and stated of those found.
        free: as `accuracy`, over prompts that combine any properties.
        hand_written: share of the expectations in `HAND_WRITTEN` that are met.
        missed: the expectations that are not met.
        agreement: mean cosine between texts that differ in one word with the same meaning, after subtracting the mean
            of all texts.
        contrast: the same for words with different meanings, of the same property.
        rms: root mean square of the states.
    """

    captions: int
    accuracy: dict[str, float]
    open: dict[str, float]
    recall: dict[str, float]
    precision: dict[str, float]
    free: dict[str, float]
    hand_written: float
    missed: list[str]
    agreement: float
    contrast: float
    rms: float


def measure_text_encoder(
    encoder: T5EncoderModel, probes: Probes, tokenizer: T5Tokenizer, seed: int = 0, pieces: int = 400
) -> TextQuality:
    """Measure an encoder on captions of other pieces, on random prompts and on those written by hand.

    The probes' answers are compared with the truth about the piece, not with what was read off its captions.

    Args:
        encoder, probes: the result of `train_text_encoder`.
        tokenizer: the encoder's tokenizer.
        seed: seed of the pieces.
        pieces: number of pieces.
    """
    texts: list[str] = []
    expected: list[Facts] = []
    for index in range(pieces):
        piece = compose(_HELD_OUT_SEED + seed, index, seconds=4.0)
        for caption in describe_piece(piece, Draws("captions", _HELD_OUT_SEED + seed, index)):
            texts.append(caption)
            expected.append(_stated(caption, piece))
    found = _read_all(texts, encoder, probes, tokenizer)
    draws = Draws("free prompts", _HELD_OUT_SEED + seed)
    prompts = [free_prompt(draws) for _ in range(pieces * 2)]
    in_prompts = _read_all(prompts, encoder, probes, tokenizer)
    by_hand = _read_all([text for text, _ in HAND_WRITTEN], encoder, probes, tokenizer)
    missed = [
        f"{text}: {kind} {value}"
        for (text, wanted), said in zip(HAND_WRITTEN, by_hand, strict=True)
        for kind, value in wanted.items()
        if (kind, value) not in said
    ]
    agreement, contrast = _closeness(encoder, tokenizer)
    encoded = tokenizer(texts[:64], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(encoded["input_ids"], encoded["attention_mask"]).last_hidden_state
    kept = states[encoded["attention_mask"].bool()]
    return TextQuality(
        captions=len(texts),
        accuracy=_accuracy(expected, found),
        open=_shares(
            (kind, not _values(kind, said))
            for stated, said in zip(expected, found, strict=True)
            for kind in SINGLE
            if not _values(kind, stated)
        ),
        recall=_shares(
            (kind, (kind, value) in said)
            for stated, said in zip(expected, found, strict=True)
            for kind, value in stated
            if kind in MULTIPLE
        ),
        precision=_shares(
            (kind, (kind, value) in stated)
            for stated, said in zip(expected, found, strict=True)
            for kind, value in said
            if kind in MULTIPLE
        ),
        free=_accuracy([read_facts(prompt) for prompt in prompts], in_prompts),
        hand_written=round(1 - len(missed) / sum(len(wanted) for _, wanted in HAND_WRITTEN), 4),
        missed=missed,
        agreement=round(agreement, 4),
        contrast=round(contrast, 4),
        rms=round(float(kept.square().mean().sqrt()), 4),
    )


def facts_of(piece: Piece) -> Facts:
    """Everything that is true of a piece."""
    return frozenset(
        {
            ("style", piece.style_name),
            ("tempo", tempo_class(piece.bpm)),
            ("bpm", nearest_tempo(piece.bpm)),
            ("key", piece.key),
            ("mode", piece.mode),
            ("energy", piece.energy),
            ("brightness", piece.brightness),
            ("drums", "yes" if piece.has_drums else "no"),
            *(("instrument", part.instrument) for part in piece.parts),
            *(("figure", part.figure) for part in piece.parts),
        }
    )


def _stated(caption: str, piece: Piece) -> Facts:
    """The true values of the properties that a caption states, and the instruments and figures that it names."""
    words = read_facts(caption)
    kinds = {kind for kind, _ in words} & SINGLE.keys()
    return frozenset(fact for fact in facts_of(piece) if fact[0] in kinds or fact in words)


def _values(kind: str, facts: Facts) -> set[str]:
    return {value for of, value in facts if of == kind}


def _accuracy(expected: Sequence[Facts], found: Sequence[Facts]) -> dict[str, float]:
    """By property, the share of texts in which the probes find the one value that is stated."""
    return _shares(
        (kind, _values(kind, said) == _values(kind, stated))
        for stated, said in zip(expected, found, strict=True)
        for kind in SINGLE
        if len(_values(kind, stated)) == 1
    )


def _shares(answers: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """By property, the share of answers that are right; a property without any is left out."""
    by_kind: dict[str, list[bool]] = {}
    for kind, right in answers:
        by_kind.setdefault(kind, []).append(right)
    return {kind: round(sum(right) / len(right), 4) for kind, right in sorted(by_kind.items())}


@torch.no_grad()
def _means(texts: Sequence[str], encoder: T5EncoderModel, tokenizer: T5Tokenizer) -> torch.Tensor:
    rows = []
    for first in range(0, len(texts), 64):
        encoded = tokenizer(texts[first : first + 64], padding=True, return_tensors="pt")
        rows.append(mean_states(encoder, encoded["input_ids"], encoded["attention_mask"]))
    return torch.cat(rows)


def _read_all(texts: Sequence[str], encoder: T5EncoderModel, probes: Probes, tokenizer: T5Tokenizer) -> list[Facts]:
    return probes.read(_means(texts, encoder, tokenizer))


def _closeness(encoder: T5EncoderModel, tokenizer: T5Tokenizer) -> tuple[float, float]:
    """`agreement` and `contrast`, over the words for style, tempo, mode, energy, brightness and instruments."""
    said = [
        (kind, value, text)
        for facts, texts in ways_to_say().items()
        for kind, value in facts
        for text in texts
        if len(facts) == 1 and kind in ("style", "tempo", "mode", "energy", "brightness", "instrument")
    ]
    means = _means([f"{text} music" for _, _, text in said], encoder, tokenizer)
    means = F.normalize(means - means.mean(0), dim=-1)
    cosines = means @ means.T
    same_kind = torch.tensor([[a[0] == b[0] for b in said] for a in said])
    same_value = torch.tensor([[a[:2] == b[:2] for b in said] for a in said])
    others = ~torch.eye(len(said), dtype=torch.bool)
    return float(cosines[same_value & others].mean()), float(cosines[same_kind & ~same_value].mean())
