"""The whole stage: what the command writes, and what it refuses."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from reports import Page, config
from tiny import STEREO
from tiny_world import CAPTIONS, FRAMES, World, make_composite, save_composite, save_dataset

from musicgen_train import MusicgenForConditionalGeneration, MusicgenProcessor
from musicgen_train.audio.io import write_audio
from musicgen_train.evaluation.run import run
from musicgen_train.evaluation.tables import frechet_table
from musicgen_train.metrics.embedders import LogMelStatistics
from musicgen_train.metrics.signal_statistics import measure_signal

ROOT = Path(__file__).parents[2]
PROMPTS = ["jazz guitar", "", '<script>alert("x")</script> & drums']


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an evaluation with everything: prompts, rows, continuations, unconditional samples, two scales."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    run_folder = folder / "run"
    (run_folder / "checkpoints").mkdir(parents=True)
    (run_folder / "composite").symlink_to(world.composite)
    rows = [f"{step},{5 - step / 10},{4 - step / 10},1e-3" for step in range(1, 20)]
    (run_folder / "metrics.csv").write_text("\n".join(["step,train/loss,train/ce_q1,lr", *rows]) + "\n")
    write_audio(folder / "start.wav", 0.3 * torch.sin(torch.arange(400) / 2)[None], 320)
    return run(
        config(
            model=str(run_folder),
            output=str(folder / "report"),
            prompts=str(folder / "prompts.txt"),
            unconditional=1,
            guidance_scale=[1.0, 3.0],
            data__path=str(world.latents),
            data__rows=2,
            continuation__rows=1,
            continuation__audio=str(folder / "start.wav"),
            continuation__seconds=0.25,
            batch_size=3,
        )
    )


def results_of(report: Path) -> dict[str, Any]:
    return json.loads((report / "results.json").read_text())


def test_files(report: Path) -> None:
    files = sorted(path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file())
    assert files == [
        "001-jazz-guitar-g1.wav",
        "001-jazz-guitar-g3.wav",
        "002-unconditional.wav",
        "003-script-alert-x-script-drums-g1.wav",
        "003-script-alert-x-script-drums-g3.wav",
        "continuations/001-jazz-guitar-g1.wav",
        "continuations/001-jazz-guitar-g3.wav",
        "continuations/002-start.wav",
        "continuations/references/001-jazz-guitar.wav",
        "dataset/001-jazz-guitar-g1.wav",
        "dataset/001-jazz-guitar-g3.wav",
        "dataset/002-track-2.wav",
        "dataset/references/001-jazz-guitar.wav",
        "dataset/references/002-track-2.wav",
        "provenance.json",
        "report.html",
        "results.json",
        "unconditional/001-unconditional.wav",
    ]
    assert sorted(path.name for path in report.parent.iterdir()) == ["prompts.txt", "report", "run", "start.wav"]


def test_samples(world: World, report: Path) -> None:
    results = results_of(report)
    assert [sample["kind"] for sample in results["samples"]] == [
        *["prompt"] * 5, "unconditional", *["dataset"] * 3, *["continuation"] * 3,
    ]  # fmt: skip
    for sample in results["samples"]:
        audio, rate = soundfile.read(report / sample["audio"]["file"])
        assert rate == 320
        # 0.5 s are 20 frames of 8 samples, and 0.25 s more where audio is continued.
        assert len(audio) == (240 if sample["kind"] == "continuation" else 160)
        assert sample["audio"]["seconds"] == len(audio) / rate
        assert np.abs(audio).max() <= 1
        assert sample["prompt_seconds"] == (0.25 if sample["kind"] == "continuation" else 0)
    assert [sample["text"] for sample in results["samples"]][:5] == [*PROMPTS[:1] * 2, "", *PROMPTS[2:] * 2]
    assert results["samples"][6]["origin"] == {
        "split": "validation", "row": 0, "track": "folder/track 0.wav", "start_seconds": 0.0, "caption": 0,
    }  # fmt: skip


def test_a_sample_can_be_made_again_from_its_record(world: World, report: Path) -> None:
    sample = results_of(report)["samples"][1]
    model = MusicgenForConditionalGeneration.from_pretrained(world.composite)
    inputs = MusicgenProcessor.from_pretrained(world.composite)(text=[sample["text"]], return_tensors="pt")
    audio = model.generate(
        **inputs,
        generator=torch.Generator().manual_seed(sample["seed"]),
        guidance_scale=sample["guidance_scale"],
        max_new_tokens=23,
    )
    assert isinstance(audio, torch.Tensor)
    written, _ = soundfile.read(report / sample["audio"]["file"])
    gain = 10 ** (sample["audio"]["gain_db"] / 20)
    np.testing.assert_allclose(written, gain * audio[0, 0].numpy(), atol=1e-4)


def test_references_are_the_stored_codes_decoded(world: World, report: Path) -> None:
    sample = results_of(report)["samples"][8]
    assert sample["origin"]["row"] == 2
    with torch.no_grad():
        expected = world.model.decode_audio(world.clips[2][None])[0, 0]
    written, _ = soundfile.read(report / sample["reference"]["file"])
    assert len(written) == FRAMES[2] * 8
    gain = 10 ** (sample["reference"]["gain_db"] / 20)
    np.testing.assert_allclose(written, gain * expected.numpy(), atol=1e-4)
    measured, found = measure_signal(expected[None], 320, world.clips[2], 40), sample["reference"]["signal"]
    for name in ("peak_dbfs", "rms_dbfs", "centroid_hz", "held_share"):
        assert found[name] == pytest.approx(getattr(measured, name), rel=1e-3), name


def test_what_is_recorded(world: World, report: Path) -> None:
    results = results_of(report)
    assert results["program"] == "musicgen_train.evaluation"
    assert results["config"]["data"]["rows"] == 2
    assert results["seed"] == 0
    assert results["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert results["data"]["audio_encoder"]["fingerprint"] == results["model"]["audio_encoder_fingerprint"]
    assert results["sampling"]["guidance_scale"] == [1.0, 3.0]
    # 12 samples of 20 new frames, 40 a second.
    assert results["sampling"]["audio_seconds"] == pytest.approx(6.0)
    rows = results["metrics"]["cross_entropy"]["rows"]
    assert rows["ln(64)"]["mean"] == pytest.approx(math.log(64))
    assert set(results["metrics"]) == {"cross_entropy", "frechet_audio_distance/log-mel-statistics-v1", "signal"}
    distances = results["metrics"]["frechet_audio_distance/log-mel-statistics-v1"]["rows"]
    assert sorted(distances) == [
        "generated, guidance 1", "generated, guidance 3", "generated, no text", "other half of the reference",
        "silence", "white noise",
    ]  # fmt: skip


def test_the_page_holds_everything(report: Path) -> None:
    text = (report / "report.html").read_text()
    page, results = Page(text), results_of(report)
    records = [sample["audio"] for sample in results["samples"]]
    references = {
        sample["reference"]["file"]: sample["reference"] for sample in results["samples"] if sample["reference"]
    }
    players = page.all("audio")
    assert len(players) == len(records) + len(references) == 15
    held = {base64.b64decode(player["src"].removeprefix("data:audio/wav;base64,")) for player in players}
    assert held == {path.read_bytes() for path in report.rglob("*.wav")}
    assert len(page.all("img")) == 15
    assert all(image["alt"].startswith("Mel spectrogram of ") for image in page.all("img"))
    assert all(base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG") for image in page.all("img"))
    assert all(player["aria-label"] for player in players)
    for prompt in (PROMPTS[0], PROMPTS[2], *CAPTIONS[:1]):
        assert prompt in page.text
    assert "no text (null condition)" in page.text
    assert not page.all("script")
    assert [chart["aria-label"].partition(" over")[0] for chart in page.all("svg")] == [
        "Loss", "Cross-entropy per codebook, training", "Learning rate",
    ]  # fmt: skip
    anchors = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    local = [link["href"] for link in page.all("a")]
    assert all(href[1:] in anchors if href.startswith("#") else (report / href).is_file() for href in local)
    fetched = re.findall(r'(?:src|href)="?([^">]*)', text)
    assert not [address for address in fetched if address.startswith(("http", "//"))]


def test_large_reports_link_their_audio(world: World, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("drums\n")
    made = run(
        config(
            model=str(world.composite),
            output=str(tmp_path / "report"),
            prompts=str(tmp_path / "prompts.txt"),
            report__embed_megabytes=0.0001,
            audio_format="flac",
        )
    )
    (player,) = Page((made / "report.html").read_text()).all("audio")
    assert player["src"] == "001-drums.flac"
    assert len(soundfile.read(made / player["src"])[0]) == 160
    assert results_of(made)["data"] is None


def test_a_silent_sample_is_flagged(world: World, tmp_path: Path) -> None:
    model = make_composite()
    with torch.no_grad():
        for name, parameter in model.audio_encoder.decoder.named_parameters():
            if "bias" in name or "original0" in name:
                parameter.zero_()
    composite = save_composite(model, tmp_path / "silent")
    made = run(config(model=str(composite), output=str(tmp_path / "report"), unconditional=1))
    results = results_of(made)
    assert results["samples"][0]["audio"]["warnings"] == ["This sample is silent."]
    assert results["warnings"] == ["unconditional/001-unconditional.wav: This sample is silent."]
    assert "1 of 1 samples need a look" in Page((made / "report.html").read_text()).text


def test_a_loud_sample_is_turned_down_and_measured_as_it_was(world: World, tmp_path: Path) -> None:
    model = make_composite()
    with torch.no_grad():
        gains = [p for name, p in model.audio_encoder.decoder.named_parameters() if name.endswith("original0")]
        gains[-1].mul_(500)
    composite = save_composite(model, tmp_path / "loud")
    latents = save_dataset(model, composite, tmp_path / "latents", world.clips, world.captions)
    output = tmp_path / "report"
    made = run(config(model=str(composite), output=str(output), unconditional=2, data__path=str(latents), data__rows=0))
    results = results_of(made)
    clips = []
    for sample in results["samples"]:
        assert sample["audio"]["gain_db"] < -1
        assert sample["audio"]["gain_db"] == pytest.approx(-sample["audio"]["signal"]["peak_dbfs"], abs=1e-3)
        assert "exceeded full scale" in " ".join(sample["audio"]["warnings"])
        written, _ = soundfile.read(made / sample["audio"]["file"])
        assert 0.99 < np.abs(written).max() <= 32767 / 32768
        codes = model.decoder.generate(generator=torch.Generator().manual_seed(sample["seed"]), max_new_tokens=23)
        assert isinstance(codes, torch.Tensor)
        clips.append(model.decode_audio(codes)[0].detach())
    reference = [model.decode_audio(codes[None, :, :20])[0].detach() for codes in world.clips]
    table = frechet_table(LogMelStatistics(), reference, {"by hand": clips}, 320, "")
    rows = results["metrics"][table.key]["rows"]
    assert rows["generated, no text"]["distance"] == pytest.approx(table.rows[0].values["distance"], rel=1e-2)


def test_stereo_in_half_precision(world: World, tmp_path: Path) -> None:
    model = make_composite(**STEREO)
    composite = save_composite(model, tmp_path / "stereo")
    clips = [torch.cat([codes, codes.flip(0)]) for codes in world.clips]
    latents = save_dataset(model, composite, tmp_path / "latents", clips, world.captions)
    write_audio(tmp_path / "start.wav", 0.1 * torch.randn(1, 300), 320)
    made = run(
        config(
            model=str(composite),
            output=str(tmp_path / "report"),
            dtype="bfloat16",
            data__path=str(latents),
            continuation__audio=str(tmp_path / "start.wav"),
            continuation__seconds=0.3,
        )
    )
    shapes = {path.parent.name: soundfile.read(path)[0].shape for path in made.rglob("*.wav")}
    # Clips are cut to the 20 frames that are generated; the third of them has 17.
    assert shapes == {"dataset": (160, 2), "references": shapes["references"], "continuations": (256, 2)}
    assert shapes["references"][1] == 2
    scores = results_of(made)["metrics"]["cross_entropy"]["rows"]
    assert "codebook 8" in scores["perplexity"]


def test_metrics_without_samples(world: World, tmp_path: Path) -> None:
    made = run(
        config(
            model=str(world.composite),
            output=str(tmp_path / "report"),
            data__path=str(world.latents),
            data__rows=0,
            metrics__frechet=False,
            metrics__max_clips=2,
        )
    )
    results = results_of(made)
    assert results["samples"] == []
    assert list(results["metrics"]) == ["cross_entropy"]
    assert "Over 2 clips" in results["metrics"]["cross_entropy"]["explanation"]
    assert results["sampling"]["real_time_factor"] is None
    Page((made / "report.html").read_text())


def test_real_recordings_as_reference(world: World, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for number in range(3):
        write_audio(tmp_path / "real" / f"{number}.wav", 0.1 * torch.randn(1, 500), 640)
    made = run(
        config(
            model=str(world.composite),
            output=str(tmp_path / "report"),
            unconditional=2,
            metrics__reference_audio=str(tmp_path / "real"),
        )
    )
    rows = results_of(made)["metrics"]["frechet_audio_distance/log-mel-statistics-v1"]["rows"]
    assert set(rows) == {"generated, no text", "codec round trip", "silence", "white noise"}
    assert rows["codec round trip"]["windows"] == 3


def test_a_recording_that_cannot_be_read_is_named_before_anything_is_sampled(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgen_train.evaluation.run.generate", None)
    (tmp_path / "real").mkdir()
    write_audio(tmp_path / "real" / "0.wav", 0.1 * torch.randn(1, 500), 640)
    (tmp_path / "real" / "1.wav").write_bytes(b"RIFF of nothing")
    reference = str(tmp_path / "real")
    with pytest.raises(
        ValueError, match=r"^metrics\.reference_audio: .*/1\.wav cannot be compared with: .*; remove or"
    ):
        refused(world, tmp_path, metrics__reference_audio=reference)
    assert not (tmp_path / "report").exists()
    # As many as are asked for are read, and none where there is nothing to compare.
    monkeypatch.undo()
    (tmp_path / "real" / "2.wav").write_bytes((tmp_path / "real" / "0.wav").read_bytes())
    (tmp_path / "real" / "1.wav").rename(tmp_path / "real" / "3.wav")
    refused(world, tmp_path, metrics__reference_audio=reference, metrics__reference_clips=2)
    refused(world, tmp_path, metrics__reference_audio=reference, metrics__frechet=False, overwrite=True)


def refused(world: World, tmp_path: Path, **overrides: Any) -> None:
    given = {"model": str(world.composite), "output": str(tmp_path / "report"), "unconditional": 1, **overrides}
    run(config(**given))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"unconditional": 0}, "there is nothing to do: give prompts=FILE"),
        ({"unconditional": -1}, "unconditional is -1; it must be 0 or more"),
        ({"unconditional": "many"}, "unconditional is 'many'; expected a whole number"),
        ({"seed": None}, "seed is null; expected a whole number"),
        ({"guidance_scale": [3, "high"]}, r"guidance_scale\[1\] is 'high'; expected a number"),
        ({"overwrite": "maybe"}, "overwrite is 'maybe'; expected true or false"),
        ({"temperature": 0}, "temperature is 0"),
        ({"prompts": "missing.txt"}, r"prompts=missing\.txt is no file"),
        ({"data__path": "missing"}, "missing is no latent dataset"),
        ({"duration": 0}, "duration is 0.0; it must be above 0 seconds"),
        ({"duration": 40}, "Pass extend_stride="),
        ({"continuation__rows": 1}, r"continuation\.rows are rows of a dataset"),
        ({"continuation__audio": "missing.wav"}, "neither an audio file nor a folder"),
        ({"audio_format": "mp3"}, "audio_format is 'mp3'; expected one of wav, flac"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of float32"),
        ({"device": "tpu9"}, "device is 'tpu9'; allowed are auto"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which torch does not find on this machine; there is "),
        ({"metrics__embedder": "vggish"}, "there is no embedder 'vggish'"),
        ({"metrics__reference_clips": 1}, r"metrics\.reference_clips is 1; it must be 2 or more"),
    ],
)
def test_what_is_refused(world: World, tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        refused(world, tmp_path, **overrides)
    assert list(tmp_path.iterdir()) == []


def test_encoders_of_another_dataset(world: World, tmp_path: Path) -> None:
    composite = save_composite(make_composite(seed=3), tmp_path / "other")
    with pytest.raises(ValueError, match="made with other encoders than the model has: its text encoder was"):
        refused(world, tmp_path, model=str(composite), data__path=str(world.latents))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_command(world: World, tmp_path: Path) -> None:
    """As the README writes it, and once more with the output taken."""
    (tmp_path / "prompts.txt").write_text("lofi\n\n")
    command = [
        sys.executable, "scripts/evaluate.py", f"model={world.composite}", f"output={tmp_path / 'report'}",
        f"prompts={tmp_path / 'prompts.txt'}", f"data.path={world.latents}", "max_new_tokens=13", "seed=0",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Report: {tmp_path / 'report' / 'report.html'}" in done.stdout
    assert sorted(path.name for path in (tmp_path / "report").glob("*.wav")) == [
        "001-lofi.wav",
        "002-unconditional.wav",
    ]
    assert len(soundfile.read(tmp_path / "report" / "001-lofi.wav")[0]) == 10 * 8
    assert "hydra" not in results_of(tmp_path / "report")["command"]
    with pytest.raises(FileExistsError, match="already holds a report; give another folder, or overwrite=true"):
        refused(world, tmp_path)
