"""Tells whether Weights & Biases sends, and has an account. wandb is slow to import, so only `has_account` does it."""

from __future__ import annotations

import os

_OFFLINE_MODES = ("offline", "dryrun", "disabled")


def is_offline(mode: object = None) -> bool:
    """Returns True if WANDB_MODE, or the `mode` of a logger, lets wandb send nothing."""
    return mode in _OFFLINE_MODES or os.environ.get("WANDB_MODE") in _OFFLINE_MODES


def has_account() -> bool:
    """Returns True if wandb finds credentials: in the environment, its settings, or the netrc file of `wandb login`.

    It does not ask for them, and does not check them with the server; they are then used by the whole process.

    Raises:
        ValueError: there are credentials, and they are malformed.
    """
    import wandb
    from wandb.errors import AuthenticationError

    try:
        # During a run of wandb its login is refused, and not needed.
        return wandb.run is not None or wandb.login(prompt=False, verify=False)
    except AuthenticationError as error:
        raise ValueError(f"the credentials of Weights & Biases on this machine cannot be used: {error}") from error
