"""What earlier code wrote is still read, gone on with, and means the same; `make_old_work.py` made it.

Each test works on a copy in a folder of its own, where it also stands: the assets name each other by relative paths, as
the commands of their makers did. Numbers were exact on the machine that made them; elsewhere, sums may be in another
order, for which `CLOSE` leaves room.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import hydra
import make_old_work
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

import musicgen_train
import musicgen_train.data.latent_dataset
import musicgen_train.doctor.__main__
import musicgen_train.latents.format
import musicgen_train.training.run
import musicgen_train.training.weights.merged
import musicgen_train.training.weights.model_source

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
TIMED = {"tokens_per_s", "audio_s_per_s", "data_wait", "peak_mem_mb"}
# Old configs name modules as they were called then, which is said in a line.
pytestmark = pytest.mark.filterwarnings("ignore:musicgen_train.* is now:FutureWarning")

GOLDEN: dict[str, Any] = json.loads((make_old_work.ASSETS / "golden.json").read_text())
TARGETS = (make_old_work.ASSETS / "targets.txt").read_text().split()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a copy of the assets."""
    place = tmp_path / "place"
    shutil.copytree(make_old_work.ASSETS, place)
    monkeypatch.chdir(place)
    return place


def recorded(run: str, *overrides: str) -> DictConfig:
    """A run's own config.yaml with overrides, as `--config-path RUN --config-name config` makes it."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(Path(run).absolute()), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def given_again(run: str, *overrides: str) -> DictConfig:
    """The config of the command line that the run was started with."""
    commands = {"run": [*make_old_work.WHERE, *make_old_work.HALF], "adapter_run": make_old_work.ADAPTER}
    return make_old_work.compose(*commands[run], *overrides)


def numbers_of(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [
            {name: float(value) for name, value in row.items() if value and name not in TIMED}
            for row in csv.DictReader(file)
        ]


def said_by_doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """All that it says, where nothing is wrong."""
    capsys.readouterr()
    code = musicgen_train.doctor.__main__.main(list(arguments))
    said = capsys.readouterr().out
    assert code == 0, said
    return said


@pytest.mark.parametrize("name", ["latents", "preprocessed"])
def test_latents_hold_what_they_held(name: str) -> None:
    assert make_old_work.rows_digest(Path(name)) == GOLDEN["rows"][name]
    texts = datasets.load_from_disk(f"{name}/captions")
    for split, rows in datasets.load_from_disk(name).items():
        dataset = musicgen_train.data.latent_dataset.LatentDataset(name, split)
        assert len(dataset) == len(rows) > 0
        for number, row in enumerate(rows):
            clip = dataset[number]
            assert np.array_equal(clip.codes_KT, np.frombuffer(row["codes"], "<i2").reshape(4, row["frames"]))
            found = (clip.captions, clip.track, clip.start_seconds)
            assert found == (row["captions"], row["track"], pytest.approx(row["start_seconds"]))
        for number, row in enumerate(texts):
            assert dataset.caption(number) == row["text"]
            expected = np.frombuffer(row["states"], "<f2").reshape(row["length"], make_old_work.TEXT_WIDTH)
            assert np.array_equal(dataset.states(number).numpy(), expected)


def test_latents_have_what_the_tests_of_them_need() -> None:
    captions = [
        row["captions"] for name in ("latents", "preprocessed") for row in datasets.load_from_disk(name)["train"]
    ]
    assert {0, 1, 2, 3} <= {len(rows) for rows in captions}
    assert len(list(Path("latents/train").glob("*.arrow"))) == 2
    [rejected] = Path("preprocessed", musicgen_train.latents.format.REJECTED_NAME).read_text().splitlines()
    assert json.loads(rejected).keys() == {"file", "reason"}


@pytest.mark.parametrize("name", ["latents", "preprocessed"])
def test_latents_are_sound_and_can_be_trained_on(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = said_by_doctor(capsys, "--latents", name, "--model", "composite")
    assert "4 codebooks of 16, 40 frames/s of 1600 Hz mono" in said
    where = [f"data.path={name}", "init_from=composite", "output=new"]
    made = musicgen_train.training.run.run(
        make_old_work.compose(*where, *make_old_work.QUICK, "trainer.max_steps=1", "data.cfg_dropout=0.3")
    )
    assert made.trainer.global_step == 1
    assert np.isfinite(numbers_of(Path("new/metrics.csv"))[0]["train/loss"])


def test_preprocessing_still_makes_the_same_of_the_same_audio() -> None:
    make_old_work.write_tracks(Path("tracks"))
    manifest = make_old_work.preprocess("again")
    before = json.loads(Path("preprocessed/manifest.json").read_text())
    assert manifest.counts == before["counts"]
    assert manifest.settings == before["settings"] | {"output": "again"}
    assert _values(Path("again")) == _values(Path("preprocessed"))
    # They are rounded to float16, which another order of sums may tip over.
    np.testing.assert_allclose(_states(Path("again")), _states(Path("preprocessed")), rtol=2e-3, atol=1e-3)
    rejected = (Path(name, "rejected.jsonl").read_text() for name in ("preprocessed", "again"))
    assert len(set(rejected)) == 1


def test_an_input_that_has_grown_is_added_to_old_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_old_work.write_tracks(Path("tracks"), more=1)
    Path("preprocessed.work").rename(".preprocessed.work")
    [about] = Path(".preprocessed.work").glob("*/about.json")
    # The one place where the folder has to be the same.
    about.write_text(about.read_text().replace(str(make_old_work.PLACE), str(place.resolve())))
    manifest = make_old_work.preprocess()
    # Two: the new one, and the broken one, which might be whole by now.
    assert "7 tracks were encoded by earlier runs, 2 by this one" in capsys.readouterr().out
    assert manifest.counts["tracks"] == 7
    codes = [
        {
            (split, row["track"], row["start_seconds"]): row["codes"]
            for split, rows in datasets.load_from_disk(str(folder)).items()
            for row in rows
        }
        for folder in (make_old_work.ASSETS / "preprocessed", Path("preprocessed"))
    ]
    assert {track for _, track, _ in codes[1].keys() - codes[0].keys()} == {"6.wav"}
    assert codes[1] | codes[0] == codes[1]


def _values(folder: Path) -> dict[str, Any]:
    splits = {name: part.to_list() for name, part in datasets.load_from_disk(str(folder)).items()}
    texts = datasets.load_from_disk(str(folder / "captions"))
    return {"splits": splits, "texts": list(texts["text"])}


def _states(folder: Path) -> np.ndarray:
    """The text states of all captions, one after the other."""
    rows = datasets.load_from_disk(str(folder / "captions"))["states"]
    return np.concatenate([np.frombuffer(row, "<f2") for row in rows]).astype(np.float32)


@pytest.mark.parametrize("config", [recorded, given_again])
def test_a_run_that_was_killed_goes_on_to_the_same_end(config: Any) -> None:
    before = numbers_of(Path("run/metrics.csv"))
    assert before[-1]["step"] == 6
    with Path("run/provenance.json").open() as file:
        assert len(json.load(file)["starts"]) == 1
    resumed = musicgen_train.training.run.run(config("run", "resume=auto"))
    assert resumed.trainer.global_step == 12
    expected, found = numbers_of(make_old_work.ASSETS / "metrics.csv"), numbers_of(Path("run/metrics.csv"))
    assert found[: len(before)] == before
    assert found == [pytest.approx(row, rel=CLOSE["rtol"], abs=CLOSE["atol"], nan_ok=True) for row in expected]
    weights = load_file(make_old_work.ASSETS / "weights.safetensors")
    state = resumed.module.state_dict()
    assert state.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(state[name], value, **CLOSE)
    # They are the average, which is not what was trained.
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert any(not torch.allclose(last["current_model_state"][name], value) for name, value in weights.items())
    assert make_old_work.codes_of_model("run") == GOLDEN["codes"]["run"]
    assert "trained for 12 steps" in Path("run/composite/README.md").read_text()
    with Path("run/provenance.json").open() as file:
        assert [start["outcome"] for start in json.load(file)["starts"]] == ["KilledError: ", "finished"]


def test_an_adapter_that_was_stopped_early_ends_again_or_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    rows = numbers_of(Path("adapter_run/metrics.csv"))
    again = musicgen_train.training.run.run(recorded("adapter_run", "resume=auto"))
    assert again.trainer.global_step == GOLDEN["adapter_steps"]
    assert numbers_of(Path("adapter_run/metrics.csv")) == rows
    assert make_old_work.codes_of_model("adapter_run") == GOLDEN["codes"]["adapter_run"]
    longer = ["callbacks.early_stopping.patience=9", f"trainer.max_steps={GOLDEN['adapter_steps'] + 1}"]
    musicgen_train.training.run.run(recorded("adapter_run", "resume=auto", *longer))
    assert max(row["step"] for row in numbers_of(Path("adapter_run/metrics.csv"))) == GOLDEN["adapter_steps"] + 1


def test_doctor_knows_old_runs(capsys: pytest.CaptureFixture[str]) -> None:
    said = said_by_doctor(capsys, "--run", "run")
    assert "last.ckpt is intact: step 6 of 12" in said
    assert "can go on: the same command with resume=auto" in said
    # What has ended it is a callback that is known by the name in the old config.
    said = said_by_doctor(capsys, "--run", "adapter_run")
    assert "stopped early; its model is adapter_run/composite" in said


def test_models_are_found_and_make_the_same_music() -> None:
    find, source = (
        musicgen_train.training.weights.model_source.find_model,
        musicgen_train.training.weights.model_source.ModelSource,
    )
    assert find("composite", "model") == source(folder="composite")
    assert find("run", "model") == source(checkpoint=Path("run/checkpoints/last.ckpt"), run=Path("run"))
    assert find("adapter_run", "model") == source(folder="adapter_run/composite", run=Path("adapter_run"))
    assert find("adapter_run/adapter", "model") == source(adapter=Path("adapter_run/adapter"), run=Path("adapter_run"))
    of_checkpoint = find("adapter_run/checkpoints/last.ckpt", "model")
    assert of_checkpoint.checkpoint == Path("adapter_run/checkpoints/last.ckpt")
    assert of_checkpoint.metrics == Path("adapter_run/metrics.csv")

    codes = GOLDEN["codes"]
    for name, expected in {
        "composite": codes["composite"],
        "run": codes["half"],
        "run/checkpoints/last.ckpt": codes["half"],
        "adapter_run": codes["adapter_run"],
        "adapter_run/adapter": codes["adapter_run/adapter"],
        "adapter_run/checkpoints/last.ckpt": codes["adapter_run/adapter"],
    }.items():
        assert make_old_work.codes_of_model(name) == expected, name
    assert len({json.dumps(each) for each in codes.values()}) == 4  # the adapter and what it was merged into agree


def test_the_adapter_is_loaded_onto_its_base() -> None:
    merged = musicgen_train.training.weights.merged.load_adapted("adapter_run/adapter", base="composite")
    exported = musicgen_train.MusicgenForConditionalGeneration.from_pretrained("adapter_run/composite")
    for name, value in exported.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, **CLOSE)
    assert make_old_work.greedy_codes(merged, Path("adapter_run/composite")) == GOLDEN["codes"]["adapter_run/adapter"]


@pytest.mark.parametrize("name", ["run", "adapter_run", "adapter_run/adapter", "adapter_run/checkpoints/best.ckpt"])
def test_a_new_run_begins_from_old_work(name: str) -> None:
    where = ["data.path=preprocessed", f"init_from={name}", "output=new"]
    made = musicgen_train.training.run.run(
        make_old_work.compose(*where, *make_old_work.QUICK, "trainer.max_steps=1", "optimizer.lr=0")
    )
    untrained = {"adapter_run/checkpoints/best.ckpt": None, "run": GOLDEN["codes"]["half"]}
    expected = untrained.get(name, GOLDEN["codes"]["adapter_run"])
    assert expected is None or make_old_work.codes_of_model(str(made.composite)) == expected


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_that_configs_have_named_is_still_there(target: str) -> None:
    assert callable(hydra.utils.get_object(target))


def test_the_targets_are_those_of_recorded_configs_too() -> None:
    named = {
        line.split(":")[1].strip()
        for run in ("run", "adapter_run")
        for line in Path(run, "config.yaml").read_text().splitlines()
        if line.strip().startswith("_target_:")
    }
    assert named <= set(TARGETS)
    assert {target for target in named if target.startswith("musicgen_train.")} == {
        "musicgen_train.training.early_stopping.EarlyStopping",
        "musicgen_train.training.ema.EMA",
        "musicgen_train.training.last_checkpoint.LastCheckpoint",
        "musicgen_train.training.optimizers.adamw",
    }
    # And of what no quick run here makes, the settings are still taken.
    bar = {"_target_": "musicgen_train.training.progress_bar.ProgressBar", "refresh_rate": 1}
    hydra.utils.instantiate(OmegaConf.create(bar))
