"""Listeners for the control test: the demo's, and one of somebody else's that the settings name."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from reports import Page, config
from tiny_world import CAPTIONS, World, save_dataset

from musicgen_train.audio.io import resample
from musicgen_train.demo import make_track
from musicgen_train.demo.demo_listener import DemoListener
from musicgen_train.demo.hearing import JUDGED_BY_TIMBRE, Hearing
from musicgen_train.evaluation.control.listener import Criterion, PieceMaker, load_listener
from musicgen_train.evaluation.run import run


class LoudnessJudge:
    """Hears one property, and makes no pieces."""

    key = "control/loudness-v1"
    method = "a loudness meter"
    shortest_seconds = 0.1
    criteria = (Criterion.same("loud", "Whether it is loud."),)

    def requested(self, caption: str) -> dict[str, str]:
        return {"loud": "yes"} if "drum" in caption else {"loud": "no"} if "lofi" in caption else {}

    def hear(self, audio_CS: torch.Tensor, sampling_rate: int) -> dict[str, str]:
        assert sampling_rate == 320
        return {"loud": "yes" if audio_CS.square().mean() > 0.01 else "no"}


@pytest.fixture(autouse=True)
def somebodys(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys")
    module.LoudnessJudge = LoudnessJudge  # type: ignore[attr-defined]
    module.Wrong = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys", module)


def test_the_one_that_is_named() -> None:
    assert isinstance(load_listener("somebodys:LoudnessJudge"), LoudnessJudge)
    default = load_listener(config().control.listener)
    assert isinstance(default, DemoListener)
    assert isinstance(default, PieceMaker)
    assert not isinstance(LoudnessJudge(), PieceMaker)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("somebodys:Missing", "control.listener=somebodys:Missing cannot be loaded: module 'somebodys' has no attr"),
        ("nobodys:Judge", "cannot be loaded: No module named 'nobodys'; give module:Class"),
        ("a name", "cannot be loaded: "),
        ("somebodys:Wrong", "is no listener: it has no key, method, shortest_seconds, criteria, requested, hear"),
    ],
)
def test_names_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_listener(name)


def test_a_criterion() -> None:
    both = Criterion(label="both", needs=("a", "b"), agree=lambda asked, heard: asked == heard, meaning="")
    assert both.is_named({"a": "1", "b": "2", "c": "3"})
    assert not both.is_named({"a": "1"})
    assert both.is_met({"a": "1", "b": "2"}, {"a": "1", "b": "2"})
    assert not both.is_met({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
    # Silence follows nothing.
    assert not both.is_met({}, {})


def test_the_demos_listener_compares_what_its_hearing_hears() -> None:
    criteria = DemoListener().criteria
    assert {name for criterion in criteria for name in criterion.needs} == {"bpm", "key", "mode", *JUDGED_BY_TIMBRE}
    assert [criterion.label for criterion in criteria if criterion.lenient] == ["tempo or octave", "key or relative"]


@pytest.mark.parametrize(("rate", "channels"), [(32_000, 1), (24_000, 2)])
def test_the_demos_listener_makes_tracks_of_its_corpus(rate: int, channels: int) -> None:
    listener, samples = DemoListener(), 3 * rate + 7
    caption, audio = listener.make_piece(9, 4, samples, rate, channels)
    track = make_track(9, 4, 3.1, stereo=channels == 2)
    assert caption == track.description
    assert audio.shape == (channels, samples)
    torch.testing.assert_close(audio, resample(torch.from_numpy(track.audio), 32_000, rate)[:, :samples])
    assert listener.hear(audio, rate) == Hearing.load().hear(audio, rate)


def test_the_stage_with_a_listener_of_ones_own(world: World, tmp_path: Path) -> None:
    clips = [torch.randint(64, (4, 40), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    latents = save_dataset(world.model, world.composite, tmp_path / "latents", clips, [[0], [1], [2]])
    settings: dict[str, Any] = {
        "model": str(world.composite),
        "output": str(tmp_path / "report"),
        "data__path": str(latents),
        "data__rows": 0,
        "metrics__frechet": False,
        "metrics__cross_entropy": False,
        "control__clips": 3,
        "control__listener": "somebodys:LoudnessJudge",
    }
    with pytest.raises(ValueError, match=r"LoudnessJudge makes none; give control\.source=dataset and data"):
        run(config(**settings))
    report = run(config(**settings, control__source="dataset"))
    results = json.loads((report / "results.json").read_text())
    assert list(results["metrics"]) == ["control/loudness-v1"]
    # "jazz guitar" names nothing that it hears.
    assert [clip["caption"] for clip in results["control"]] == CAPTIONS[1:]
    with torch.no_grad():
        decoded = [world.model.decode_audio(codes[None, :, :20])[0] for codes in clips[1:]]
    for clip, audio in zip(results["control"], decoded, strict=True):
        assert clip["heard"]["codec round trip"] == LoudnessJudge().hear(audio, 320)
    assert "heard by a loudness meter" in Page((report / "report.html").read_text()).text
