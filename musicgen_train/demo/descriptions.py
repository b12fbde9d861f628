"""English captions of a piece, which say nothing that is not true of it.

The words for a value never stand for another value: no caption of a minor piece says "cheerful", none of a dark piece
"crisp". So `WORDS` can also be used to read captions.
"""

from __future__ import annotations

from collections.abc import Mapping

from musicgen_train.demo.composition import Part, Piece
from musicgen_train.demo.draws import Draws

WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "tempo": {
        "slow": ("slow", "slow-paced", "unhurried"),
        "medium": ("mid-tempo", "moderate", "medium-paced"),
        "fast": ("fast", "uptempo", "quick"),
    },
    "mode": {
        "major": ("happy", "cheerful", "uplifting", "hopeful", "sunny"),
        "minor": ("sad", "melancholic", "moody", "wistful", "brooding"),
    },
    "energy": {
        "calm": ("calm", "gentle", "relaxed", "peaceful"),
        "medium": ("steady", "flowing", "easy-going"),
        "energetic": ("energetic", "driving", "lively", "powerful"),
    },
    "brightness": {
        "dark": ("dark", "muffled", "dull"),
        "neutral": ("balanced", "natural", "clear"),
        "bright": ("bright", "crisp", "sparkling"),
    },
}

FIGURE_WORDS = {
    "sustained": ("sustained {}", "long {} chords", "{} holding the chords"),
    "stabs": ("{} stabs", "short {} chords", "rhythmic {}"),
    "eighths": ("chugging {}", "pounding {}"),
    "comping": ("{} comping", "{} chords"),
    "broken": ("broken {} chords", "fingerpicked {}", "rolling {}"),
    "arpeggio": ("{} arpeggios", "arpeggiated {}"),
    "strummed": ("strummed {}", "{} strumming"),
    "oom-pah": ("oom-pah {} chords", "{} chords off the beat"),
    "long": ("{} holding long notes", "long {} notes"),
    "octaves": ("{} jumping in octaves", "bouncing {}"),
    "offbeat": ("offbeat {}", "{} on the offbeats"),
    "syncopated": ("syncopated {}", "groovy {}"),
    "walking": ("walking {}", "{} walking the changes"),
    "root-fifth": ("a simple {} line", "{} on roots and fifths"),
    "melody": ("a melody on {}", "{} playing the melody", "{} in the lead"),
}
# Only these are said to be fingerpicked.
_PICKED = ("acoustic guitar", "harp")
BASS_FIGURE_WORDS = {"eighths": ("{} in even eighths", "pulsing {}")}
NO_DRUMS = ("no drums", "without drums", "and no percussion")


def describe_piece(piece: Piece, draws: Draws, variants: int = 5) -> list[str]:
    """Write captions of a piece: the first names every property, each of the others some of them.

    Args:
        piece: the piece.
        draws: draws the words.
        variants: number of captions after the first; all differ from each other.

    Returns:
        `variants + 1` captions.
    """
    captions = [_Writer(piece, draws).full()]
    forms = (_Writer.short, _Writer.sentence, _Writer.mood, _Writer.keywords, _Writer.instruments, _Writer.technical)
    start = draws.integer(0, len(forms) - 1)
    attempt = 0
    while len(captions) <= variants:
        caption = forms[(start + attempt) % len(forms)](_Writer(piece, draws))
        attempt += 1
        if caption not in captions:
            captions.append(caption)
    return captions


def tags(piece: Piece) -> list[str]:
    """Keywords for a piece; a value always has the same word."""
    return [
        piece.style_name,
        f"{tempo_class(piece.bpm)} tempo",
        f"{piece.bpm} bpm",
        f"{piece.key} {piece.mode}",
        *(WORDS[kind][value][0] for kind, value in (("mode", piece.mode), ("energy", piece.energy))),
        WORDS["brightness"][piece.brightness][0],
        *piece.instruments,
        *([] if piece.has_drums else ["no drums"]),
    ]


