"""Fitting what hears the corpus: how often it is right on other tracks, and that it can be done again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hearing_fit import accuracy, fit_hearing, main

from musicgen_train.demo import make_track
from musicgen_train.demo.hearing import Hearing, properties_of

RATE = 32_000


def test_held_out_tracks_are_heard_as_they_are() -> None:
    tracks = [make_track(42, index, 10.0) for index in range(33)]
    found = accuracy(Hearing.load(), [(torch.from_numpy(track.audio), properties_of(track.piece)) for track in tracks])
    # Figures are in docs/evaluation.md; these are about three standard errors of 33 tracks lower.
    least = {
        "bpm": 0.65, "bpm or an octave off": 0.8, "key": 0.72, "key or its relative": 0.75, "mode": 0.85,
        "style": 0.75, "drums": 0.8, "bass": 0.7, "chords": 0.6, "lead": 0.45, "brightness": 0.65, "energy": 0.9,
    }  # fmt: skip
    assert found.keys() == least.keys()
    assert {name: share for name, share in found.items() if share < least[name]} == {}


def test_it_can_be_fitted_again(tmp_path: Path) -> None:
    styles = ("house", "ambient")
    tracks = [make_track(1, n, 5.0, style=styles[n % 2], drums=n % 2 == 0, bpm=100 + n) for n in range(8)]
    recordings = [(torch.from_numpy(track.audio), properties_of(track.piece)) for track in tracks]
    fitted = fit_hearing(recordings)
    fitted.save(tmp_path / "weights.safetensors")
    again = Hearing.load(tmp_path / "weights.safetensors")
    assert fitted.options["style"] == ("ambient", "house")
    found = accuracy(again, recordings)
    assert all(found[name] == 1 for name in ("style", "drums")), found
    for audio, _ in recordings:
        assert again.hear(audio, RATE) == fitted.hear(audio, RATE)


def test_the_command_refuses_too_few_tracks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tracks", "3"])
    assert "--tracks must be 11 or more" in capsys.readouterr().err
