"""Adapters on disk: a folder in peft's layout, a few MB, that says which model it belongs to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from musicgen_train.files import atomic_folder
from musicgen_train.hub.weights import CheckpointError
from musicgen_train.training.weights.adapters import ADAPTER_NAME, AdapterRecord, lora_config

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"

# peft wraps the adapted model in one of its own, and its names begin with it.
_PREFIX = "base_model.model."
# The entry in the metadata of the safetensors file that holds the record.
_RECORD = "musicgen_train"


def is_adapter(folder: Path) -> bool:
    """Returns True if a folder holds an adapter."""
    return (folder / ADAPTER_CONFIG_NAME).is_file()


def save_adapter(model: nn.Module, record: AdapterRecord, folder: Path, card: str) -> None:
    """Write the adapter of a model, without its base.

    peft reads the folder too: `peft.PeftModel.from_pretrained(model, folder)` on transformers' class of the same base
    (which has to be made stereo first, if the record has two channels).

    Args:
        model: the model with the adapter.
        record: the adapter's record.
        folder: the folder to write, which is made if need be.
        card: the README.md.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    tensors = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in state.items()}
    config = lora_config(record)
    config.inference_mode = True
    with atomic_folder(folder) as staging:
        config.save_pretrained(str(staging))
        metadata = {"format": "pt", _RECORD: json.dumps(dataclasses.asdict(record), sort_keys=True)}
        save_file(tensors, staging / ADAPTER_WEIGHTS_NAME, metadata)
        (staging / "README.md").write_text(card, encoding="utf-8")


def read_adapter(folder: Path) -> tuple[AdapterRecord, dict[str, torch.Tensor]]:
    """Read an adapter's record, and its tensors under the names that they have in a training checkpoint.

    Raises:
        FileNotFoundError: the folder has no adapter.
        CheckpointError: the file is damaged, or does not say which model it belongs to.
    """
    path = folder / ADAPTER_WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {ADAPTER_WEIGHTS_NAME}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {_name_in_model(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if _RECORD not in metadata:
        raise CheckpointError(
            f"{path} does not say which model it was trained on; only adapters that scripts/train.py wrote can be "
            "checked against their base. Use peft to read it"
        )
    return AdapterRecord.from_dict(json.loads(metadata[_RECORD]), str(path)), state


def _name_in_model(name: str) -> str:
    """The name of a tensor in a model, which contains the name of the adapter."""
    name = name.removeprefix(_PREFIX)
    module, _, part = name.rpartition(".lora_")
    kind, dot, rest = part.partition(".")
    if kind == "magnitude_vector":
        dot, rest = ".", "weight"
    return f"{module}.lora_{kind}.{ADAPTER_NAME}{dot}{rest}"
