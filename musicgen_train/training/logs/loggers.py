"""Lightning's loggers, as the config lists them: where numbers and samples go beside the run's own files."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from musicgen_train.files import write_atomically
from musicgen_train.training.logs.wandb_account import has_account, is_offline

WANDB_ID_NAME = "wandb_run_id.txt"

MakeLogger = functools.partial[Logger]
"""A logger of the config, which may get further arguments before it is made."""


@rank_zero_only
def require_account(loggers: Iterable[MakeLogger]) -> None:
    """Check that there is an account for every wandb logger that sends; wandb would ask for it in the middle of a run.

    Raises:
        ValueError: a logger is to send, and there is no account, or its key is malformed.
    """
    for logger in loggers:
        if not _is_wandb(logger):
            continue
        if logger.keywords.get("offline", False) or is_offline(logger.keywords.get("mode")) or has_account():
            continue
        raise ValueError(
            "logger.wandb.offline=false sends to Weights & Biases, and there is no account on this machine: run "
            "`wandb login` first or set WANDB_API_KEY; with logger.wandb.offline=true it needs none"
        )


def make_logger(logger: MakeLogger, run: Path) -> Logger:
    """Make a logger of the config; one of wandb resumes the run that the folder has had there before."""
    if _is_wandb(logger) and logger.keywords.get("id") is None:
        return logger(id=wandb_id(run))
    return logger()


@rank_zero_only
def wandb_id(run: Path) -> str:
    """The id under which Weights & Biases knows a run: the same each time it goes on."""
    kept = run / WANDB_ID_NAME
    if not kept.is_file():
        write_atomically(kept, secrets.token_hex(4))
    return kept.read_text(encoding="utf-8").strip()


@rank_zero_only
def close_loggers(loggers: Iterable[Logger]) -> None:
    """Wait until wandb has written everything: it writes in a process of its own, which Lightning leaves open."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _is_wandb(logger: MakeLogger) -> bool:
    return isinstance(logger.func, type) and issubclass(logger.func, WandbLogger)
