"""The recipe of the model that ships: its commands compose, start from earlier results, and stop at a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import encoder_training
import pytest
import recipe
import shipping
from omegaconf import OmegaConf
from tiny_latents import write_composite, write_latents
from tiny_run import TRAIN, VALIDATION, compose

from musicgen_train.demo import corpus
from musicgen_train.demo.__main__ import main as demo
from musicgen_train.launch import CONFIG_FOLDER
from musicgen_train.training.run import run
from musicgen_train.training.settings import read_settings

FOLDER = recipe.PROJECT / "scripts/demo_model"
STAGES = list(recipe.recipe("OUT"))
COMMANDS = [stage.command for stage in STAGES]
TRAINING = [command for command in COMMANDS if command[0] == "scripts/train.py"]


def of(command: list[str], key: str) -> str:
    """The value of `key=value` in a command."""
    [value] = [argument.removeprefix(f"{key}=") for argument in command if argument.startswith(f"{key}=")]
    return value


@pytest.mark.parametrize("command", TRAINING, ids=lambda command: of(command, "output"))
def test_every_training_composes_into_settings(command: list[str]) -> None:
    assert command[-2:] == ["--config-dir", "scripts/demo_model"]
    config = compose("train", f"hydra.searchpath=[file://{FOLDER}]", *command[1:-2])
    assert OmegaConf.missing_keys(config) == set()
    settings = read_settings(config)
    expected = {"run": (4000, 5.0), "run-long": (1000, 15.36), "run-more": (1547, 10.24), "run-last": (400, 10.24)}
    expected |= {"run-third": (2152, 10.24), "run-short": (572, 1.28), "run-final": (240, 10.24)}
    assert (settings.max_steps, config.data.crop_seconds) == expected[Path(of(command, "output")).name]


@pytest.mark.parametrize("path", sorted((FOLDER / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_runs_and_says_what_it_is(path: Path, tmp_path: Path) -> None:
    assert path.read_text().splitlines()[1].startswith("# ")
    composite = write_composite(tmp_path / "composite")
    latents = write_latents(tmp_path / "latents", composite, TRAIN, VALIDATION)
    # Only sizes are changed.
    small = ["trainer.fast_dev_run=true", "data.global_batch_size=2", "samples.seconds=0.2", "trainer.max_steps=3"]
    given = [f"data.path={latents}", f"init_from={composite}", f"output={tmp_path / 'run'}"]
    overrides = [f"hydra.searchpath=[file://{FOLDER}]", f"experiment={path.stem}", *given, *small]
    assert run(compose("train", *overrides)).trainer.global_step == 1


def test_the_command_line_finds_the_experiments() -> None:
    arguments = ["experiment=demo_model_long", "--config-dir", "scripts/demo_model", "--cfg", "job"]
    command = [sys.executable, "scripts/train.py", *arguments]
    output = subprocess.run(command, cwd=recipe.PROJECT, check=True, capture_output=True, text=True).stdout
    assert OmegaConf.create(output).data.crop_seconds == 15.36


def test_every_preprocessing_setting_exists() -> None:
    config = OmegaConf.load(CONFIG_FOLDER / "preprocess.yaml")
    commands = [command[1:] for command in COMMANDS if command[0] == "scripts/preprocess.py"]
    assert len(commands) == 4
    for argument in [argument for command in commands for argument in command]:
        key = argument.partition("=")[0]
        missing = OmegaConf.is_missing(config, key)
        assert missing or OmegaConf.select(config, key, default="absent") != "absent", key


def test_the_other_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr(corpus, "write_corpus", lambda *given, **_: made.append(given) or 0)
    for command in COMMANDS:
        if command[:2] == ["-m", "musicgen_train.demo"]:
            assert demo(command[2:]) == 0
    assert [given[1:] for given in made] == [(2000, 15.36, 11), (2400, 10.24, 12), (1079, 10.24, 13), (3000, 10.24, 14)]
    encoders: list[object] = []
    monkeypatch.setattr(encoder_training, "train_encoders", lambda folder, *_: encoders.append(folder))
    encoder_training.main(COMMANDS[0][1:])
    assert encoders == ["OUT/encoders"]
    shipped: list[tuple[object, ...]] = []
    monkeypatch.setattr(shipping, "ship", lambda *given: shipped.append(given) or Path("nowhere"))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([]))
    shipping.main(COMMANDS[-1][1:])
    assert shipped == [("OUT/run-final/composite", "OUT/encoders/composite", shipping.SHIPPED)]


def test_every_stage_starts_from_what_an_earlier_one_makes() -> None:
    made = {"OUT/encoders/composite"}
    for command in COMMANDS[1:]:
        text = " ".join(command)
        names = {part.strip("',]}").partition("=")[2] or part.strip("',]}") for part in text.split() if "OUT/" in part}
        if command[:2] == ["-m", "musicgen_train.demo"]:
            made.add(command[3])
            continue
        output = {of(command, "output")} if "output=" in text else set()
        assert names - output <= made, command
        made |= output | {f"{folder}/composite" for folder in output}


def test_it_stops_at_a_failure_and_skips_latents_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []
    failing = "scripts/train.py"

    def recorded(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        ran.append(command[1:])
        return subprocess.CompletedProcess(command, 3 if command[1] == failing else 0)

    monkeypatch.setattr(subprocess, "run", recorded)
    assert recipe.main([str(tmp_path)]) == 3
    kinds = [Path(command[0]).name if command[0] != "-m" else command[2] for command in ran]
    assert kinds == ["encoder_training.py", "corpus", "preprocess.py", "train.py"]
    ran.clear()
    (tmp_path / "latents").mkdir()
    assert recipe.main([str(tmp_path)]) == 3
    assert not [command for command in ran if command[0] == "scripts/preprocess.py"]
    ran.clear()
    capsys.readouterr()
    assert recipe.main([str(tmp_path), "--dry-run"]) == 0
    assert ran == []
    assert len(capsys.readouterr().out.splitlines()) == len(STAGES) - 1
