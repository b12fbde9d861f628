"""The control test within the whole stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from reports import Page, config
from tiny_world import CAPTIONS, World, save_dataset

from musicgen_train.audio.io import resample
from musicgen_train.demo import make_track
from musicgen_train.demo.hearing import Hearing, requested
from musicgen_train.evaluation.run import run

SEED = 9_000_001


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("control") / "report"
    return run(
        config(
            model=str(world.composite),
            output=str(output),
            duration=2.5,
            control__clips=3,
            control__guidance_scale=[1, 3],
        )
    )


def results_of(report: Path) -> dict[str, Any]:
    return json.loads((report / "results.json").read_text())


def test_clips_are_those_of_the_corpus(report: Path) -> None:
    clips = results_of(report)["control"]
    assert len(clips) == 3
    hearing = Hearing.load()
    for index, clip in enumerate(clips):
        track = make_track(SEED, index, 2.5)
        assert clip["caption"] == track.description
        assert clip["asked"] == requested(track.description)
        assert sorted(clip["heard"]) == ["codec round trip", "guidance 1", "guidance 3", "recordings"]
        # The tiny codec works at 320 Hz.
        audio = resample(torch.from_numpy(track.audio), 32_000, 320)
        assert clip["heard"]["recordings"] == hearing.hear(audio, 320)


def test_samples_are_kept_and_heard_as_they_are(report: Path) -> None:
    hearing = Hearing.load()
    for clip in results_of(report)["control"]:
        assert sorted(clip["files"]) == ["guidance 1", "guidance 3"]
        for name, file in clip["files"].items():
            assert file.startswith("control/")
            samples, rate = soundfile.read(report / file, dtype="float32", always_2d=True)
            assert len(samples) == 2.5 * rate
            heard = hearing.hear(torch.from_numpy(samples.T), rate)
            # Turned down where it would clip, which the level alone tells.
            heard.pop("energy", None)
            found = {key: value for key, value in clip["heard"][name].items() if key != "energy"}
            assert heard == found


def test_table_and_page(report: Path) -> None:
    results = results_of(report)
    table = results["metrics"]["control/v1"]
    assert table["rows"]["tempo"]["asked"] == 3
    assert 0 <= table["rows"]["all"]["guidance 3, other captions"] <= 1
    assert set(table["intervals"]["all"]) == {"recordings", "codec round trip", "guidance 1", "guidance 3"}
    assert results["sampling"]["audio_seconds"] == 0  # of the samples to listen to
    page = Page((report / "report.html").read_text())
    assert "Control by text" in page.text
    assert "in place of" in page.text
    assert {link["href"] for link in page.all("a")} >= {
        file for clip in results["control"] for file in clip["files"].values()
    }
    bars = [cell for cell in page.all("td") if cell.get("class") == "bar"]
    assert bars
    assert all(cell["style"].startswith("--share:") for cell in bars)


def test_clips_of_a_dataset(world: World, tmp_path: Path) -> None:
    clips = [torch.randint(64, (4, 90), generator=torch.Generator().manual_seed(n)) for n in range(4)]
    # One without a caption, and one that is too short.
    clips.append(clips[0][:, :60])
    captions: list[list[int]] = [[0], [1], [], [2], [1]]
    latents = save_dataset(world.model, world.composite, tmp_path / "latents", clips, captions)
    report = run(
        config(
            model=str(world.composite),
            output=str(tmp_path / "report"),
            data__path=str(latents),
            data__rows=0,
            metrics__frechet=False,
            duration=2.0,
            control__clips=5,
            control__source="dataset",
        )
    )
    results = results_of(report)
    assert [clip["caption"] for clip in results["control"]] == CAPTIONS
    assert [clip["asked"]["style"] for clip in results["control"][:2]] == ["jazz", "lo-fi"]
    hearing = Hearing.load()
    with torch.no_grad():
        decoded = [world.model.decode_audio(clips[row][None, :, :80])[0] for row in (0, 1, 3)]
    for clip, audio in zip(results["control"], decoded, strict=True):
        assert clip["heard"]["codec round trip"] == hearing.hear(audio, 320)
        assert sorted(clip["heard"]) == ["codec round trip", "guidance 3"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control__clips": 1}, "control.clips is 1; it must be 0, or 2 or more"),
        ({"control__clips": -1}, "control.clips is -1; it must be 0 or more"),
        ({"control__clips": 4, "control__source": "files"}, "control.source is 'files'; expected one of demo, dataset"),
        ({"control__clips": 4, "control__source": "dataset"}, "give data.path too"),
        ({"control__clips": 4, "duration": 1.0}, "samples of 1.00 s are too short for the control test"),
        ({"control__clips": 4, "duration": 2.5, "control__guidance_scale": 0.5}, "give numbers from 1"),
    ],
)
def test_what_is_refused_before_anything_is_generated(
    world: World, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(config(model=str(world.composite), output=str(tmp_path / "report"), **settings))
    assert not (tmp_path / "report").exists()


def test_captions_that_name_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Said before samples are made.
    monkeypatch.setattr("musicgen_train.evaluation.run.generate", None)
    with pytest.raises(ValueError, match=r"only 0 of 5 clips of the split validation last 2 s"):
        run(
            config(
                model=str(world.composite),
                output=str(tmp_path / "report"),
                data__path=str(world.latents),
                duration=2.0,
                control__clips=5,
                control__source="dataset",
            )
        )
