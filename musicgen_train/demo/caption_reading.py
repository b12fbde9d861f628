"""Reads what an English text says about music, by known phrases: the corpus' own words and their synonyms.

Captions of the corpus use the words of `descriptions`; prompts that people type do not. The tables of this file have
other words that mean the same, so that the text encoder can be trained to treat both alike.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from musicgen_train.demo.composition import BASS_LINES, CHORD_FIGURES, KEYS, MODES, TICK
from musicgen_train.demo.descriptions import BASS_FIGURE_WORDS, FIGURE_WORDS, NO_DRUMS, WORDS, tempo_class
from musicgen_train.demo.styles import STYLES

Facts = frozenset[tuple[str, str]]
"""What a text says, as pairs of a property and its value: `("style", "jazz")`."""

INSTRUMENT_NAMES = tuple(
    sorted({name for style in STYLES.values() for name in (*style.bass, *style.chords, *style.lead)}),
)
# Tempos from 41 to 214 beats a minute whose eighths last whole ticks: those of the corpus and some on both sides.
TEMPOS = tuple(round(30 / (TICK * ticks)) for ticks in range(37, 6, -1))

SINGLE: Mapping[str, tuple[str, ...]] = {
    "style": tuple(STYLES),
    "tempo": tuple(WORDS["tempo"]),
    "bpm": tuple(map(str, TEMPOS)),
    "key": KEYS,
    "mode": MODES,
    "energy": tuple(WORDS["energy"]),
    "brightness": tuple(WORDS["brightness"]),
    "drums": ("yes", "no"),
}
"""Properties with one value per piece, and all values."""
MULTIPLE: Mapping[str, tuple[str, ...]] = {
    "instrument": INSTRUMENT_NAMES,
    "figure": tuple(dict.fromkeys((*CHORD_FIGURES, *BASS_LINES, "melody"))),
}
"""Properties with several values per piece, and all values."""

SYNONYMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "style": {
        "house": ("techno", "dance music", "EDM", "club music", "disco house", "trance", "deep house", "dance"),
        "synthwave": ("retrowave", "80s synth pop", "80s", "eighties", "1980s", "synth pop", "outrun"),
        "hip hop": ("hip-hop", "rap", "boom bap", "trap", "hiphop"),
        "lo-fi": ("lofi", "chillhop", "study music", "lo-fi hip hop"),
        "funk": ("funky", "soul", "motown"),
        "rock": ("hard rock", "indie rock", "punk", "metal", "grunge", "rock and roll"),
        "jazz": ("swing", "bebop", "jazzy", "big band", "blues"),
        "folk": ("country", "celtic", "irish", "bluegrass", "singer-songwriter", "folky"),
        "ambient": ("atmospheric", "drone", "new age", "meditation", "soundscape", "spacey"),
        "chiptune": ("8-bit", "video game", "arcade", "game boy", "retro game", "bitpop"),
        "waltz": ("waltzing", "in three", "viennese waltz", "ballroom"),
    },
    "tempo": {
        "slow": ("slow tempo", "ballad", "slowly", "adagio", "low tempo"),
        "medium": ("medium tempo", "moderate tempo", "midtempo", "andante", "moderato"),
        "fast": ("fast tempo", "up-tempo", "fast-paced", "rapid", "speedy", "allegro", "high tempo"),
    },
    "mode": {
        "major": (
            "joyful",
            "joyous",
            "optimistic",
            "merry",
            "positive",
            "feel-good",
            "playful",
            "in major",
            "in a major key",
        ),
        "minor": ("melancholy", "gloomy", "sorrowful", "somber", "mournful", "nostalgic", "in minor", "in a minor key"),
    },
    "energy": {
        "calm": (
            "relaxing",
            "soothing",
            "tranquil",
            "serene",
            "quiet",
            "soft",
            "mellow",
            "chill",
            "laid-back",
            "dreamy",
        ),
        "medium": ("moderate energy", "medium energy", "easygoing"),
        "energetic": ("upbeat", "intense", "high-energy", "exciting", "aggressive", "heavy", "epic", "vigorous"),
    },
    "brightness": {
        "dark": ("warm", "murky", "dim", "mellow-toned"),
        "neutral": ("neutral", "even-toned", "clean"),
        "bright": ("brilliant", "shiny", "glittering", "shimmering", "glassy"),
    },
    "drums": {
        "yes": ("drums", "with drums", "percussion", "a drum beat", "drum kit", "beats", "heavy drums"),
        "no": ("drumless", "no percussion", "without percussion", "no beat", "beatless", "without any drums"),
    },
    "instrument": {
        "accordion": ("bandoneon", "concertina"),
        "acoustic guitar": ("guitar", "acoustic guitars", "ukulele", "banjo", "nylon guitar"),
        "bells": ("glockenspiel", "chimes", "bell"),
        "brass": ("trumpet", "horns", "saxophone", "sax", "trombone"),
        "choir": ("voices", "vocals", "singers"),
        "electric bass": ("bass guitar", "bass", "bass line", "bassline"),
        "electric piano": ("rhodes", "wurlitzer", "e-piano"),
        "fiddle": ("violin", "violins"),
        "flute": ("flutes", "pan flute"),
        "harp": ("harps", "lyre"),
        "marimba": ("xylophone", "kalimba"),
        "music box": ("celesta", "toy piano"),
        "muted guitar": ("funk guitar", "rhythm guitar"),
        "organ": ("hammond", "church organ"),
        "overdriven guitar": ("electric guitar", "distorted guitar", "electric guitars", "power chords"),
        "overdriven lead guitar": ("guitar solo", "lead guitar"),
        "piano": ("grand piano", "keys", "pianos"),
        "pulse lead": ("8-bit lead",),
        "pulse synth": ("8-bit synth",),
        "saw lead": ("synth lead", "lead synth", "bright lead", "saw synth"),
        "square lead": ("square wave lead", "square synth"),
        "string pad": ("strings", "string section", "orchestra", "violin section"),
        "sub bass": ("808", "deep bass", "sub"),
        "synth": ("synthesizer", "synths", "synthesizers"),
        "synth bass": ("synthesizer bass", "bass synth"),
        "triangle bass": ("8-bit bass",),
        "upright bass": ("double bass", "contrabass", "acoustic bass"),
        "vibraphone": ("vibes", "vibraphones"),
        "warm pad": ("pad", "pads", "soft pads", "synth pad"),
        "whistle": ("tin whistle", "recorder", "whistling"),
    },
}
"""Other words that people use, by property and value of the corpus."""

_OTHER_KEYS = {"C#": "Db", "D#": "Eb", "Gb": "F#", "G#": "Ab", "A#": "Bb"}
_NEGATIONS = ("no", "without", "without any")
# A phrase never crosses a punctuation mark.
_CLAUSE = re.compile(r"[^,.;:!?()]+")
_WORD = re.compile(r"[a-z]+#?|[0-9]+")
_TEMPO = re.compile(r"(\d+) (?:bpm|beats per minute)\b|bpm (\d+)\b")
_SIGNS = str.maketrans({"\u266f": "#", "\u266d": "b"})


class Phrase(NamedTuple):
    """A part of a text that states facts."""

    start: int
    """Index of its first character."""
    end: int
    """Index after its last character."""
    facts: Facts


def read_facts(text: str) -> Facts:
    """Return all facts that a text states."""
    return frozenset().union(*(phrase.facts for phrase in find_phrases(text)))


def find_phrases(text: str) -> list[Phrase]:
    """Find the phrases of a text from left to right, each as long as possible; case does not matter."""
    plain = text.translate(_SIGNS).lower()
    found = []
    for clause in _CLAUSE.finditer(plain):
        words = list(_WORD.finditer(plain, *clause.span()))
        place = 0
        while place < len(words):
            length, facts = _phrase_at([word.group() for word in words[place : place + _longest()]])
            if facts:
                found.append(Phrase(words[place].start(), words[place + length - 1].end(), facts))
            place += length
    return found


@functools.cache
def ways_to_say() -> Mapping[Facts, tuple[str, ...]]:
    """All phrases by the facts that they state; tempos in numbers are not among them."""
    ways: dict[Facts, list[str]] = {}
    for text, facts in _phrases():
        ways.setdefault(facts, []).append(text)
    return {facts: tuple(dict.fromkeys(texts)) for facts, texts in ways.items()}


def nearest_tempo(bpm: int) -> str:
    """Return the value of the property `bpm` that is nearest to a tempo, by ratio."""
    return str(min(TEMPOS, key=lambda tempo: max(tempo, bpm) / min(tempo, bpm)))


def _phrases() -> Iterator[tuple[str, Facts]]:
    """Yield all phrases and the facts they state; of phrases with the same words the last one counts."""
    for table in (WORDS, SYNONYMS):
        for kind, values in table.items():
            for value, texts in values.items():
                for text in texts:
                    yield text, frozenset({(kind, value)})
    for instrument in INSTRUMENT_NAMES:
        said = frozenset({("instrument", instrument)})
        yield instrument, said
        for figures in (FIGURE_WORDS, BASS_FIGURE_WORDS):
            for figure, forms in figures.items():
                for form in forms:
                    yield form.format(instrument), said | {("figure", figure)}
    for text in NO_DRUMS:
        yield text.removeprefix("and "), frozenset({("drums", "no")})
    for name, style in STYLES.items():
        yield name, frozenset({("style", name)})
        for text in style.drum_words:
            yield text.removeprefix("a "), frozenset({("drums", "yes")})
    for name, key in {**{key: key for key in KEYS}, **_OTHER_KEYS}.items():
        spelled = name.replace("#", " sharp") if "#" in name else re.sub("b$", " flat", name)
        for written in dict.fromkeys((name, spelled)):
            yield f"key of {written}", frozenset({("key", key)})
            for mode in MODES:
                yield f"{written} {mode}", frozenset({("key", key), ("mode", mode)})


@functools.cache
def _by_words() -> Mapping[tuple[str, ...], Facts]:
    known = {tuple(_WORD.findall(text.lower())): facts for text, facts in _phrases()}
    # "no piano" states no fact, but must not be read as "piano"; for drums there are phrases of their own.
    absent = {
        (*negation.split(), *words): frozenset[tuple[str, str]]()
        for negation in _NEGATIONS
        for words, facts in known.items()
        if {kind for kind, _ in facts} == {"instrument"}
    }
    return {**absent, **known}


@functools.cache
def _longest() -> int:
    return max(map(len, _by_words()))


def _phrase_at(words: Sequence[str]) -> tuple[int, Facts]:
    """Return the number of words of the phrase at the start, and the facts it states."""
    if tempo := _TEMPO.match(" ".join(words)):
        bpm = int(tempo[1] or tempo[2])
        said = [("bpm", nearest_tempo(bpm)), ("tempo", tempo_class(bpm))] if 40 <= bpm <= 240 else []
        return len(tempo[0].split()), frozenset(said)
    for length in range(len(words), 0, -1):
        facts = _by_words().get(tuple(words[:length]))
        if facts is not None:
            return length, facts
    return 1, frozenset()
