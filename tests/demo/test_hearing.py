"""What is heard in music whose tempo, key and sound are known: synthetic signals, and held-out tracks of the corpus."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from musicgen_train.demo import make_track
from musicgen_train.demo.composition import KEYS, compose
from musicgen_train.demo.descriptions import describe_piece
from musicgen_train.demo.draws import Draws
from musicgen_train.demo.hearing import (
    JUDGED_BY_TIMBRE,
    Hearing,
    key_is_relative,
    properties_of,
    requested,
    tempo_is_near,
)

RATE = 32_000
# What the corpus has in each scale, above the tonic: I IV V I, and i iv V i.
CADENCES = {
    "major": ((0, 4, 7), (5, 9, 12), (7, 11, 14), (0, 4, 7)),
    "minor": ((0, 3, 7), (5, 8, 12), (7, 11, 14), (0, 3, 7)),
}


@pytest.fixture(scope="module")
def hearing() -> Hearing:
    return Hearing.load()


def drum_machine(bpm: float, seconds: float = 8.0) -> torch.Tensor:
    """Kick on one and three, snare on two and four, a hat on every eighth; no pitch."""
    draws = torch.Generator().manual_seed(0)
    time = torch.arange(RATE // 8) / RATE
    kick = torch.sin(2 * torch.pi * 60 * time) * torch.exp(-time * 30)
    snare = 0.6 * torch.randn(len(time), generator=draws) * torch.exp(-time * 40)
    hat = 0.3 * torch.randn(len(time), generator=draws).diff(append=torch.zeros(1)) * torch.exp(-time * 120)
    audio = torch.zeros(1, round(seconds * RATE))
    for eighth in range(int(seconds * bpm / 30) - 1):
        start = round((0.1 + eighth * 30 / bpm) * RATE)
        for sound, plays in ((kick, eighth % 4 == 0), (snare, eighth % 4 == 2), (hat, True)):
            if plays and start + len(time) <= audio.shape[1]:
                audio[0, start : start + len(time)] += 0.5 * sound
    return audio


def chords(tonic: int, mode: str, seconds_each: float = 2.0) -> torch.Tensor:
    """A cadence of triads in tones with four harmonics, the root an octave lower too."""
    time = torch.arange(round(seconds_each * RATE), dtype=torch.float64) / RATE
    parts = []
    for triad in CADENCES[mode]:
        sound = torch.zeros_like(time)
        for step in (triad[0] - 12, *triad):
            frequency = 440 * 2 ** ((60 + tonic + step - 69) / 12)
            sound += sum(torch.sin(2 * torch.pi * frequency * h * time) / h**2 for h in range(1, 5))
        parts.append(0.05 * sound * torch.exp(-time))
    return torch.cat(parts)[None].float()


@pytest.mark.parametrize("bpm", [80, 97, 112, 128, 140])
def test_tempo_of_a_drum_machine(hearing: Hearing, bpm: int) -> None:
    for seconds in (5.0, 10.0):
        assert float(hearing.hear(drum_machine(bpm, seconds), RATE)["bpm"]) == pytest.approx(bpm, rel=0.02)


@pytest.mark.parametrize("mode", ["major", "minor"])
def test_key_of_a_cadence(hearing: Hearing, mode: str) -> None:
    for tonic in range(12):
        heard = hearing.hear(chords(tonic, mode), RATE)
        assert (heard["key"], heard["mode"]) == (KEYS[tonic], mode)


def test_drums_that_are_added_are_heard(hearing: Hearing) -> None:
    for index in range(4):
        silent = torch.from_numpy(make_track(31, index, 8.0, style="folk", drums=False).audio)
        assert hearing.hear(silent, RATE)["drums"] == "no"
        assert hearing.hear(silent + drum_machine(100), RATE)["drums"] == "yes"


def test_silence_has_no_properties(hearing: Hearing) -> None:
    assert hearing.hear(torch.zeros(1, 5 * RATE), RATE) == {}
    assert hearing.hear(1e-4 * torch.randn(1, 5 * RATE), RATE) == {}


def test_the_sampling_rate_does_not_matter(hearing: Hearing) -> None:
    import torchaudio

    audio = torch.from_numpy(make_track(31, 0, 8.0).audio)
    at_48k = torchaudio.functional.resample(audio, RATE, 48_000)
    heard, again = hearing.hear(audio, RATE), hearing.hear(at_48k, 48_000)
    assert heard == again


def test_the_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python scripts/demo_model/hearing_fit\.py"):
        Hearing.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "A gentle folk track in Bb minor at 88 BPM, with a melody on flute, strummed acoustic guitar and "
            "upright bass, no drums. The sound is muffled and the mood sad.",
            {
                "style": "folk", "bpm": "88", "key": "Bb", "mode": "minor", "lead": "flute", "energy": "calm",
                "chords": "acoustic guitar", "bass": "upright bass", "drums": "no", "brightness": "dark",
            },
        ),
        # A harp may play chords or the melody; beside a piano it has to be the melody.
        ("piano and harp", {"chords": "piano", "lead": "harp"}),
        ("", {}),
        ("a photograph of a dog", {}),
    ],
)  # fmt: skip
def test_what_captions_ask_for(caption: str, expected: dict[str, str]) -> None:
    assert requested(caption) == expected


def test_descriptions_ask_for_what_is_true() -> None:
    asked_for: dict[str, int] = {}
    for index in range(110):
        piece = compose(77, index)
        description = describe_piece(piece, Draws("captions", 77, index))[0]
        asked, truth = requested(description), properties_of(piece)
        assert {name: truth.get(name) for name in asked} == asked
        for name in asked:
            asked_for[name] = asked_for.get(name, 0) + 1
    assert all(asked_for[name] == 110 for name in ("bpm", "key", "mode", "style", "drums", "bass", "brightness"))
    assert min(asked_for[name] for name in JUDGED_BY_TIMBRE) > 55


@pytest.mark.parametrize(
    ("asked", "heard", "near", "or_octave"),
    [
        ("100", "100.0", True, True),
        ("100", "104.0", True, True),
        ("100", "95.9", False, False),
        ("100", "200.0", False, True),
        ("100", "51.9", False, True),
        ("100", "150.0", False, False),
        ("100", "210.0", False, False),
    ],
)
def test_how_near_a_tempo_has_to_be(asked: str, heard: str, near: bool, or_octave: bool) -> None:
    assert tempo_is_near(asked, heard) == near
    assert tempo_is_near(asked, heard, octaves=True) == or_octave


def test_relative_keys_have_the_same_notes() -> None:
    scales = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
    keys = list(itertools.product(range(12), scales))
    for (tonic, mode), (other, other_mode) in itertools.product(keys, keys):
        notes = {(tonic + step) % 12 for step in scales[mode]}
        same = notes == {(other + step) % 12 for step in scales[other_mode]}
        asked, heard = {"key": KEYS[tonic], "mode": mode}, {"key": KEYS[other], "mode": other_mode}
        assert key_is_relative(asked, heard) == same


def test_louder_is_more_energetic_and_nothing_else(hearing: Hearing) -> None:
    audio = torch.from_numpy(make_track(31, 2, 8.0, energy="medium").audio)
    loud, soft = (hearing.hear(gain * audio, RATE) for gain in (1.26, 0.7))
    assert (loud.pop("energy"), soft.pop("energy")) == ("energetic", "calm")
    assert np.array_equal(sorted(loud.items()), sorted(soft.items()))
