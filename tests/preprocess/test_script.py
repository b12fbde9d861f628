"""`scripts/preprocess.py` as users run it: exit codes, errors in one line, and nothing written after a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from audio_corpus import write_track
from hydra import compose, initialize_config_dir
from omegaconf import MissingMandatoryValue, OmegaConf

from musicgen_train.preprocess.entry import run
from musicgen_train.preprocess.settings import PreprocessSettings

ROOT = Path(__file__).parents[2]


def script(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "preprocess.py"), *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)


def composed(*overrides: str) -> dict[str, object]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        values = OmegaConf.to_container(compose("preprocess", list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def test_the_config_file_holds_the_defaults() -> None:
    given = {"input": "a", "output": "b", "encoders": "c"}
    file = PreprocessSettings.from_dict(composed(*(f"{name}={value}" for name, value in given.items())))
    assert file == PreprocessSettings(**given)
    assert file.to_dict().keys() == composed("input=a", "output=b").keys()


def test_the_command_of_the_contract(tmp_path: Path, encoders_folder: Path) -> None:
    write_track(tmp_path / "songs" / "a.wav", 2.4, caption="jazz guitar")
    write_track(tmp_path / "songs" / "b.wav", 2.4, caption="lofi beat")
    (tmp_path / "songs" / "bad.wav").touch()
    done = script(
        "input=songs",
        "output=latents",
        f"encoders={encoders_folder}",
        "clip_seconds=1",
        "dry_run=false",
        where=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".latents.work", "latents", "songs"]
    made = datasets.load_from_disk(str(tmp_path / "latents"))
    assert {split: part.num_rows for split, part in made.items()} == {"train": 2, "validation": 2}
    assert json.loads((tmp_path / "latents" / "rejected.jsonl").read_text()) == {
        "file": "bad.wav",
        "reason": "the file is empty",
    }
    assert "wrote latents" in done.stdout
    assert "3 files: 2 used, 1 rejected" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["input=nowhere"], "input nowhere does not exist"),
        (["input=songs", "encoders=songs"], "config.json"),
        (["input=songs", "clip_secs=3"], "clip_seconds"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    tmp_path: Path, encoders_folder: Path, overrides: list[str], expected: str
) -> None:
    write_track(tmp_path / "songs" / "a.wav", 0.5)
    given = (
        overrides
        if any(each.startswith("encoders=") for each in overrides)
        else [*overrides, f"encoders={encoders_folder}"]
    )
    done = script(*given, "output=latents", where=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["songs"]


def test_missing_settings_are_named_in_python_too() -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("preprocess", ["output=b"])
    with pytest.raises(MissingMandatoryValue, match="input"):
        run(config)


def test_processes_begin_before_the_stage_is_imported(tmp_path: Path) -> None:
    # The processes and the stage both take seconds to import what they need, and should do so at the same time.
    code = (
        "import sys; from omegaconf import OmegaConf; from musicgen_train.preprocess import entry; "
        "entry.prepare_processes = lambda: print([name for name in ('torch', 'datasets') if name in sys.modules]); "
        f"config = OmegaConf.load('configs/preprocess.yaml'); config.input = config.output = {str(tmp_path)!r}; "
        "config.encoders = 'none'; config.workers = {workers}; entry.begin(config); print('done')"
    )
    for workers, expected in ((2, "[]\ndone"), (0, "done")):
        command = [sys.executable, "-c", code.format(workers=workers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.strip() == expected
