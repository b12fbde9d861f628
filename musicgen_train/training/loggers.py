"""Where a run's numbers and samples go beside its own files: Lightning's loggers, as the config lists them."""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from musicgen_train.training.checkpoint_files import write_text_atomically

WANDB_ID_NAME = "wandb_run_id.txt"
WITHOUT_ACCOUNT = ("offline", "dryrun", "disabled")
"""Values of WANDB_MODE with which nothing is sent."""
_WANDB_HOST = "https://api.wandb.ai"


def require_account(configs: Iterable[DictConfig]) -> None:
    """See that a logger of wandb that is to send has an account, since wandb would ask for one in the middle of a run.

    Raises:
        ValueError: it is to send, and there is none.
    """
    for config in configs:
        sends = _is_wandb(config) and not config.get("offline", False)
        if sends and os.environ.get("WANDB_MODE") not in WITHOUT_ACCOUNT and not _has_account():
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
        write_text_atomically(kept, secrets.token_hex(4))
    return kept.read_text(encoding="utf-8").strip()


@rank_zero_only
def close_loggers(loggers: Iterable[Logger]) -> None:
    """Wait until all that was logged is written; wandb does it beside the run, and Lightning leaves it open."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _is_wandb(config: DictConfig) -> bool:
    return issubclass(get_class(config["_target_"]), WandbLogger)


def _has_account() -> bool:
    """Whether wandb finds a key where it looks: the environment, and the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _WANDB_HOST)).netloc
    named = os.environ.get("NETRC")
    files = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            if netrc.netrc(file).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