class _Writer:
    """Writes one caption, in which no adjective occurs twice."""

    def __init__(self, piece: Piece, draws: Draws) -> None:
        self._piece = piece
        self._draws = draws
        self._values = {
            "tempo": tempo_class(piece.bpm),
            "mode": piece.mode,
            "energy": piece.energy,
            "brightness": piece.brightness,
        }
        self._used: set[str] = set()
        self._style = piece.style_name
        self._key = f"{piece.key} {piece.mode}"

    def full(self) -> str:
        piece, draws = self._piece, self._draws
        opening = draws.integer(0, 2)
        if opening == 0:
            start = f"{_a(self._word('energy'))} {self._style} track in {self._key} at {piece.bpm} BPM"
        elif opening == 1:
            start = f"{_a(self._word('tempo'))}, {self._word('energy')} {self._style} piece in {self._key}, "
            start += f"{piece.bpm} BPM"
        else:
            start = f"{_a(self._word('mode'))} {self._style} tune in {self._key} at {piece.bpm} beats per minute"
        ending = draws.integer(0, 2)
        if ending == 0:
            end = f"The sound is {self._word('brightness')} and the mood {self._word('mode')}."
        elif ending == 1:
            end = f"It feels {self._word('mode')} and {self._word('energy')}, with a {self._word('brightness')} tone."
        else:
            end = f"{_capital(self._word('brightness'))}-sounding and {self._word('mode')}."
        return f"{_capital(start)}, with {_join(self._players())}{self._without_drums()}. {end}"

    def short(self) -> str:
        form = self._draws.integer(0, 2)
        if form == 0:
            main = next((part for part in self._piece.parts if part.role == "lead"), self._piece.parts[0])
            return f"{self._any_word()} {self._style} with {main.instrument}"
        if form == 1:
            return f"{self._word('mode')} {self._style}, {self._word('tempo')}"
        return f"{self._any_word()} {self._style} {'with drums' if self._piece.has_drums else 'without drums'}"

    def sentence(self) -> str:
        players = self._draws.shuffled(self._players())[:2]
        kind = self._draws.choice(("track", "song", "instrumental"))
        return _capital(f"{_a(self._word('tempo'))} {self._style} {kind} with {_join(players)}.")

    def mood(self) -> str:
        start = self._draws.choice(("Music that feels", "Something", "A mood that is"))
        first, second = self._draws.shuffled(("mode", "energy", "brightness"))[:2]
        return f"{start} {self._word(first)} and {self._word(second)}: {self._style} in {self._key}."

    def keywords(self) -> str:
        words = self._draws.shuffled([self._word(kind) for kind in self._values])[:3]
        instruments = self._draws.shuffled([part.instrument for part in self._piece.parts])[:2]
        drums = "drums" if self._piece.has_drums else "no drums"
        return ", ".join([self._style, *self._draws.shuffled([*words, *instruments, drums])])

    def instruments(self) -> str:
        tempo = self._word("tempo")
        end = self._draws.choice((f"at {self._piece.bpm} BPM", f"in {self._key}", f"- {tempo}, in {self._key}"))
        players = f"{_join(self._players())}{self._without_drums()}"
        return _capital(f"{players}, playing {self._word('energy')} {self._style} {end}.")

    def technical(self) -> str:
        piece = self._piece
        meter = f", {piece.meter} time" if piece.style.beats != 4 else ""
        words = f"{self._word('mode')}, {self._word('brightness')}"
        return f"{self._style}, {piece.bpm} bpm, {self._key}{meter}, {words}"

    def _word(self, kind: str) -> str:
        word = self._draws.choice([word for word in WORDS[kind][self._values[kind]] if word not in self._used])
        self._used.add(word)
        return word

    def _any_word(self) -> str:
        return self._word(self._draws.choice(tuple(self._values)))

    def _without_drums(self) -> str:
        return "" if self._piece.has_drums else f", {self._draws.choice(NO_DRUMS)}"

    def _players(self) -> list[str]:
        """A phrase for each part, the melody first and the drums last."""
        order = ("lead", "chords", "bass")
        parts = sorted(self._piece.parts, key=lambda part: order.index(part.role))
        phrases = [self._phrase(part) for part in parts]
        return [*phrases, self._draws.choice(self._piece.style.drum_words)] if self._piece.has_drums else phrases

    def _phrase(self, part: Part) -> str:
        forms = FIGURE_WORDS[part.figure]
        if part.role == "bass":
            forms = BASS_FIGURE_WORDS.get(part.figure, forms)
        elif part.instrument not in _PICKED:
            forms = tuple(form for form in forms if "picked" not in form)
        return self._draws.choice(forms).format(part.instrument)


def tempo_class(bpm: int) -> str:
    """Classify a tempo: slow below 90, fast from 120 on, medium between."""
    return "slow" if bpm < 90 else "medium" if bpm < 120 else "fast"


def _a(words: str) -> str:
    """Put the indefinite article before words; the first letter decides, which is right for all words of this file."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _join(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
