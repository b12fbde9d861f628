"""What an English text says about music, read off by known phrases: the corpus' own words and what people say instead.

The captions of the corpus are written with the words of `captions`; a prompt that somebody types is not. The tables of
this file say which other words mean the same, so that the text encoder can be taught to hear both alike.
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
"""What is said: pairs of a property and its value, `("style", "jazz")`."""

INSTRUMENTS = tuple(
    sorted({name for style in STYLES.values() for name in (*style.bass, *style.chords, *style.lead)}),
)
# Tempos whose eighths last whole ticks, from 40 to 214 beats a minute: what the corpus has, and on to both sides.
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
"""Properties of which a piece has one value, and the values."""
MULTIPLE: Mapping[str, tuple[str, ...]] = {
    "instrument": INSTRUMENTS,
    "figure": tuple(dict.fromkeys((*CHORD_FIGURES, *BASS_LINES, "melody"))),
}
"""Properties of which a piece has several."""

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
"""What people say for the words of the corpus, by property and value."""

_OTHER_KEYS = {"C#": "Db", "D#": "Eb", "Gb": "F#", "G#": "Ab", "A#": "Bb"}
_NEGATIONS = ("no", "without", "without any")
# A phrase never goes on behind a mark.
_CLAUSE = re.compile(r"[^,.;:!?()]+")
_WORD = re.compile(r"[a-z]+#?|[0-9]+")
_TEMPO = re.compile(r"(\d+) (?:bpm|beats per minute)\b|bpm (\d+)\b")
_SIGNS = str.maketrans({"\u266f": "#", "\u266d": "b"})


class Phrase(NamedTuple):
    """A place of a text that says something."""

    start: int
    """Of its first character."""
    end: int
    """After its last."""
    facts: Facts


def read(text: str) -> Facts:
    """Everything that a text says."""
    return frozenset().union(*(phrase.facts for phrase in find(text)))


def find(text: str) -> list[Phrase]:
    """The phrases of a text from left to right, each as long as it can be; case and punctuation do not matter."""
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
    """What can be said in one phrase, each with all its phrases. Tempos in numbers are not among them."""
    ways: dict[Facts, list[str]] = {}
    for text, facts in _phrases():
        ways.setdefault(facts, []).append(text)
    return {facts: tuple(dict.fromkeys(texts)) for facts, texts in ways.items()}


def nearest_tempo(bpm: int) -> str:
    """The value of the property `bpm` that is nearest to a tempo, by ratio."""
    return str(min(TEMPOS, key=lambda tempo: max(tempo, bpm) / min(tempo, bpm)))


def _phrases() -> Iterator[tuple[str, Facts]]:
    """All phrases and what they say; of those with the same words the last one counts."""
    for table in (WORDS, SYNONYMS):
        for kind, values in table.items():
            for value, texts in values.items():
                for text in texts:
                    yield text, frozenset({(kind, value)})
    for instrument in INSTRUMENTS:
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
    # What is said not to be there is no fact, but must not be read as its opposite; drums have phrases of their own.
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
    """How many of the words belong together, and what they say."""
    if tempo := _TEMPO.match(" ".join(words)):
        bpm = int(tempo[1] or tempo[2])
        said = [("bpm", nearest_tempo(bpm)), ("tempo", tempo_class(bpm))] if 40 <= bpm <= 240 else []
        return len(tempo[0].split()), frozenset(said)
    for length in range(len(words), 0, -1):
        facts = _by_words().get(tuple(words[:length]))
        if facts is not None:
            return length, facts
    return 1, frozenset()
