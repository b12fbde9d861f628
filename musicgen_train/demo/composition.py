"""Composes a piece of music as notes: pitch, start, length, loudness and instrument of each. No sound yet.

Times are in beats from the start until `Piece.ticks_at` turns them into ticks; pitches are MIDI numbers, where 69 is A4
(440 Hz) and 60 is C4.

A tick is a frame of EnCodec, and everything starts on one, as the notes of a sequencer start on its clock. So the same
drum hit or note always starts at the same place of a frame and has the same codes, which is what lets a small model
learn from little music; real recordings do not have this regularity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from musicgen_train.demo.draws import Draws
from musicgen_train.demo.styles import PROGRESSIONS, STYLES, Style

KEYS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")
ENERGIES = ("calm", "medium", "energetic")
BRIGHTNESSES = ("dark", "neutral", "bright")
TICK = 0.02  # seconds
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
BASS_LINES = ("long", "eighths", "octaves", "offbeat", "syncopated", "walking", "root-fifth")
CHORD_FIGURES = (
    "sustained",
    "stabs",
    "eighths",
    "comping",
    "broken",
    "arpeggio",
    "strummed",
    "oom-pah",
)

_BASS_LOWEST = 31  # G1, 49 Hz
_CHORD_CENTER = 60.0
_LEAD_CENTER = 74
_FORM_BARS = 4  # bars of a phrase
# Tempos from 60 to 150 beats a minute whose eighths last whole ticks.
_TICKS_PER_BEAT = {round(60 / (2 * ticks * TICK)): 2.0 * ticks for ticks in range(25, 9, -1)}


class Note(NamedTuple):
    """A note of an instrument; `start` and `length` in beats, `loudness` from 0 to 1."""

    start: float
    length: float
    pitch: int
    loudness: float


class Hit(NamedTuple):
    """A drum hit; `start` in beats, `loudness` from 0 to 1."""

    start: float
    drum: str
    loudness: float


@dataclass(frozen=True)
class Part:
    """The notes of one instrument."""

    role: str
    """`bass`, `chords` or `lead`."""
    instrument: str
    figure: str
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Chord:
    """A chord by its pitch classes, 0 for C to 11 for B, root first."""

    degree: int
    classes: tuple[int, ...]

    @property
    def root(self) -> int:
        return self.classes[0]

    @property
    def fifth(self) -> int:
        return self.classes[2]


@dataclass(frozen=True)
class Piece:
    """A composed piece: its properties and its notes."""

    style_name: str
    bpm: int
    """The tempo rounded to a whole number, as captions name it; `ticks_per_beat` is exact."""
    ticks_per_beat: float
    key: str
    mode: str
    energy: str
    brightness: str
    progression: tuple[int, ...]
    bars: int
    seconds: float
    hits: tuple[Hit, ...]
    parts: tuple[Part, ...]

    @property
    def style(self) -> Style:
        return STYLES[self.style_name]

    @property
    def has_drums(self) -> bool:
        return bool(self.hits)

    @property
    def meter(self) -> str:
        return f"{self.style.beats}/4"

    @property
    def instruments(self) -> list[str]:
        """The names of all instruments, drums last."""
        return [part.instrument for part in self.parts] + ["drums"] * self.has_drums

    def ticks_at(self, beat: float) -> int:
        """The tick nearest to a time in beats; off-beats are late if the style swings."""
        unit = self.style.swing_unit
        pair, place = divmod(beat / unit, 2)
        late = self.style.swing * 2
        place = place * late if place < 1 else late + (place - 1) * (2 - late)
        return round((pair * 2 + place) * unit * self.ticks_per_beat)


def compose(
    seed: int,
    index: int,
    seconds: float = 20.0,
    *,
    style: str | None = None,
    bpm: int | None = None,
    key: str | None = None,
    mode: str | None = None,
    energy: str | None = None,
    brightness: str | None = None,
    drums: bool | None = None,
) -> Piece:
    """Compose a piece.

    Properties that are not given are drawn independently: giving one does not change the others, nor the notes as
    far as possible. Styles take turns, in an order drawn anew for every round.

    Args:
        seed: seed of the corpus.
        index: index of the piece in the corpus, from 0.
        seconds: length of the piece; it may end in the middle of a bar.
        style, bpm, key, mode, energy, brightness, drums: properties to use instead of drawing them. `bpm` may be
            outside the style's range, and its eighths need not last whole ticks.

    Raises:
        ValueError: a property has a value that does not exist.
    """
    if seconds <= 0 or index < 0:
        raise ValueError(f"seconds is {seconds} and index is {index}; expected more than 0 and 0 or more")
    draws = Draws("piece", seed, index)
    if style is None:
        turn, place = divmod(index, len(STYLES))
        style = Draws("styles", seed, turn).shuffled(list(STYLES))[place]
    form = STYLES[_allowed("style", style, tuple(STYLES))]
    if bpm is None:
        bpm = draws.of("bpm").choice([tempo for tempo in _TICKS_PER_BEAT if form.bpm[0] <= tempo <= form.bpm[1]])
    elif not 40 <= bpm <= 240:
        raise ValueError(f"bpm is {bpm}; allowed are 40 to 240")
    ticks_per_beat = _TICKS_PER_BEAT.get(bpm, 60 / TICK / bpm)
    key = _allowed("key", key or draws.of("key").choice(KEYS), KEYS)
    mode = _allowed("mode", mode or ("minor" if draws.of("mode").chance(form.minor) else "major"), MODES)
    energy = energy or draws.of("energy").weighted(dict(zip(ENERGIES, form.energy, strict=True)))
    brightness = brightness or draws.of("brightness").weighted(dict(zip(BRIGHTNESSES, form.brightness, strict=True)))
    _allowed("energy", energy, ENERGIES)
    _allowed("brightness", brightness, BRIGHTNESSES)
    if drums is None:
        drums = draws.of("drums").chance(form.drums)

    bars = math.ceil(seconds / (TICK * ticks_per_beat * form.beats))
    progression = draws.of("progression").choice(PROGRESSIONS[mode])
    harmony = _harmony(progression, KEYS.index(key), mode, bars, form)
    plan = _plan(draws.of("form"), bars, ENERGIES.index(energy))
    players = _Players(draws, form, harmony, plan, KEYS.index(key), mode, energy)
    hits = players.drums() if drums else ()
    return Piece(
        style_name=style,
        bpm=bpm,
        ticks_per_beat=ticks_per_beat,
        key=key,
        mode=mode,
        energy=energy,
        brightness=brightness,
        progression=progression,
        bars=bars,
        seconds=seconds,
        hits=hits,
        parts=players.parts(),
    )


def _allowed(name: str, value: str, options: Sequence[str]) -> str:
    if value not in options:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(options)}")
    return value


def _harmony(progression: Sequence[int], tonic: int, mode: str, bars: int, style: Style) -> list[Chord]:
    """Return the chord of every bar."""
    chords = [_chord(degree, tonic, mode, 4 if style.sevenths else 3) for degree in progression]
    return [chords[bar // style.bars_per_chord % len(chords)] for bar in range(bars)]


def _chord(degree: int, tonic: int, mode: str, size: int) -> Chord:
    scale = list(SCALES[mode])
    if mode == "minor" and degree == 5:
        scale[6] += 1  # harmonic minor
    return Chord(degree, tuple((tonic + scale[(degree - 1 + 2 * i) % 7]) % 12 for i in range(size)))


class _Bar(NamedTuple):
    """The place of a bar in the form of the piece."""

    intro: bool
    last_of_phrase: bool
    phrase: int
    loudness: float


def _plan(draws: Draws, bars: int, energy: int) -> list[_Bar]:
    """Plan an intro if there are enough bars, then phrases of four bars that differ in loudness."""
    intro = 2 if bars >= 10 and draws.chance(0.4) else 0
    levels = [draws.uniform(0.85, 1.0) for _ in range(bars // _FORM_BARS + 2)]
    swell = draws.uniform(0.0, 0.15)
    plan = []
    for bar in range(bars):
        phrase, place = divmod(bar - intro, _FORM_BARS) if bar >= intro else (0, bar)
        loudness = levels[phrase] * (1 - swell + swell * place / (_FORM_BARS - 1))
        plan.append(_Bar(bar < intro, bar >= intro and place == _FORM_BARS - 1, phrase, loudness))
    return plan


class _Players:
    """Writes the parts of one piece over its chords and form."""

    def __init__(
        self,
        draws: Draws,
        style: Style,
        harmony: list[Chord],
        plan: list[_Bar],
        tonic: int,
        mode: str,
        energy: str,
    ) -> None:
        self._draws = draws
        self._style = style
        self._harmony = harmony
        self._plan = plan
        self._tonic = tonic
        self._mode = mode
        self._energy = energy

    def parts(self) -> tuple[Part, ...]:
        style, draws = self._style, self._draws
        parts = []
        for role, choices in (("chords", style.chords), ("bass", style.bass)):
            instrument = draws.of(role).choice(list(choices))
            figure = draws.of(role, "figure").choice(choices[instrument])
            notes = self._chords(figure) if role == "chords" else self._bass(figure)
            parts.append(Part(role, instrument, figure, tuple(notes)))
        if draws.of("lead").chance(style.lead_chance):
            others = {part.instrument for part in parts}
            instrument = draws.of("lead", "instrument").choice([name for name in style.lead if name not in others])
            parts.append(Part("lead", instrument, "melody", tuple(self._melody())))
        return tuple(parts)

    def drums(self) -> tuple[Hit, ...]:
        draws, style = self._draws.of("grooves"), self._style
        groove = dict(draws.choice(style.grooves))
        if self._energy == "calm" and len(groove) > 2 and draws.chance(0.5):
            groove.pop(list(groove)[-1])
        loudness_of = {"X": 1.0, "x": 0.75, "o": 0.4}
        hits = []
        for bar, plan in enumerate(self._plan):
            first = bar * style.beats
            for drum, steps in groove.items():
                if plan.intro and drum in ("kick", "clap", "snare"):
                    continue
                for step, mark in enumerate(steps):
                    if mark != ".":
                        hits.append(Hit(first + step / 4, drum, loudness_of[mark] * plan.loudness))
            if plan.last_of_phrase and self._energy != "calm" and "snare" in groove and draws.chance(0.6):
                hits += [Hit(first + style.beats - 1 + i / 4, "tom", 0.6 + 0.1 * i) for i in range(4)]
            if self._energy == "energetic" and not plan.intro and bar % (2 * _FORM_BARS) == 0 and "snare" in groove:
                hits.append(Hit(first, "crash", 0.7))
        return tuple(sorted(hits))

    def _bass(self, line: str) -> list[Note]:
        beats = self._style.beats
        draws = self._draws.of("bass", "notes")
        shift = draws.integer(0, 3)
        notes: list[Note] = []
        for bar, (chord, plan) in enumerate(zip(self._harmony, self._plan, strict=True)):
            following = self._harmony[(bar + 1) % len(self._harmony)]
            root = _at_or_above(chord.root, _BASS_LOWEST)
            fifth = _at_or_above(chord.fifth, root)
            if fifth - root > 7 or fifth > _BASS_LOWEST + 14:
                fifth -= 12
            for start, length, pitch in _bass_bar(line, beats, root, fifth, chord, following, bar + shift):
                accent = 1.0 if start == 0 else 0.85
                notes.append(Note(bar * beats + start, length, pitch, accent * plan.loudness))
        return notes

    def _chords(self, figure: str) -> list[Note]:
        beats = self._style.beats
        draws = self._draws.of("chords", "notes")
        # One rhythm for the whole piece, so that it is heard as a pattern.
        rhythm = _chord_rhythm(figure, draws, beats, self._energy)
        upwards = draws.chance(0.5)
        notes: list[Note] = []
        voicing: list[int] = []
        for bar, (chord, plan) in enumerate(zip(self._harmony, self._plan, strict=True)):
            voicing = _voice(chord, voicing)
            first = bar * beats
            if figure in ("arpeggio", "broken"):
                order = _arpeggio_order(len(voicing), upwards, figure)
                for i, (start, length) in enumerate(rhythm):
                    pitch = voicing[order[i % len(order)] % len(voicing)]
                    pitch += 12 * (order[i % len(order)] // len(voicing))
                    notes.append(Note(first + start, length, pitch, (1.0 if start % 1 == 0 else 0.7) * plan.loudness))
                continue
            if figure == "sustained" and self._style.bars_per_chord > 1:
                if bar % self._style.bars_per_chord:
                    continue
                rhythm = [(0.0, float(beats * self._style.bars_per_chord))]
            for i, (start, length) in enumerate(rhythm):
                spread = 0.04 if figure == "strummed" else 0.0
                rising = voicing if i % 2 == 0 else voicing[::-1]
                for place, pitch in enumerate(rising):
                    loudness = (1.0 if start == 0 else 0.85) * plan.loudness
                    notes.append(Note(first + start + spread * place, length, pitch, loudness))
        return notes

    def _melody(self) -> list[Note]:
        draws, beats = self._draws.of("lead", "notes"), self._style.beats
        motifs = [_motif(draws, beats, self._style.busy * (0.7, 1.0, 1.25)[ENERGIES.index(self._energy)])]
        motifs.append(_motif(draws, beats, self._style.busy))
        order = draws.choice(((0, 0, 1, 0), (0, 1, 0, 1), (0, 0, 0, 1)))
        notes: list[Note] = []
        for bar, (chord, plan) in enumerate(zip(self._harmony, self._plan, strict=True)):
            if plan.intro:
                continue
            first = bar * beats
            if plan.last_of_phrase:
                notes.append(Note(first, 0.75 * beats, self._in_chord(_LEAD_CENTER, chord, root=True), plan.loudness))
                continue
            for start, length, step in motifs[order[bar % len(order)]]:
                pitch = self._in_chord(_LEAD_CENTER, chord, root=False)
                pitch = self._steps_from(pitch, step, chord)
                if start % 1 == 0:
                    pitch = self._in_chord(pitch, chord, root=False)
                notes.append(Note(first + start, length, pitch, (0.95 if start % 1 == 0 else 0.8) * plan.loudness))
        return notes

    def _in_chord(self, pitch: int, chord: Chord, *, root: bool) -> int:
        """Return the note of the chord, or its root, nearest to a pitch; the lower one of two equally near."""
        classes = chord.classes[:1] if root else chord.classes[:3]
        near = [pitch + offset for offset in sorted(range(-6, 7), key=lambda offset: (abs(offset), offset))]
        return next(candidate for candidate in near if candidate % 12 in classes)

    def _steps_from(self, pitch: int, steps: int, chord: Chord) -> int:
        """Move a pitch by steps of the scale, which has the leading tone if the chord has it."""
        allowed = {(self._tonic + offset) % 12 for offset in SCALES[self._mode]}
        leading = (self._tonic + 11) % 12
        if leading in chord.classes:
            allowed = (allowed - {(self._tonic + 10) % 12}) | {leading}
        direction = 1 if steps > 0 else -1
        for _ in range(abs(steps)):
            pitch += direction
            while pitch % 12 not in allowed:
                pitch += direction
        return pitch


def _at_or_above(pitch_class: int, lowest: int) -> int:
    return lowest + (pitch_class - lowest) % 12


def _bass_bar(
    line: str, beats: int, root: int, fifth: int, chord: Chord, following: Chord, turn: int
) -> list[tuple[float, float, int]]:
    """One bar of a bass line: start, length and pitch of each note."""
    if line == "long":
        return [(0.0, float(beats), root)]
    if line == "eighths":
        return [(i / 2, 0.45, root) for i in range(2 * beats)]
    if line == "octaves":
        return [(i / 2, 0.4, root + 12 * (i % 2)) for i in range(2 * beats)]
    if line == "offbeat":
        return [(i + 0.5, 0.45, root) for i in range(beats)]
    if line == "root-fifth":
        return [(0.0, 1.8, root), (2.0, 0.9 if beats == 3 else 1.8, fifth)]
    if line == "syncopated":
        patterns = (
            ((0.0, 0.7, root), (0.75, 0.2, root), (1.5, 0.45, fifth), (2.5, 0.9, root), (3.5, 0.4, root + 12)),
            ((0.0, 0.9, root), (1.75, 0.7, root), (2.5, 0.45, fifth), (3.25, 0.6, root)),
        )
        return [note for note in patterns[turn // 4 % 2] if note[0] < beats]
    assert line == "walking", line
    # Over the third and the fifth, and by a half step into the next root.
    third = _at_or_above(chord.classes[1], root)
    target = _at_or_above(following.root, _BASS_LOWEST)
    approach = target - 1 if turn % 2 else target + 1
    walk = [root, third, fifth, approach][:beats]
    return [(float(i), 0.9, pitch) for i, pitch in enumerate(walk)]


def _chord_rhythm(figure: str, draws: Draws, beats: int, energy: str) -> list[tuple[float, float]]:
    """Start and length of each chord within a bar."""
    if figure == "sustained":
        return [(0.0, float(beats))]
    if figure == "eighths":
        return [(i / 2, 0.45) for i in range(2 * beats)]
    if figure == "oom-pah":
        return [(float(i), 0.5) for i in range(1, beats)]
    if figure == "arpeggio":
        step = 0.25 if energy != "calm" else 0.5
        return [(i * step, step * 1.3) for i in range(round(beats / step))]
    if figure == "broken":
        return [(i / 2, 1.1) for i in range(2 * beats)]
    if figure == "strummed":
        starts = draws.choice(((0, 1, 1.5, 2.5, 3, 3.5), (0, 1, 2, 2.5, 3, 3.5), (0, 0.5, 1, 2, 2.5, 3)))
        return [(float(start), 0.8) for start in starts if start < beats]
    patterns = {
        "stabs": ((0.5, 1.5, 2.5, 3.5), (0, 0.75, 1.5, 2.5, 3.25), (0, 1.5, 3)),
        "comping": ((0, 1.5), (1, 2.5), (0.5, 3)),
    }
    length = {"stabs": 0.3, "comping": 0.8}[figure]
    return [(float(start), length) for start in draws.choice(patterns[figure]) if start < beats]


def _voice(chord: Chord, before: list[int]) -> list[int]:
    """Voice a chord around middle C, close to the voicing before."""
    center = sum(before) / len(before) if before else _CHORD_CENTER
    center += (_CHORD_CENTER - center) * 0.5
    candidates = []
    for inversion in range(len(chord.classes)):
        order = chord.classes[inversion:] + chord.classes[:inversion]
        for lowest in (43, 55):
            pitches = [_at_or_above(order[0], lowest)]
            for pitch_class in order[1:]:
                pitches.append(_at_or_above(pitch_class, pitches[-1] + 1))
            candidates.append(pitches)
    return min(candidates, key=lambda pitches: (abs(sum(pitches) / len(pitches) - center), pitches))


def _arpeggio_order(size: int, upwards: bool, figure: str) -> list[int]:
    """The order in which an arpeggio plays the notes of a chord; numbers from `size` on are an octave higher."""
    if figure == "broken":
        return [0, 2, 1, 2] if size == 3 else [0, 2, 1, 3]
    # Rounds of four or eight notes stay in step with the beat.
    return [0, 1, 2, 3] if upwards else [0, 1, 2, 3, 3, 2, 1, 0]


def _motif(draws: Draws, beats: int, busy: float) -> list[tuple[float, float, int]]:
    """A bar of melody: start and length of each note, and its distance from the chord's note in steps of the scale."""
    step = 0.5 if busy < 1.5 else 0.25
    starts = [0.0] if draws.chance(0.85) else [step]
    for i in range(1, round(beats / step)):
        start = i * step
        on_beat = start % 1 == 0
        if draws.chance(min(0.95, busy * step * (1.3 if on_beat else 0.75))) and start not in starts:
            starts.append(start)
    notes, place = [], draws.integer(-2, 2)
    for start, following in zip(starts, [*starts[1:], float(beats)], strict=True):
        notes.append((start, min(2.0, (following - start) * 0.92), place))
        place = max(-4, min(5, place + draws.choice((-2, -1, -1, 1, 1, 2))))
    return notes
