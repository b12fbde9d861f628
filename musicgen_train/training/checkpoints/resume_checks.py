"""Whether a checkpoint is of the run that is to go on from it, before anything is built on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicgen_train.data.datamodule import LatentDataModule
from musicgen_train.hub.weights import CheckpointError, list_some
from musicgen_train.models.config import MusicgenDecoderConfig
from musicgen_train.training.checkpoints.reading import CHECKPOINT_KEY

# What may differ: they change how the decoder trains, not what it is.
_OF_TRAINING = {"dropout", "attention_dropout", "activation_dropout", "layerdrop", "use_cache"}


def require_same_run(
    checkpoint: Path | None, content: Mapping[str, Any], config: MusicgenDecoderConfig, data: LatentDataModule
) -> None:
    """See that a checkpoint fits the decoder and the data.

    Args:
        checkpoint: for errors.
        content: of it, see `checkpoint_files.read_plain`.
        config: of the decoder.
        data: which goes on where the checkpoint says.

    Raises:
        CheckpointError: it is none of `scripts/train.py`.
        ValueError: it is of another decoder, or of other data.
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
    names = sorted((one.keys() & other.keys()) - _OF_TRAINING)
    return [(name, one[name], other[name]) for name in names]


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)
