"""Checks that a checkpoint belongs to the run that is to be resumed from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicgen_train.data.datamodule import LatentDataModule
from musicgen_train.hub.weights import CheckpointError, list_some
from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.training.checkpoints.reading import CHECKPOINT_KEY

# These fields may differ: they change how the decoder is trained, not what it is.
_TRAINING_FIELDS = {"dropout", "attention_dropout", "activation_dropout", "layerdrop", "use_cache"}


def require_same_run(
    checkpoint: Path | None, content: Mapping[str, Any], config: MusicgenDecoderConfig, data: LatentDataModule
) -> None:
    """Check that a checkpoint fits the decoder and the data, and move the data to where the checkpoint left them.

    Args:
        checkpoint: its path, for errors.
        content: its content; see `read_plain`.
        config: the config of the decoder.
        data: the data of the run, which is changed.

    Raises:
        CheckpointError: it is no checkpoint of `scripts/train.py`.
        ValueError: it belongs to another decoder, or to other data.
    """
    state_of_data = content.get(type(data).__qualname__)
    if CHECKPOINT_KEY not in content or state_of_data is None or "optimizer_states" not in content:
        raise CheckpointError(f"resume={checkpoint} is no checkpoint of scripts/train.py, or holds weights alone")
    different = [
        f"{name} is {_shown(value)}, here {_shown(found)}"
        for name, value, found in _compared(content[CHECKPOINT_KEY]["decoder_config"], config.to_dict())
        if value != found
    ]
    if different:
        raise ValueError(
            f"resume={checkpoint} is of another decoder: {list_some(different)}. Go on with the init_from and model "
            "that the run was started with, or begin a new run from its weights: init_from with the path of the "
            "checkpoint"
        )
    data.load_state_dict(state_of_data)


def _compared(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted((one.keys() & other.keys()) - _TRAINING_FIELDS)
    return [(name, one[name], other[name]) for name in names]


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)
