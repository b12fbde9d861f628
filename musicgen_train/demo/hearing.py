"""Classifiers that hear in a recording the properties that captions of the corpus name.

They work on the audio alone: `audio/analysis.py` computes the features, and multinomial logistic regressions (McFadden,
"Conditional logit analysis of qualitative choice behavior", 1974) weigh them. Their weights were fitted to tracks of
the corpus, whose properties are known, by `scripts/demo_model/hearing_fit.py`:

- tempo: candidates from 55 to 165 beats a minute are scored by how strongly the onsets repeat after their beat and its
  fractions and multiples;
- key and mode: each key is scored by the pitch classes counted from its tonic, with a learned profile for each mode as
  those of Krumhansl and Kessler (1982);
- everything else: linear in the features of timbre.

Axes: C channels, S samples, V options, F features, P pitch classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save

from musicgen_train.audio.analysis import SILENCE_DB, level_db, onset_repetition, pitch_classes, timbre
from musicgen_train.demo.caption_reading import read_facts
from musicgen_train.demo.composition import KEYS, MODES, Piece
from musicgen_train.demo.styles import STYLES

HEARING_WEIGHTS = Path(__file__).with_name("hearing.safetensors")
"""The fitted weights."""
JUDGED_BY_TIMBRE = ("style", "drums", "bass", "chords", "lead", "brightness", "energy")
"""Properties that are judged by the features of `analysis.timbre`."""
TEMPO_TOLERANCE = 0.04
"""The relative error up to which a tempo counts as right: the usual 4 % (Gouyon et al., 2006)."""

TEMPO_GRID = 55.0 * 1.01 ** torch.arange(111, dtype=torch.float64)
"""The tempos that are told apart, float64 `(V,)`: from 55 to 165 beats a minute in steps of 1 %."""
# Multiples of a beat after which the repetition of onsets is measured.
_BEATS = torch.tensor([1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 3 / 2, 2, 3, 4], dtype=torch.float64)

_BASS_NAMES = {name for style in STYLES.values() for name in style.bass}
_CHORD_NAMES = {name for style in STYLES.values() for name in style.chords}
_LEAD_NAMES = {name for style in STYLES.values() for name in style.lead}

Properties = Mapping[str, str]
"""Values by property: `bpm` ("120"), `key` ("Bb"), `mode` ("minor"), `style`, `drums` ("yes" or "no"), `bass`, `chords`
and `lead` (an instrument), `brightness`, `energy`."""


def properties_of(piece: Piece) -> dict[str, str]:
    """The true properties of a piece; `lead` is missing if nothing plays a melody."""
    return {
        "bpm": str(piece.bpm),
        "key": piece.key,
        "mode": piece.mode,
        "style": piece.style_name,
        "drums": "yes" if piece.has_drums else "no",
        "brightness": piece.brightness,
        "energy": piece.energy,
        **{part.role: part.instrument for part in piece.parts},
    }


def requested(caption: str) -> dict[str, str]:
    """The properties that a text asks for, in the words of the corpus or their synonyms.

    If an instrument can play chords as well as a melody, the other instruments that are named decide which it is. Where
    they leave it open, or the text names several for one part, it asks for nothing of that part.
    """
    facts = read_facts(caption)
    single: dict[str, set[str]] = {}
    for name, value in facts:
        single.setdefault(name, set()).add(value)
    instruments = single.pop("instrument", set())
    asked = {
        name: next(iter(values))
        for name, values in single.items()
        if name in ("bpm", "key", "mode", "style", "drums", "brightness", "energy") and len(values) == 1
    }
    bass = instruments & _BASS_NAMES
    chords = instruments & _CHORD_NAMES
    if len(chords) > 1:
        chords -= _LEAD_NAMES
    lead = (instruments & _LEAD_NAMES) - chords
    return asked | {
        part: next(iter(names))
        for part, names in (("bass", bass), ("chords", chords), ("lead", lead))
        if len(names) == 1
    }


def tempo_is_near(asked: str, heard: str, *, octaves: bool = False) -> bool:
    """Tells whether a tempo is the one asked for within `TEMPO_TOLERANCE`; with `octaves`, or half or double of it."""
    ratio = float(heard) / float(asked)
    return any(abs(ratio / times - 1) <= TEMPO_TOLERANCE + 1e-9 for times in ((0.5, 1.0, 2.0) if octaves else (1.0,)))


def key_is_relative(asked: Properties, heard: Properties) -> bool:
    """Tells whether key and mode are those asked for, or those of the relative key, which has the same notes."""

    def major_tonic(values: Properties) -> int:
        return (KEYS.index(values["key"]) + (3 if values["mode"] == "minor" else 0)) % 12

    return major_tonic(asked) == major_tonic(heard)


@dataclass(frozen=True)
class Hearing:
    """The fitted classifiers.

    Args:
        tempo: weights, float64 `(F,)`: of the onsets' repetition after each multiple of a beat, of the tempo in
            octaves, and of its square.
        key: weights, float64 `(2, 13)`: in a major and a minor key, of the 12 pitch classes above the tonic, and a
            constant.
        center, scale: float64 `(F,)`, mean and standard deviation of the timbres they were fitted to.
        linear: by property, weights float64 `(V, F + 1)`, the constant last.
        options: by property, its V values.
    """

    tempo: torch.Tensor
    key: torch.Tensor
    center: torch.Tensor
    scale: torch.Tensor
    linear: dict[str, torch.Tensor]
    options: dict[str, tuple[str, ...]]

    def hear(self, audio_CS: torch.Tensor, sampling_rate: int) -> dict[str, str]:
        """The likeliest value of every property.

        Args:
            audio_CS: `(channels, samples)`, full scale 1, of 2 s or more; 5 s or more are judged well.
            sampling_rate: in Hz.

        Returns:
            `Properties`, the tempo with one decimal; empty if the audio is silent.

        Raises:
            ValueError: the audio is too short or not finite.
        """
        tempo_VF, key_VF, timbre_F = measure_recording(audio_CS, sampling_rate)
        if level_db(audio_CS) < SILENCE_DB:
            return {}
        bpm = TEMPO_GRID[int((tempo_VF @ self.tempo).argmax())].item()
        place = int(key_scores(key_VF, self.key).argmax())
        heard = {"bpm": f"{bpm:.1f}", "key": KEYS[place % 12], "mode": MODES[place // 12]}
        known_F = torch.cat([(timbre_F - self.center) / self.scale, timbre_F.new_ones(1)])
        for name, weight_VF in self.linear.items():
            heard[name] = self.options[name][int((weight_VF @ known_F).argmax())]
        return heard

    @classmethod
    def load(cls, path: Path = HEARING_WEIGHTS) -> Self:
        """Read the weights in the package, or those in another file.

        Raises:
            FileNotFoundError: the file is not there.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; make it with `python scripts/demo_model/hearing_fit.py`")
        with safe_open(path, "pt") as file:
            options = {name: tuple(values) for name, values in json.loads(file.metadata()["options"]).items()}
            tensors = {name: file.get_tensor(name).double() for name in sorted(file.keys())}
        return cls(
            tempo=tensors["tempo"],
            key=tensors["key"],
            center=tensors["center"],
            scale=tensors["scale"],
            linear={name: tensors[f"linear.{name}"] for name in options},
            options=options,
        )

    def save(self, path: Path = HEARING_WEIGHTS) -> None:
        """Write the file that `load` reads, in float32."""
        tensors = {"tempo": self.tempo, "key": self.key, "center": self.center, "scale": self.scale}
        tensors |= {f"linear.{name}": weight for name, weight in self.linear.items()}
        content = save(
            {name: tensor.float().contiguous() for name, tensor in tensors.items()},
            {"options": json.dumps(self.options)},
        )
        path.write_bytes(content)


def measure_recording(audio_CS: torch.Tensor, sampling_rate: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of every tempo of `TEMPO_GRID` `(V, F)`, of every tonic `(12, 13)`, and of the timbre `(F,)`."""
    repetition_VF = onset_repetition(audio_CS, sampling_rate, 60 / TEMPO_GRID[:, None] * _BEATS)
    octaves_V1 = (TEMPO_GRID[:, None] / 100).log2()
    tempo_VF = torch.cat([repetition_VF, octaves_V1, octaves_V1.square()], dim=1)
    profile_P = pitch_classes(audio_CS, sampling_rate)
    from_tonic = torch.stack([profile_P.roll(-tonic) for tonic in range(12)])
    key_VF = torch.cat([from_tonic, from_tonic.new_ones(12, 1)], dim=1)
    return tempo_VF, key_VF, timbre(audio_CS, sampling_rate)


def key_scores(key_VF: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scores of the 12 major keys, then of the 12 minor ones: `(..., 24)` from features `(..., 12, 13)`."""
    return (key_VF @ weights.T).transpose(-1, -2).flatten(-2)
