"""Composes a stage's config with Hydra, runs the stage, and turns a user's mistake into one line."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf, JobConf, RunDir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicgen_train.garbage_collection import lasting_objects

# A wheel has the configs inside the package; in a checkout they lie beside it.
_PACKAGED = Path(__file__).parent / "configs"
CONFIG_FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "configs"

# Errors whose text tells the user what to do. Any other is a bug of ours, and its traceback is shown.
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)

_GROUP_CHOICE = re.compile(
    r"Could not find '(?P<choice>[^']+)'.*"
    r"Available options in '(?P<group>[^']+)':(?P<options>.*?)(Config search path:.*)?$",
    re.S,
)
_NOT_OVERRIDDEN = re.compile(r"Could not override '(?P<key>[^']+)'")
_NOT_APPENDED = re.compile(r"Could not append to config\. An item is already at '(?P<key>[^']+)'")


def run_stage(
    run: Callable[[DictConfig], object], config_name: str, program: Sequence[str], arguments: Sequence[str]
) -> None:
    """Compose `configs/<config_name>.yaml` with the command line's overrides and run a stage with it.

    A user's mistake is printed to stderr in one line, and the process exits with code 1; with
    MUSICGEN_TRAIN_TRACEBACK=1 the traceback is shown too.

    Args:
        run: the stage's entry function.
        config_name: name of a file in `configs/`, without its ending.
        program: the words that start this command: a script, or a program and its verb.
        arguments: the words after them: Hydra's options and overrides.
    """
    # Without it, Hydra prints errors in its own way and exits.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    given, words = sys.argv, _options_first(arguments)

    def guarded(config: DictConfig) -> None:
        # Lightning starts its other processes with the words of this command, and adds overrides of its own.
        sys.argv = [*program, *words]

        def checked() -> None:
            _require_all(config)
            run(config)

        # Hydra would add a line of its own to an error that leaves this function.
        _exit_on_user_error(checked, config_name)

    _keep_hydra_quiet(config_name)
    entry = hydra.main(version_base="1.3", config_path=_config_path(config_name), config_name=config_name)(guarded)
    sys.argv = [program[0], *words]
    try:
        _exit_on_user_error(entry, config_name)
    finally:
        sys.argv = given


def stage(module: str) -> Callable[[DictConfig], object]:
    """Return a function that imports a module and calls its `run`, so that --help and mistyped settings do not wait."""

    def run(config: DictConfig) -> object:
        with lasting_objects():
            entry = importlib.import_module(module).run
        return entry(config)

    return run


def _options_first(arguments: Sequence[str]) -> list[str]:
    """Put options such as `--config-dir FOLDER` before overrides: Hydra refuses an option between two overrides."""
    return sorted(arguments, key=lambda word: not word.startswith("-") and ("=" in word or word.startswith("~")))


def _keep_hydra_quiet(job_name: str) -> None:
    """Change Hydra's defaults: no folder, no files, no change of directory, since a stage writes into its `output`.

    Settings under `hydra.` still win.
    """
    hydra_config = HydraConf(run=RunDir("."), output_subdir=None, job=JobConf(name=job_name, chdir=False))
    for entry in hydra_config.defaults:
        entry.update({name: "none" for name in ("job_logging", "hydra_logging") if name in entry})
    ConfigStore.instance().store(group="hydra", name="config", node=hydra_config, provider="musicgen_train")


def _config_path(config_name: str) -> str | None:
    """Return the folder in which Hydra looks for configs, or None.

    A config without groups is given to Hydra as an object, and Hydra searches no folder of ours: if it saw the groups
    of training, it would take `model=FOLDER` for the choice of a file in `configs/model/`.
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
    # Imported here because it imports torch, for which a mistyped override need not wait.
    from musicgen_train.hub.weights import CheckpointError

    return isinstance(error, CheckpointError)


def explain(error: BaseException, config_name: str) -> str:
    """Return an error's text as one line that says what to do.

    Args:
        error: what was raised.
        config_name: the config that was composed; a mistyped key is compared with its keys.
    """
    # Hydra wraps what a class raises when it is instantiated.
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
    """Return the names of all settings and groups that a config has without overrides, sorted: `trainer.max_steps`."""
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
        # So that `max_step` is taken for `trainer.max_steps`, compare the last parts alone.
        tails = {key.rpartition(".")[2]: key for key in reversed(known)}
        close = [tails[tail] for tail in difflib.get_close_matches(wrong.rpartition(".")[2], list(tails), n=1)]
    return f"; the nearest is {close[0]}" if close else ""
