"""Fit the weights of `musicgen_train.demo.hearing` to tracks of one seed, and measure them on those of another.

    python scripts/demo_model/hearing_fit.py

It has to run again after a change of the corpus.

Axes: N recordings, V options, F features.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.nn import functional

from musicgen_train.audio.analysis import LEVEL
from musicgen_train.demo.composition import KEYS, MODES
from musicgen_train.demo.corpus import make_track
from musicgen_train.demo.hearing import (
    HEARING_WEIGHTS,
    JUDGED_BY_TIMBRE,
    TEMPO_GRID,
    Hearing,
    Properties,
    key_is_relative,
    key_scores,
    measure_recording,
    properties_of,
    tempo_is_near,
)
from musicgen_train.demo.styles import STYLES
from musicgen_train.demo.synthesis import SAMPLE_RATE

# Standard deviation of the target distribution that tempos are fitted to, in octaves: well within the tolerance.
_TEMPO_SPREAD = 0.012
_SHRINKAGE = {"tempo": 3e-4, "key": 1e-6, "timbre": 1e-3}
# Seeds of corpora; neither is used elsewhere.
_FITTING_SEED, _HELD_OUT_SEED = 101, 303
_TRACK_SECONDS = 20.0
# Start and length in seconds of the excerpts of each track, which are as long as the shortest and longest samples.
_EXCERPTS = ((4.0, 10.0), (11.0, 5.0))


def fit_hearing(recordings: Iterable[tuple[torch.Tensor, Properties]]) -> Hearing:
    """Fit all classifiers to recordings whose properties are known.

    Args:
        recordings: float `(channels, samples)` at 32 kHz, each with its true properties; each property must have more
            than one value among them.
    """
    measured = [(measure_recording(audio_CS, SAMPLE_RATE), truth) for audio_CS, truth in recordings]
    truths = [truth for _, truth in measured]
    tempo_NVF, key_NVF, timbre_NF = (torch.stack(part) for part in zip(*(row for row, _ in measured), strict=True))
    center, scale = timbre_NF.mean(dim=0), timbre_NF.std(dim=0, correction=0).clamp_min(1e-6)
    known_NF = torch.cat([(timbre_NF - center) / scale, timbre_NF.new_ones(len(timbre_NF), 1)], dim=1)
    options: dict[str, tuple[str, ...]] = {}
    linear: dict[str, torch.Tensor] = {}
    for name in JUDGED_BY_TIMBRE:
        # Pieces without a melody have no lead instrument.
        rows = [row for row, truth in enumerate(truths) if name in truth]
        options[name] = tuple(sorted({truths[row][name] for row in rows}))
        labels = torch.tensor([options[name].index(truths[row][name]) for row in rows])
        seen_NF = known_NF[rows]
        if name != "energy":
            # Loudness tells the energy and nothing else: in all other classifiers its weight stays at zero.
            seen_NF[:, LEVEL] = 0.0
        linear[name] = _fit_linear(seen_NF, labels, len(options[name]))
    return Hearing(
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


def _fit_tempo(tempo_NVF: torch.Tensor, bpm_N: torch.Tensor) -> torch.Tensor:
    off_NV = (TEMPO_GRID / bpm_N[:, None]).log2()
    target_NV = (-0.5 * (off_NV / _TEMPO_SPREAD).square()).softmax(dim=1)
    return _fit((tempo_NVF.shape[2],), lambda weights: tempo_NVF @ weights, target_NV, _SHRINKAGE["tempo"])


def _fit_key(key_NVF: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
    return _fit((2, key_NVF.shape[2]), lambda weights: key_scores(key_NVF, weights), label_N, _SHRINKAGE["key"])


def _fit_linear(known_NF: torch.Tensor, label_N: torch.Tensor, options: int) -> torch.Tensor:
    shape = (options, known_NF.shape[1])
    return _fit(shape, lambda weights: known_NF @ weights.T, label_N, _SHRINKAGE["timbre"])


def _fit(
    shape: tuple[int, ...], scores: Callable[[torch.Tensor], torch.Tensor], target: torch.Tensor, shrinkage: float
) -> torch.Tensor:
    """Minimise the cross-entropy between scores `(N, V)` and targets, plus an L2 penalty; returns the weights."""
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
    """Yield excerpts of 10 s and of 5 s of tracks, `(1, samples)` at 32 kHz, each with the true properties."""
    for index in range(tracks):
        track = make_track(seed, index, _TRACK_SECONDS)
        audio_CS = torch.from_numpy(track.audio)
        for start, length in _EXCERPTS:
            yield (
                audio_CS[:, round(start * SAMPLE_RATE) : round((start + length) * SAMPLE_RATE)],
                properties_of(track.piece),
            )


def accuracy(hearing: Hearing, recordings: Iterable[tuple[torch.Tensor, Properties]]) -> dict[str, float]:
    """By property, the share of recordings in which it is heard right, among those that have it."""
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tracks", type=int, default=330, help="number of tracks to fit to (default: 330)")
    parser.add_argument("--held-out", type=int, default=110, help="number of tracks to measure on (default: 110)")
    parser.add_argument("--output", type=Path, default=HEARING_WEIGHTS, help="the file (default: the package's)")
    options = parser.parse_args(arguments)
    if options.tracks < len(STYLES) or options.held_out < 1:
        parser.error(
            f"--tracks must be {len(STYLES)} or more, so that there is one of each style; --held-out 1 or more"
        )
    hearing = fit_hearing(excerpts(_FITTING_SEED, options.tracks))
    hearing.save(options.output)
    found = accuracy(Hearing.load(options.output), excerpts(_HELD_OUT_SEED, options.held_out))
    print(f"{options.output}: heard right in {options.held_out * len(_EXCERPTS)} excerpts of other tracks")
    for name, share in found.items():
        print(f"  {name:22} {share:.1%}")


if __name__ == "__main__":
    main()
