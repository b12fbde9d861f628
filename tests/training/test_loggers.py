"""Weights & Biases: offline without an account, and asking for none; sending where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from tiny_run import RunWith, compose

from musicgen_train.doctor.disks import look_at_disks
from musicgen_train.training.logs.loggers import MakeLogger, make_logger, require_account
from musicgen_train.training.settings import read_settings

GIVEN = ["data.path=LATENTS", "init_from=MODEL", "output=RUN", "trainer.max_steps=1"]
SENDS = ["logger=wandb", "logger.wandb.offline=false"]
VARIABLES = (
    *("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "NETRC"),
)
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # Otherwise wandb asks its server for the name of the account, to greet it.
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refused)


@pytest.fixture(autouse=True)
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wandb finds a terminal, at which nobody answers."""

    def refused(*args: Any, **kwargs: Any) -> str:
        raise AssertionError("the user was asked")

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("wandb.sdk.lib.wbauth.prompt.prompt_and_save_api_key", refused)
    monkeypatch.setattr("builtins.input", refused)
    monkeypatch.setattr("getpass.getpass", refused)


def loggers_of(*overrides: str) -> list[MakeLogger]:
    """The loggers of a config, in a new session of wandb: it reads environment and files once."""
    wandb.teardown()
    return read_settings(compose("train", *GIVEN, *overrides)).loggers


@pytest.mark.parametrize(("overrides", "mode"), [(["logger=wandb"], "dryrun"), (SENDS, None)])
def test_wandb_starts_offline_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: list[str], mode: str | None
) -> None:
    begun: list[str | None] = []
    monkeypatch.setattr(wandb, "init", lambda **_: begun.append(os.environ.get("WANDB_MODE")))
    monkeypatch.setenv("WANDB_MODE", "")  # so that what the logger sets is taken back
    monkeypatch.delenv("WANDB_MODE")
    [make] = loggers_of(*overrides)
    logger: Any = make_logger(make, tmp_path)
    _ = logger.experiment
    assert begun == [mode]  # "dryrun" is wandb's older word for offline


def test_sending_needs_an_account(run_with: RunWith, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"offline=false sends .* `wandb login` first or set WANDB_API_KEY"):
        run_with(tmp_path / "run", *SENDS)
    assert not (tmp_path / "run").exists()


def log_in(host: str, netrc: Path) -> None:
    """As `wandb login` does."""
    netrc.write_text(f"machine {host} login user password {KEY}\n")
    netrc.chmod(0o600)


def test_an_account_is_found_where_wandb_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log_in("somewhere.else", tmp_path / ".netrc")
    with pytest.raises(ValueError, match="no account"):
        require_account(loggers_of(*SENDS))
    log_in("api.wandb.ai", tmp_path / ".netrc")
    require_account(loggers_of(*SENDS))
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.server:8080")
    with pytest.raises(ValueError, match="no account"):
        require_account(loggers_of(*SENDS))
    monkeypatch.setenv("NETRC", str(tmp_path / "other"))
    log_in("own.server:8080", tmp_path / "other")
    require_account(loggers_of(*SENDS))
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    require_account(loggers_of(*SENDS))


def test_a_malformed_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with pytest.raises(ValueError, match=r"cannot be used: WANDB_API_KEY invalid") as refused:
        require_account(loggers_of(*SENDS))
    assert "too short" not in str(refused.value)


def test_a_server_of_ones_own_is_looked_up(tmp_path: Path) -> None:
    # As `wandb login --host` leaves it.
    (tmp_path / ".config/wandb").mkdir(parents=True)
    (tmp_path / ".config/wandb/settings").write_text("[default]\nbase_url = https://own.server\n")
    log_in("api.wandb.ai", tmp_path / ".netrc")
    with pytest.raises(ValueError, match="no account"):
        require_account(loggers_of(*SENDS))
    log_in("own.server", tmp_path / ".netrc")
    require_account(loggers_of(*SENDS))
    (tmp_path / ".netrc").unlink()
    (tmp_path / ".config/wandb/settings").write_text(f"[default]\napi_key = {KEY}\n")
    require_account(loggers_of(*SENDS))


def test_a_mode_in_the_config_needs_none() -> None:
    require_account(loggers_of(*SENDS, "+logger.wandb.mode=offline"))


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_offline_needs_none(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    require_account(loggers_of("logger=wandb"))
    monkeypatch.setenv("WANDB_MODE", mode)
    require_account(loggers_of(*SENDS))


def test_the_doctor_says_where_numbers_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def said() -> str:
        return next(finding.what for finding in look_at_disks(tmp_path) if finding.topic == "wandb")

    assert said() == "numbers of runs with logger=wandb stay on this machine unless logger.wandb.offline=false"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert said() == "WANDB_MODE=offline: numbers of runs with logger=wandb stay on this machine"
