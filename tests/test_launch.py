"""The command line around a stage: overrides, errors in one line, exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from musicgen_train.hub.weights import CheckpointError
from musicgen_train.launch import CONFIG_FOLDER, run_stage

ROOT = Path(__file__).parents[1]
GIVEN = ["data.path=x", "init_from=y", "output=z", "trainer.max_steps=1"]

Call = Callable[..., tuple[int, str, DictConfig | None]]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`launch(*arguments, stage=...)` gives exit code, stderr, and the config that the stage got."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUSICGEN_TRAIN_TRACEBACK", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(
        *arguments: str, stage: Callable[[DictConfig], object] | None = None
    ) -> tuple[int, str, DictConfig | None]:
        got: list[DictConfig] = []

        def run(config: DictConfig) -> None:
            got.append(config)
            if stage is not None:
                stage(config)

        monkeypatch.setattr(sys, "argv", ["musicgen-train", "train", *arguments])
        try:
            run_stage(run, "train", sys.argv[:2], arguments)
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, capsys.readouterr().err, got[0] if got else None

    return call


def failing(error: Exception) -> Callable[[DictConfig], None]:
    def stage(config: DictConfig) -> None:
        raise error

    return stage


def test_overrides_reach_the_stage(launch: Call) -> None:
    code, err, config = launch(*GIVEN, "model=small", "optimizer.lr=0.25")
    assert (code, err) == (0, "")
    assert config is not None
    assert config.optimizer.lr == 0.25
    assert config.model.architecture.hidden_size == 1024


def test_nothing_is_written_and_nobody_moves(launch: Call, tmp_path: Path) -> None:
    places = []
    launch(*GIVEN, stage=lambda config: places.append(Path.cwd()))
    assert places == [tmp_path]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trainer.max_step=5", "trainer.max_steps"),
        ("optimizer.learning_rate=5", "optimizer.lr"),
        ("zzzzzzzz=5", None),
        ("optimizer.weight_decy=5", "optimizer.weight_decay"),
        ("data.globl_batch_size=5", "data.global_batch_size"),
        ("sampels.every=5", "samples.every"),
        ("max_steps=5", "trainer.max_steps"),
        ("ouput=5", "output"),
        ("modle=tiny", "model"),
    ],
)
def test_a_mistyped_setting_is_named_with_its_nearest(launch: Call, override: str, nearest: str | None) -> None:
    code, err, config = launch(*GIVEN, override)
    assert (code, config) == (1, None)
    key = override.partition("=")[0]
    hint = "" if nearest is None else f"; the nearest is {nearest}"
    assert err == f"error: there is no setting {key}{hint}\n"


def test_a_mistyped_choice_is_named_with_its_nearest(launch: Call) -> None:
    code, err, config = launch(*GIVEN, "model=smal")
    assert (code, config) == (1, None)
    models = ", ".join(sorted(path.stem for path in (CONFIG_FOLDER / "model").iterdir()))
    assert err == f"error: there is no model=smal; the nearest is small. There are: {models}\n"


def test_an_override_that_cannot_be_read(launch: Call) -> None:
    code, err, _ = launch(*GIVEN, "optimizer.lr")
    assert code == 1
    assert err.startswith("error: ")
    assert "optimizer.lr" in err
    assert err.count("\n") == 1


def test_a_setting_that_exists_cannot_be_added(launch: Call) -> None:
    code, err, _ = launch(*GIVEN, "+seed=3")
    assert (code, err) == (1, "error: seed exists already; write it without the +\n")


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ([1], "init_from is not given; add init_from=..."),
        ([0, 3], "data.path and trainer.max_steps are not given; add data.path=... trainer.max_steps=..."),
    ],
)
def test_settings_that_were_not_given(launch: Call, left_out: list[int], message: str) -> None:
    code, err, config = launch(*(argument for number, argument in enumerate(GIVEN) if number not in left_out))
    assert (code, err, config) == (1, f"error: {message}\n", None)


@pytest.mark.parametrize(
    "error",
    [ValueError("two\nlines"), FileNotFoundError("two lines"), CheckpointError("two lines"), OSError("two lines")],
)
def test_an_error_of_the_users_is_one_line(launch: Call, error: Exception) -> None:
    code, err, _ = launch(*GIVEN, stage=failing(error))
    assert (code, err) == (1, "error: two lines\n")


def test_an_error_of_ours_keeps_its_traceback(launch: Call) -> None:
    with pytest.raises(AssertionError, match="our bug"):
        launch(*GIVEN, stage=failing(AssertionError("our bug")))


def test_the_traceback_can_be_asked_for(launch: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_TRAIN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="theirs"):
        launch(*GIVEN, stage=failing(ValueError("theirs")))


def test_an_interrupt_is_no_error_of_anybodys(launch: Call) -> None:
    def interrupt(config: DictConfig) -> None:
        raise KeyboardInterrupt

    code, err, _ = launch(*GIVEN, stage=interrupt)
    assert (code, err) == (130, "interrupted\n")


@pytest.fixture
def own_configs(tmp_path: Path) -> Path:
    """A user's folder of configs beside ours: an experiment that takes an optimizer file of its own."""
    folder = tmp_path / "own configs"
    (folder / "experiment").mkdir(parents=True)
    (folder / "optimizer").mkdir()
    (folder / "optimizer" / "nadam.yaml").write_text("_target_: torch.optim.NAdam\n_partial_: true\nlr: 0.25\n")
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optimizer: nadam\ndata:\n  crop_seconds: 7\n"
    )
    return folder


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_users_config_folder_stands_beside_ours(launch: Call, own_configs: Path, place: int) -> None:
    arguments = [*GIVEN, "experiment=mine"]
    arguments[place:place] = ["--config-dir", str(own_configs)]
    code, err, config = launch(*arguments, "schedule=linear")
    assert (code, err) == (0, "")
    assert config is not None
    assert (config.optimizer._target_, config.optimizer.lr) == ("torch.optim.NAdam", 0.25)
    assert config.data.crop_seconds == 7
    # What it leaves alone is ours.
    assert config.schedule.keys() == OmegaConf.load(CONFIG_FOLDER / "schedule/linear.yaml").keys()
    code, err, _ = launch(*GIVEN, "--config-dir", str(own_configs), "experiment=mien")
    assert code == 1
    assert err.startswith("error: there is no experiment=mien; the nearest is mine. There are: ")


