"""The listener that knows the demo's corpus: it judges the control test of `musicgen_train.evaluation`.

Axes: C channels, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from musicgen_train.audio.analysis import SHORTEST_SECONDS
from musicgen_train.audio.io import resample, to_channels
from musicgen_train.demo.corpus import make_track
from musicgen_train.demo.hearing import (
    TEMPO_TOLERANCE,
    Hearing,
    Properties,
    key_is_relative,
    requested,
    tempo_is_near,
)
from musicgen_train.demo.synthesis import SAMPLE_RATE
from musicgen_train.evaluation.control.listener import Criterion


class DemoListener:
    """Hears by signal analysis (`demo/hearing.py`), reads captions in the corpus' words, makes new pieces of it."""

    key = "control/v1"
    method = "signal analysis that knows neither caption nor model (docs/evaluation.md)"
    shortest_seconds = SHORTEST_SECONDS
    corpus = "new pieces of the demo's corpus"
    criteria: Sequence[Criterion] = (
        Criterion(
            label="tempo",
            needs=("bpm",),
            agree=lambda asked, heard: tempo_is_near(asked["bpm"], heard["bpm"]),
            meaning=f"Beats per minute within {TEMPO_TOLERANCE:.0%}.",
        ),
        Criterion(
            label="tempo or octave",
            needs=("bpm",),
            agree=lambda asked, heard: tempo_is_near(asked["bpm"], heard["bpm"], octaves=True),
            meaning="Half and double the tempo count too: slow music can be counted either way.",
            lenient=True,
        ),
        Criterion.same("key", "The tonic, one of twelve."),
        Criterion(
            label="key or relative",
            needs=("key", "mode"),
            agree=key_is_relative,
            meaning="Tonic and mode, or those of the relative key, which has the same notes (C major for A minor).",
            lenient=True,
        ),
        Criterion.same("mode", "Major or minor."),
        Criterion.same("style", "Which style of the corpus it sounds like most."),
        Criterion.same("drums", "Whether there are drums."),
        Criterion.same("bass", "Which instrument plays the bass."),
        Criterion.same("chords", "Which instrument plays the chords."),
        Criterion.same("lead", "Which instrument plays the melody, where a caption names one."),
        Criterion.same("brightness", "Dark, neutral or bright: how much of the sound is high."),
        Criterion.same("energy", "Calm, medium or energetic: how loud it is."),
    )

    def __init__(self) -> None:
        self._hearing = Hearing.load()

    def requested(self, caption: str) -> Properties:
        """Read the properties off a caption; see `hearing.requested`."""
        return requested(caption)

    def hear(self, audio_CS: torch.Tensor, sampling_rate: int) -> Properties:
        """Hear the properties of audio; see `Hearing.hear`."""
        return self._hearing.hear(audio_CS, sampling_rate)

    def make_piece(
        self, seed: int, index: int, samples: int, sampling_rate: int, channels: int
    ) -> tuple[str, torch.Tensor]:
        """Make a track of the corpus; its caption is the one that names everything. See `PieceMaker`."""
        # No shorter than what is cut off, whichever way the rates round.
        seconds = math.ceil(samples / sampling_rate * 10) / 10
        track = make_track(seed, index, seconds, stereo=channels == 2)
        audio_CS = resample(torch.from_numpy(track.audio), SAMPLE_RATE, sampling_rate)
        return track.description, to_channels(audio_CS, channels)[:, :samples]
