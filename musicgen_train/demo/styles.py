"""Tables of styles: tempo, harmony, grooves, instruments and what they play. `composition` reads them.

A groove writes a bar in sixteenths, 16 characters in 4/4 and 12 in 3/4: `X` loud, `x` normal, `o` soft, `.` rest.
Progressions are degrees of the scale, one chord each; in minor, V is a major chord, since its leading tone tells a
minor key from its relative major.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Groove = Mapping[str, str]


@dataclass(frozen=True)
class Style:
    """One style.

    Args:
        bpm: lowest and highest tempo; only tempos whose eighths last whole ticks (`composition.TICK`) are drawn.
        minor: probability of a minor key.
        kit: the drum kit, a key of `synthesis.KITS`.
        drum_words: how captions name the drums of this style.
        drums: probability that there are drums.
        grooves: patterns of one bar for the drums; one is drawn per piece.
        bass: by bass instrument, the lines it may play (`composition.BASS_LINES`).
        chords: by chord instrument, the figures it may play (`composition.CHORD_FIGURES`).
        lead: lead instruments.
        lead_chance: probability that there is a melody.
        busy: notes of the melody per beat, on average about.
        beats: beats of a bar, 4 or 3.
        swing: position of an off-beat between two notes of `swing_unit * 2`: 0.5 is straight, 0.67 a triplet.
        swing_unit: the note value that swings, in beats: 0.5 eighths, 0.25 sixteenths.
        sevenths: chords have four notes instead of three.
        bars_per_chord: bars until the chord changes.
        energy: weights of calm, medium and energetic.
        brightness: weights of dark, neutral and bright.
        space: amount of reverb, 0 to 1.
        echo: amount of the lead that a delay repeats, 0 to 1.
        pump: how far the kick ducks bass and chords, 0 to 1.
    """

    bpm: tuple[int, int]
    minor: float
    kit: str
    drum_words: tuple[str, ...]
    grooves: tuple[Groove, ...]
    bass: Mapping[str, tuple[str, ...]]
    chords: Mapping[str, tuple[str, ...]]
    lead: tuple[str, ...]
    drums: float = 0.9
    lead_chance: float = 0.8
    busy: float = 1.0
    beats: int = 4
    swing: float = 0.5
    swing_unit: float = 0.5
    sevenths: bool = False
    bars_per_chord: int = 1
    energy: tuple[float, float, float] = (1, 1, 1)
    brightness: tuple[float, float, float] = (1, 1, 1)
    space: float = 0.15
    echo: float = 0.1
    pump: float = 0.0


PROGRESSIONS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "major": ((1, 5, 6, 4), (1, 4, 1, 5), (1, 6, 4, 5), (1, 4, 5, 1), (1, 2, 5, 1), (1, 1, 4, 5), (1, 3, 4, 1)),
    "minor": ((1, 4, 1, 5), (1, 6, 4, 5), (1, 6, 1, 5), (1, 4, 5, 1), (1, 1, 4, 5), (1, 6, 5, 1), (1, 5, 1, 4)),
}

STYLES: Mapping[str, Style] = {
    "house": Style(
        bpm=(118, 128),
        minor=0.6,
        kit="electronic",
        drum_words=("four-on-the-floor drums", "house drums", "a four-on-the-floor beat"),
        grooves=(
            {"kick": "X...X...X...X...", "clap": "....X.......X...", "open hat": "..x...x...x...x."},
            {
                "kick": "X...X...X...X...",
                "clap": "....x.......x...",
                "open hat": "..x...x...x...x.",
                "hat": "x.ox.xoxx.ox.xox",
            },
            {
                "kick": "X...X...X...X..o",
                "snare": "....X.......X...",
                "hat": "..X...X...X...X.",
                "shaker": "oxoxoxoxoxoxoxox",
            },
        ),
        bass={"synth bass": ("offbeat", "octaves"), "sub bass": ("syncopated", "offbeat")},
        chords={"synth": ("stabs",), "organ": ("stabs",), "piano": ("stabs",), "string pad": ("sustained",)},
        lead=("saw lead", "bells", "marimba"),
        lead_chance=0.6,
        energy=(0, 1, 2),
        echo=0.25,
        pump=0.6,
    ),
    "synthwave": Style(
        bpm=(84, 116),
        minor=0.75,
        kit="electronic",
        drum_words=("electronic drums", "gated drums", "a drum machine"),
        grooves=(
            {"kick": "X.......X.......", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "X...X...X...X...", "snare": "....X.......X...", "hat": "..x...x...x...x."},
        ),
        bass={"synth bass": ("eighths", "octaves")},
        chords={"string pad": ("sustained",), "synth": ("arpeggio",), "warm pad": ("sustained",)},
        lead=("saw lead", "square lead"),
        energy=(0.3, 1, 1),
        brightness=(1, 1, 1.5),
        space=0.25,
        echo=0.3,
        pump=0.3,
    ),
    "hip hop": Style(
        bpm=(80, 100),
        minor=0.7,
        kit="electronic",
        drum_words=("boom bap drums", "a hip hop beat", "punchy drums"),
        grooves=(
            {"kick": "X..x..x...X.....", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "X......x..X..x..", "snare": "....X.......X..o", "hat": "x.xxx.x.x.xxx.x."},
        ),
        bass={"sub bass": ("syncopated", "long"), "electric bass": ("syncopated",)},
        chords={"electric piano": ("stabs", "sustained"), "string pad": ("sustained",), "piano": ("broken",)},
        lead=("flute", "bells", "harp"),
        lead_chance=0.6,
        swing=0.56,
        swing_unit=0.25,
        energy=(0.3, 1, 0.6),
        brightness=(1.5, 1, 0.7),
    ),
    "lo-fi": Style(
        bpm=(68, 88),
        minor=0.5,
        kit="dusty",
        drum_words=("dusty drums", "soft lo-fi drums", "a lazy beat"),
        grooves=(
            {"kick": "x......x..x.....", "snare": "....x.......x...", "hat": "x.o.x.o.x.o.x.o."},
            {"kick": "x..x......x.....", "rim": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
        ),
        bass={"sub bass": ("long", "syncopated"), "upright bass": ("long",)},
        chords={"electric piano": ("sustained", "broken"), "acoustic guitar": ("broken",), "piano": ("sustained",)},
        lead=("flute", "harp", "marimba"),
        lead_chance=0.65,
        busy=0.8,
        swing=0.58,
        swing_unit=0.25,
        sevenths=True,
        energy=(2, 0.6, 0),
        brightness=(2, 0.7, 0),
        space=0.2,
    ),
    "funk": Style(
        bpm=(96, 116),
        minor=0.5,
        kit="acoustic",
        drum_words=("funky drums", "a tight funk beat", "syncopated drums"),
        grooves=(
            {"kick": "X.x.......x..x..", "snare": "....X..o.o..X..o", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "X..x..x...x.....", "snare": "....X..o....X...", "hat": "xxxxxxxxxxxxxxxx"},
        ),
        bass={"electric bass": ("syncopated", "octaves"), "synth bass": ("syncopated",)},
        chords={"electric piano": ("stabs",), "organ": ("stabs",), "muted guitar": ("stabs",)},
        lead=("brass", "saw lead", "flute"),
        lead_chance=0.7,
        busy=1.4,
        swing=0.54,
        swing_unit=0.25,
        sevenths=True,
        energy=(0, 1, 2),
        brightness=(0.5, 1, 1),
        space=0.08,
    ),
    "rock": Style(
        bpm=(110, 150),
        minor=0.45,
        kit="acoustic",
        drum_words=("rock drums", "a solid backbeat", "hard-hitting drums"),
        grooves=(
            {"kick": "X.....x.X.......", "snare": "....X.......X...", "hat": "X.x.X.x.X.x.X.x."},
            {"kick": "X.x.....X.x.....", "snare": "....X.......X...", "ride": "x.x.x.x.x.x.x.x."},
        ),
        bass={"electric bass": ("eighths", "long")},
        chords={"overdriven guitar": ("eighths", "sustained"), "organ": ("sustained",)},
        lead=("overdriven lead guitar", "square lead"),
        energy=(0, 0.6, 2),
        brightness=(0.5, 1, 1.5),
        space=0.1,
    ),
    "jazz": Style(
        bpm=(100, 148),
        minor=0.45,
        kit="brushes",
        drum_words=("swinging jazz drums", "brushed drums", "a swinging ride cymbal"),
        grooves=(
            {"ride": "X...x.x.X...x.x.", "hat": "....x.......x...", "kick": "o...o...o...o..."},
            {"ride": "X...x.x.X...x.x.", "snare": "......o.......o.", "hat": "....x.......x..."},
        ),
        bass={"upright bass": ("walking",)},
        chords={"piano": ("comping",), "electric piano": ("comping",), "organ": ("comping",)},
        lead=("brass", "flute", "vibraphone"),
        busy=1.5,
        swing=0.65,
        swing_unit=0.5,
        sevenths=True,
        energy=(0.7, 1, 0.7),
        brightness=(1, 1, 0.5),
        space=0.18,
    ),
    "folk": Style(
        bpm=(84, 124),
        minor=0.35,
        kit="brushes",
        drum_words=("light percussion", "a shaker and brushes", "hand percussion"),
        drums=0.35,
        grooves=(
            {"kick": "x.......x.......", "shaker": "x.o.x.o.x.o.x.o."},
            {"kick": "x.......x.......", "rim": "....x.......x...", "shaker": "xoxoxoxoxoxoxoxo"},
        ),
        bass={"upright bass": ("root-fifth", "long")},
        chords={"acoustic guitar": ("strummed", "broken"), "harp": ("broken",)},
        lead=("flute", "fiddle", "whistle"),
        energy=(1.5, 1, 0.2),
        brightness=(0.7, 1, 1),
        space=0.15,
    ),
    "ambient": Style(
        bpm=(60, 80),
        minor=0.55,
        kit="dusty",
        drum_words=("sparse drums", "a distant beat"),
        drums=0.15,
        grooves=({"kick": "x...............", "rim": "........o.......", "shaker": "..o...o...o...o."},),
        bass={"sub bass": ("long",)},
        chords={
            "warm pad": ("sustained",),
            "string pad": ("sustained",),
            "choir": ("sustained",),
            "bells": ("arpeggio",),
        },
        lead=("bells", "flute", "whistle", "harp"),
        lead_chance=0.65,
        busy=0.4,
        bars_per_chord=2,
        energy=(1, 0, 0),
        brightness=(1.2, 1, 1),
        space=0.5,
        echo=0.4,
    ),
    "chiptune": Style(
        bpm=(120, 160),
        minor=0.4,
        kit="chip",
        drum_words=("8-bit drums", "noise-channel drums"),
        grooves=(
            {"kick": "X...X...X...X...", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "X..x....X..x....", "snare": "....X.......X...", "hat": "xxxxxxxxxxxxxxxx"},
        ),
        bass={"triangle bass": ("octaves", "eighths")},
        chords={"pulse synth": ("arpeggio",)},
        lead=("square lead", "pulse lead"),
        lead_chance=0.95,
        busy=1.6,
        energy=(0, 1, 2),
        brightness=(0, 1, 2),
        space=0.0,
        echo=0.15,
    ),
    "waltz": Style(
        bpm=(96, 148),
        minor=0.45,
        kit="brushes",
        drum_words=("light waltz drums", "brushed drums in three"),
        drums=0.4,
        beats=3,
        grooves=(
            {"kick": "x...........", "hat": "....x...x..."},
            {"kick": "x...........", "rim": "....o...o...", "ride": "x...x...x..."},
        ),
        bass={"upright bass": ("root-fifth",)},
        chords={"piano": ("oom-pah",), "accordion": ("oom-pah",), "string pad": ("sustained",)},
        lead=("fiddle", "brass", "flute", "music box"),
        energy=(1, 1, 0.4),
        brightness=(0.7, 1, 1),
        space=0.3,
    ),
}