@pytest.mark.parametrize("name", ["preprocess", "evaluate"])
def test_a_users_file_begins_with_ours(name: str, own_configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = OmegaConf.load(CONFIG_FOLDER / f"{name}.yaml")
    (own_configs / "mine.yaml").write_text(f"defaults: [{name}, _self_]\ndevice: cpu\n")
    given = [
        "--config-dir",
        str(own_configs),
        "--config-name",
        "mine",
        "input=a" if name == "preprocess" else "model=a",
    ]
    got: list[DictConfig] = []
    monkeypatch.setattr(sys, "argv", ["musicgen-train", name, *given])
    try:
        run_stage(got.append, name, sys.argv[:2], [*given, "output=b"])
    finally:
        # A command's process ends here; in this one, Hydra would take it for the schema of files of that name.
        ConfigStore.instance().repo.pop(f"{name}.yaml")
    assert got[0].keys() == ours.keys()
    assert (got[0].device, got[0].output) == ("cpu", "b")


def test_a_config_folder_that_is_not_there(launch: Call, tmp_path: Path) -> None:
    code, err, _ = launch(*GIVEN, "--config-dir", "nowhere")
    assert (code, err) == (1, f"error: Additional config directory '{tmp_path}/nowhere' not found\n")


def test_a_stage_sees_the_words_that_start_its_process_again(launch: Call, own_configs: Path) -> None:
    # Lightning appends overrides to them for its other processes; Hydra refuses one that comes after an option's.
    seen: list[str] = []
    launch(*GIVEN, "--config-dir", str(own_configs), stage=lambda config: seen.extend(sys.argv))
    assert seen == ["musicgen-train", "train", "--config-dir", str(own_configs), *GIVEN]
    assert sys.argv == ["musicgen-train", "train", *GIVEN, "--config-dir", str(own_configs)]


def test_the_real_command_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/train.py"), f"data.path={tmp_path}/none", f"output={tmp_path}/run"]
    done = subprocess.run(
        [*command, "init_from=scratch", "model=tiny", "trainer.max_steps=1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    expected = (
        f"error: {tmp_path}/none is no latent dataset: it has no manifest.json. Make one with scripts/preprocess.py"
    )
    assert done.stderr.strip() == expected
    assert list(tmp_path.iterdir()) == []
