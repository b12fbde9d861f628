"""What is said of latents, runs and models, whole and broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_latents import ClipSpec, write_latents

from musicgen_train.doctor.__main__ import main
from musicgen_train.doctor.findings import Finding, Status, guarded
from musicgen_train.doctor.hub_folder import look_at_model
from musicgen_train.doctor.latent_folder import look_at_latents
from musicgen_train.doctor.run_state import look_at_run


def of_latents(folder: Path) -> list[Finding]:
    return list(guarded("latents", lambda: look_at_latents(folder)))


def of_run(folder: Path) -> list[Finding]:
    return list(guarded("run", lambda: look_at_run(folder)))


def of_model(folder: Path, latents: Path | None = None) -> list[Finding]:
    return list(guarded("model", lambda: look_at_model(folder, latents)))


def all_of(findings: list[Finding]) -> str:
    return "\n".join(f"{finding.status}: {finding.what}" for finding in findings)


def what_is_wrong(findings: list[Finding]) -> str:
    [found] = [finding.what for finding in findings if finding.status == Status.WRONG]
    return found


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_everything_is_fine(
    latents: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--latents", latents, "--run", finished_run, "--model", finished_run / "composite", "--output", tmp_path]
    assert main([*map(str, given), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"latents", "run", "model"} <= {finding["topic"] for finding in content["findings"]}


def test_sound_latents(latents: Path) -> None:
    found = of_latents(latents)
    assert all(finding.status == Status.OK for finding in found)
    assert f"{latents}: 4 codebooks of 64, 40 frames/s of 320 Hz mono" in found[0].what
    assert "train: 11 clips" in all_of(found)
    assert "validation: 3 clips" in all_of(found)


def test_latents_that_are_not_there() -> None:
    assert "none is no latent dataset: it has no manifest.json" in what_is_wrong(of_latents(Path("none")))


def test_a_shard_that_was_cut_short(latents: Path, tmp_path: Path) -> None:
    folder = copy_of(latents, tmp_path / "latents")
    [file] = (folder / "train").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:200])
    assert "is damaged: train/ cannot be read" in what_is_wrong(of_latents(folder))


def test_codes_that_are_out_of_range(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, [ClipSpec(20)], [ClipSpec(9)], codebook_size=16)
    assert "row 0 has codes from" in what_is_wrong(of_latents(folder))


def test_a_manifest_that_says_other_hours(latents: Path, tmp_path: Path) -> None:
    folder = copy_of(latents, tmp_path / "latents")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["hours"] = 2.0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "the manifest says 2.0000" in what_is_wrong(of_latents(folder))


def test_captions_that_point_nowhere(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, [ClipSpec(20, (7,))], [ClipSpec(9)])
    assert what_is_wrong(of_latents(folder)) == "train: row 0 has caption 7 of 2"


def test_latents_without_captions_and_validation_are_noted(composite: Path, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", composite, [ClipSpec(20, ())] * 3)
    notes = [finding.what for finding in of_latents(folder) if finding.status == Status.NOTE]
    assert notes == ["no validation split: overfitting will not be seen", "train: 3 of 3 have no caption"]


def test_a_finished_run(finished_run: Path) -> None:
    found = all_of(of_run(finished_run))
    assert "wrong" not in found
    assert "started 1 time(s)" in found
    assert "from step 0, finished" in found
    assert "last.ckpt is intact: step 4 of 4" in found
    assert f"finished; its model is {finished_run / 'composite'}" in found
    assert "metrics.csv goes to step 4: train/loss " in found


def test_a_run_that_can_go_on(finished_run: Path, tmp_path: Path) -> None:
    folder = copy_of(finished_run, tmp_path / "run")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("max_steps: 4", "max_steps: 9"))
    assert "can go on: the same command with resume=auto" in all_of(of_run(folder))
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["musicgen_train"]["health"]["skipped"] = 3
    torch.save(checkpoint, folder / "checkpoints/last.ckpt")
    assert "note: 3 steps were left out because they were not finite" in all_of(of_run(folder))


def test_a_run_whose_checkpoint_is_cut_short(finished_run: Path, tmp_path: Path) -> None:
    folder = copy_of(finished_run, tmp_path / "run")
    for path in (folder / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-4000])
    found = all_of(of_run(folder))
    assert "last.ckpt is cut short, or no checkpoint at all" in found
    assert "wrong: no checkpoint can be read: nothing to go on from" in found


def test_a_run_whose_data_has_changed(finished_run: Path, composite: Path, tmp_path: Path) -> None:
    folder = copy_of(finished_run, tmp_path / "run")
    other = write_latents(tmp_path / "other", composite, [ClipSpec(20)] * 11)
    config = (folder / "config.yaml").read_text()
    path = next(line for line in config.splitlines() if line.startswith("  path: "))
    (folder / "config.yaml").write_text(config.replace(path, f"  path: {other}"))
    assert f"{other} is no longer what it was trained on" in what_is_wrong(of_run(folder))
    (folder / "config.yaml").write_text(config.replace(path, f"  path: {tmp_path}/gone"))
    assert "its data cannot be read: " in what_is_wrong(of_run(folder))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert "is no folder of scripts/train.py" in what_is_wrong(of_run(tmp_path))


def test_a_sound_model_that_goes_with_its_latents(composite: Path, latents: Path) -> None:
    found = of_model(composite, latents)
    assert all(finding.status == Status.OK for finding in found)
    assert "parameters, all there; decoder 2 layers of 20, 4 codebooks, mono" in all_of(found)
    assert f"its audio encoder is the one that {latents} was made with" in all_of(found)


def test_a_model_that_lacks_tensors(composite: Path, tmp_path: Path) -> None:
    folder = copy_of(composite, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["decoder.lm_heads.2.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lm_heads.2.weight" in what_is_wrong(of_model(folder))


def test_a_model_that_was_cut_short(composite: Path, tmp_path: Path) -> None:
    folder = copy_of(composite, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "it is damaged or cut short" in what_is_wrong(of_model(folder))


def test_a_model_with_other_encoders_than_the_latents(composite: Path, latents: Path, tmp_path: Path) -> None:
    folder = copy_of(composite, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.startswith("audio_encoder.") and name.endswith("embed"))
    state[name] = state[name] + torch.from_numpy(np.float32(1).reshape(1))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    found = of_model(folder, latents)
    assert what_is_wrong(found).startswith("its audio encoder (")
    assert f"its text encoder is the one that {latents} was made with" in all_of(found)


def test_a_model_that_is_not_there() -> None:
    assert what_is_wrong(of_model(Path("facebook/musicgen-small"))) == "facebook/musicgen-small is no folder"
