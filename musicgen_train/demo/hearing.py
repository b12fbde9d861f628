"""Hearing in a recording what captions of the corpus ask for, without asking the code or the model that made it.

What is measured is in `audio/analysis.py`; here it is weighed. The weights are those of multinomial logistic
regressions (McFadden, "Conditional logit analysis of qualitative choice behavior", 1974), fitted to tracks of the
corpus whose truth is known:

- tempo: each tempo from 55 to 165 is as likely as the onsets repeat after its beat and not after other fractions and
  multiples of it;
- key and mode: each key is as likely as the pitch classes, counted from its tonic, look like those of its mode: two
  profiles as of Krumhansl and Kessler (1982), learned;
- all else: linear in the measurements of timbre.

    python -m musicgen_train.demo.hearing      fit again, after a change of the corpus, and tell the accuracy

Axes: N recordings, V options, F features.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.nn import functional

from musicgen_train.audio.analysis import LEVEL, SILENCE_DB, level_db, onset_repetition, pitch_classes, timbre
from musicgen_train.demo.composition import KEYS, MODES, Piece
from musicgen_train.demo.corpus import make_track
from musicgen_train.demo.reading import read
from musicgen_train.demo.styles import STYLES
from musicgen_train.demo.synthesis import SAMPLE_RATE

WEIGHTS = Path(__file__).with_name("hearing.safetensors")
"""The fitted weights."""
JUDGED_BY_TIMBRE = ("style", "drums", "bass", "chords", "lead", "brightness", "energy")
"""Properties that are read from `analysis.timbre`."""
TEMPO_TOLERANCE = 0.04
"""By which part a tempo may be off and count as right: the usual 4 % (Gouyon et al., 2006)."""

# 55 to 165 beats a minute in steps of 1 %.
_TEMPOS = 55.0 * 1.01 ** torch.arange(111, dtype=torch.float64)
_BEATS = torch.tensor([1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 3 / 2, 2, 3, 4], dtype=torch.float64)
# How sharp the truth is that tempos are fitted to, in octaves: within the tolerance.
_TEMPO_SPREAD = 0.012
_SHRINKAGE = {"tempo": 3e-4, "key": 1e-6, "timbre": 1e-3}
# Of the corpus; neither is used elsewhere.
_FITTING_SEED, _HELD_OUT_SEED = 101, 303
_TRACK_SECONDS = 20.0
# Start and length in seconds of what is heard of each track: as short as samples are, and as long.
_EXCERPTS = ((4.0, 10.0), (11.0, 5.0))

_BASS_NAMES = {name for style in STYLES.values() for name in style.bass}
_CHORD_NAMES = {name for style in STYLES.values() for name in style.chords}
_LEAD_NAMES = {name for style in STYLES.values() for name in style.lead}

Properties = Mapping[str, str]
"""Values by property: `bpm` ("120"), `key` ("Bb"), `mode` ("minor"), `style`, `drums` ("yes" or "no"), `bass`, `chords`
and `lead` (an instrument), `brightness`, `energy`."""


def properties_of(piece: Piece) -> dict[str, str]:
    """What is true of a piece; it has no `lead` where nothing plays a melody."""
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
    """What a text asks for, as far as it names it in the words of the corpus or with their synonyms.

    An instrument that may play chords as well as a melody is told from the others that are named; where that leaves it
    open, or several are named for one part, nothing is asked of it.
    """
    facts = read(caption)
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
    """Whether a tempo is the one asked for, within `TEMPO_TOLERANCE`; with `octaves`, half and double count too."""
    ratio = float(heard) / float(asked)
    return any(abs(ratio / times - 1) <= TEMPO_TOLERANCE + 1e-9 for times in ((0.5, 1.0, 2.0) if octaves else (1.0,)))


def key_is_relative(asked: Properties, heard: Properties) -> bool:
    """Whether key and mode are those asked for, or the relative key, which has the same notes."""

    def major_tonic(values: Properties) -> int:
        return (KEYS.index(values["key"]) + (3 if values["mode"] == "minor" else 0)) % 12

    return major_tonic(asked) == major_tonic(heard)


@dataclass(frozen=True)
class Hearing:
    """Fitted weights; `hear` uses them.

    Args:
        tempo: float64 `(F,)`, of the onsets' repetition after fractions and multiples of a beat, of the tempo in
            octaves, and of its square.
        key: float64 `(2, 13)`, for major and minor of the 12 pitch classes above the tonic, and a constant.
        center, scale: float64 `(F,)`, mean and standard deviation of the timbres it was fitted to.
        linear: by property, float64 `(V, F + 1)`, the constant last.
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
            audio_CS: `(channels, samples)`, full scale 1; 5 s and more are judged well, less than 2 s not at all.
            sampling_rate: in Hz.

        Returns:
            As `Properties`, the tempo with one decimal. Nothing where the audio is silent: it has no properties, and
            follows no caption.

        Raises:
            ValueError: the audio is too short or not finite.
        """
        tempo_VF, key_VF, timbre_F = _measure(audio_CS, sampling_rate)
        if level_db(audio_CS) < SILENCE_DB:
            return {}
        bpm = _TEMPOS[int((tempo_VF @ self.tempo).argmax())].item()
        place = int(_key_scores(key_VF, self.key).argmax())
        heard = {"bpm": f"{bpm:.1f}", "key": KEYS[place % 12], "mode": MODES[place // 12]}
        known_F = torch.cat([(timbre_F - self.center) / self.scale, timbre_F.new_ones(1)])
        for name, weight_VF in self.linear.items():
            heard[name] = self.options[name][int((weight_VF @ known_F).argmax())]
        return heard

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Self:
        """The weights that the package has, or those of another file.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; make it with `python -m musicgen_train.demo.hearing`")
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

    def save(self, path: Path = WEIGHTS) -> None:
        """Write what `load` reads, in 32 bits."""
        tensors = {"tempo": self.tempo, "key": self.key, "center": self.center, "scale": self.scale}
        tensors |= {f"linear.{name}": weight for name, weight in self.linear.items()}
        content = save(
            {name: tensor.float().contiguous() for name, tensor in tensors.items()},
            {"options": json.dumps(self.options)},
        )
        path.write_bytes(content)

    @classmethod
    def fit(cls, recordings: Iterable[tuple[torch.Tensor, Properties]]) -> Self:
        """Fit all weights to recordings of which the truth is known.

        Args:
            recordings: float `(channels, samples)` at 32 kHz, with what is true of each; each property has to have
                more than one value among them.
        """
        measured = [(_measure(audio_CS, SAMPLE_RATE), truth) for audio_CS, truth in recordings]
        truths = [truth for _, truth in measured]
        tempo_NVF, key_NVF, timbre_NF = (torch.stack(part) for part in zip(*(row for row, _ in measured), strict=True))
        center, scale = timbre_NF.mean(dim=0), timbre_NF.std(dim=0, correction=0).clamp_min(1e-6)
        known_NF = torch.cat([(timbre_NF - center) / scale, timbre_NF.new_ones(len(timbre_NF), 1)], dim=1)
        options: dict[str, tuple[str, ...]] = {}
        linear: dict[str, torch.Tensor] = {}
        for name in JUDGED_BY_TIMBRE:
            # Pieces without a melody say nothing of what plays one.
            rows = [row for row, truth in enumerate(truths) if name in truth]
            options[name] = tuple(sorted({truths[row][name] for row in rows}))
            labels = torch.tensor([options[name].index(truths[row][name]) for row in rows])
            seen_NF = known_NF[rows]
            if name != "energy":
                # Loudness is energy and nothing else: its weight stays at zero.
                seen_NF[:, LEVEL] = 0.0
            linear[name] = _fit_linear(seen_NF, labels, len(options[name]))
        return cls(
            tempo=_fit_tempo(tempo_NVF, torch.tensor([float(truth["bpm"]) for truth in truths])),
            key=_fit_key(
                key_NVF,
                torch.tensor([KEYS.index(truth["key"]) + 12 * MODES.index(truth["mode"]) for truth in truths]),
            ),
            center=center,
            scale=scale,
            linear=linear,
            options=options,
        )


