"""Where a run's numbers and samples go beside its own files: Lightning's loggers, as the config lists them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from musicgen_train.files import write_atomically
from musicgen_train.training.logs.wandb_account import WITHOUT_ACCOUNT, has_account

WANDB_ID_NAME = "wandb_run_id.txt"


@rank_zero_only
def require_account(configs: Iterable[DictConfig]) -> None:
    """See that a logger of wandb that is to send has an account, since wandb would ask for one in the middle of a run.

    Raises:
        ValueError: it is to send, and there is none.
    """
    for config in configs:
        modes = (config.get("mode"), os.environ.get("WANDB_MODE"))
        sends = _is_wandb(config) and not config.get("offline", False) and not any(m in WITHOUT_ACCOUNT for m in modes)
        if sends and not has_account():
            raise ValueError(
                "logger.wandb.offline=false sends to Weights & Biases, and there is no account on this machine: run "
                "`wandb login` first or set WANDB_API_KEY; with logger.wandb.offline=true it needs none"
            )


def make_logger(config: DictConfig, run: Path) -> Logger:
    """A logger of the config; one of wandb goes on with the run that the folder has had before."""
    if _is_wandb(config) and config.get("id") is None:
        return instantiate(config, id=wandb_id(run))
    return instantiate(config)


@rank_zero_only
def wandb_id(run: Path) -> str:
    """The id under which Weights & Biases knows a run: the same each time it goes on."""
    kept = run / WANDB_ID_NAME
    if not kept.is_file():
        write_atomically(kept, secrets.token_hex(4))
    return kept.read_text(encoding="utf-8").strip()


@rank_zero_only
def close_loggers(loggers: Iterable[Logger]) -> None:
    """Wait until all that was logged is written; wandb does it beside the run, and Lightning leaves it open."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _is_wandb(config: DictConfig) -> bool:
    return issubclass(get_class(config["_target_"]), WandbLogger)
