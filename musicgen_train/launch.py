"""From a command line to a stage's entry function: Hydra around it, and errors that a user can act on."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicgen_train.garbage_collection import lasting_objects

CONFIG_FOLDER = Path(__file__).parents[1] / "configs"

# Errors that say what a user can do. Any other is a bug of ours, and its traceback is shown.
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)

# Hydra makes no folders and no files, and stays where it was started; the stages write into their `output`. A user's
# own settings come later and win.
_QUIET = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)
_GROUP_CHOICE = re.compile(
    r"Could not find '(?P<choice>[^']+)'.*Available options in '(?P<group>[^']+)':(?P<options>.*)", re.S
)
_NOT_OVERRIDDEN = re.compile(r"Could not override '(?P<key>[^']+)'")
_NOT_APPENDED = re.compile(r"Could not append to config\. An item is already at '(?P<key>[^']+)'")


def main(run: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose `configs/<config_name>.yaml` with the command line's overrides and run a stage with it.

    An error of the user's prints one line to stderr, and the exit code is 1; with MUSICGEN_TRAIN_TRACEBACK=1 the
    traceback is shown too.

    Args:
        run: the stage's entry function.
        config_name: of a file in `configs/`, without its ending.
    """
    # Without it Hydra prints errors its own way and exits.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    arguments = sys.argv[1:]

    def guarded(config: DictConfig) -> None:
        def checked() -> None:
            _require_all(config)
            run(config)

        # Here and not around Hydra, which would add a line of its own.
        _exit_on_user_error(checked, config_name)

    entry = hydra.main(version_base="1.3", config_path=_config_path(config_name), config_name=config_name)(guarded)
    given, sys.argv = sys.argv, [sys.argv[0], *_QUIET, *arguments]
    try:
        _exit_on_user_error(entry, config_name)
    finally:
        sys.argv = given


def stage(module: str) -> Callable[[DictConfig], object]:
    """The function `run` of a module, which is imported when it is called: --help and mistyped settings do not wait."""

    def run(config: DictConfig) -> object:
        with lasting_objects():
            entry = importlib.import_module(module).run
        return entry(config)

    return run


def _config_path(config_name: str) -> str | None:
    """Where Hydra looks for configs.

    A config without groups is handed over as it is, and Hydra looks nowhere: with the groups of training in sight,
    it would take `model=FOLDER` for the choice of a file in `configs/model/`.
    """
    config = OmegaConf.load(CONFIG_FOLDER / f"{config_name}.yaml")
    if "defaults" in config:
        return str(CONFIG_FOLDER)
    ConfigStore.instance().store(name=config_name, node=config)
    return None


def _require_all(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        example = " ".join(f"{key}=..." for key in missing)
        raise ValueError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given; add {example}")


def _exit_on_user_error(call: Callable[[], object], config_name: str) -> None:
    try:
        call()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if not _is_users(error) or os.environ.get("MUSICGEN_TRAIN_TRACEBACK") == "1":
            raise
        print(f"error: {explain(error, config_name)}", file=sys.stderr)
        raise SystemExit(1) from None


def _is_users(error: BaseException) -> bool:
    if isinstance(error, USER_ERRORS) or isinstance(error.__cause__, USER_ERRORS):
        return True
    # Imported late: it brings torch, which a mistyped override does not need.
    from musicgen_train.hub.weights import CheckpointError

    return isinstance(error, CheckpointError)


def explain(error: BaseException, config_name: str) -> str:
    """An error as one line that says what to do.

    Args:
        error: what was raised.
        config_name: of the file that was composed, to look for keys like a mistyped one.
    """
    # Hydra's instantiation wraps what the class itself raised.
    if isinstance(error, HydraException) and "Error in call to target" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if match := _GROUP_CHOICE.search(text):
        options = match["options"].split()
        wrong = match["choice"].removeprefix(match["group"] + "/")
        return f"there is no {match['group']}={wrong}{_like(wrong, options)}. There are: {', '.join(options)}"
    if match := _NOT_OVERRIDDEN.search(text):
        key = match["key"]
        return f"there is no setting {key}{_like(key, known_keys(config_name))}"
    if match := _NOT_APPENDED.search(text):
        return f"{match['key']} exists already; write it without the +"
    return " ".join(text.split()) or type(error).__name__


def known_keys(config_name: str) -> list[str]:
    """All settings and groups of a config as it is without overrides, as `trainer.max_steps`, sorted."""
    GlobalHydra.instance().clear()
    config = OmegaConf.load(CONFIG_FOLDER / f"{config_name}.yaml")
    if "defaults" in config:
        with hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = hydra.compose(config_name)
    groups = [path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()]
    return sorted({*_keys(OmegaConf.to_container(config, resolve=False)), *groups})


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")


def _like(wrong: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    if not close:
        # `max_step` for `trainer.max_steps`: compare the last parts alone.
        tails = {key.rpartition(".")[2]: key for key in reversed(known)}
        close = [tails[tail] for tail in difflib.get_close_matches(wrong.rpartition(".")[2], list(tails), n=1)]
    return f"; the nearest is {close[0]}" if close else ""