def _measure(audio_CS: torch.Tensor, sampling_rate: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of every tempo `(V, F)`, of every tonic `(12, 13)`, and of the timbre `(F,)`."""
    repetition_VF = onset_repetition(audio_CS, sampling_rate, 60 / _TEMPOS[:, None] * _BEATS)
    octaves_V1 = (_TEMPOS[:, None] / 100).log2()
    tempo_VF = torch.cat([repetition_VF, octaves_V1, octaves_V1.square()], dim=1)
    profile_P = pitch_classes(audio_CS, sampling_rate)
    from_tonic = torch.stack([profile_P.roll(-tonic) for tonic in range(12)])
    key_VF = torch.cat([from_tonic, from_tonic.new_ones(12, 1)], dim=1)
    return tempo_VF, key_VF, timbre(audio_CS, sampling_rate)


def _key_scores(key_VF: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Of 12 major keys, then of 12 minor ones: `(..., 24)` from `(..., 12, 13)`."""
    return (key_VF @ weights.T).transpose(-1, -2).flatten(-2)


def _fit_tempo(tempo_NVF: torch.Tensor, bpm_N: torch.Tensor) -> torch.Tensor:
    off_NV = (_TEMPOS / bpm_N[:, None]).log2()
    target_NV = (-0.5 * (off_NV / _TEMPO_SPREAD).square()).softmax(dim=1)
    return _fit((tempo_NVF.shape[2],), lambda weights: tempo_NVF @ weights, target_NV, _SHRINKAGE["tempo"])


def _fit_key(key_NVF: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
    return _fit((2, key_NVF.shape[2]), lambda weights: _key_scores(key_NVF, weights), label_N, _SHRINKAGE["key"])


def _fit_linear(known_NF: torch.Tensor, label_N: torch.Tensor, options: int) -> torch.Tensor:
    shape = (options, known_NF.shape[1])
    return _fit(shape, lambda weights: known_NF @ weights.T, label_N, _SHRINKAGE["timbre"])


def _fit(
    shape: tuple[int, ...], scores: Callable[[torch.Tensor], torch.Tensor], target: torch.Tensor, shrinkage: float
) -> torch.Tensor:
    """Weights whose scores `(N, V)` make the targets likeliest, small ones preferred."""
    weights = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=400, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(scores(weights), target) + shrinkage * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def excerpts(seed: int, tracks: int) -> Iterator[tuple[torch.Tensor, dict[str, str]]]:
    """Parts of 10 and of 5 s of tracks of the corpus, `(1, samples)` at 32 kHz, each with what is true of the track."""
    for index in range(tracks):
        track = make_track(seed, index, _TRACK_SECONDS)
        audio_CS = torch.from_numpy(track.audio)
        for start, length in _EXCERPTS:
            yield (
                audio_CS[:, round(start * SAMPLE_RATE) : round((start + length) * SAMPLE_RATE)],
                properties_of(track.piece),
            )


def accuracy(hearing: Hearing, recordings: Iterable[tuple[torch.Tensor, Properties]]) -> dict[str, float]:
    """The share of recordings of which each property is heard as it is; those that have it."""
    right: dict[str, list[bool]] = {}
    for audio_CS, truth in recordings:
        heard = hearing.hear(audio_CS, SAMPLE_RATE)
        for name, value in truth.items():
            same = tempo_is_near(value, heard[name]) if name == "bpm" else value == heard[name]
            right.setdefault(name, []).append(same)
        right.setdefault("bpm or an octave off", []).append(
            tempo_is_near(truth["bpm"], heard["bpm"], octaves=True),
        )
        right.setdefault("key or its relative", []).append(key_is_relative(truth, heard))
    return {name: sum(hits) / len(hits) for name, hits in right.items()}


def main(arguments: list[str] | None = None) -> int:
    """Fit to tracks of one seed and tell how right it is on those of another."""
    parser = argparse.ArgumentParser(prog="python -m musicgen_train.demo.hearing", description=__doc__.split("\n")[0])
    parser.add_argument("--tracks", type=int, default=330, help="to fit to (default: 330)")
    parser.add_argument("--held-out", type=int, default=110, help="to tell the accuracy on (default: 110)")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the file (default: the package's)")
    options = parser.parse_args(arguments)
    if options.tracks < len(STYLES) or options.held_out < 1:
        parser.error(
            f"--tracks must be {len(STYLES)} or more, so that there is one of each style; --held-out 1 or more"
        )
    hearing = Hearing.fit(excerpts(_FITTING_SEED, options.tracks))
    hearing.save(options.output)
    found = accuracy(Hearing.load(options.output), excerpts(_HELD_OUT_SEED, options.held_out))
    print(f"{options.output}: heard right in {options.held_out * len(_EXCERPTS)} excerpts of other tracks")
    for name, share in found.items():
        print(f"  {name:22} {share:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
