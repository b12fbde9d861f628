"""An adapter as a folder in peft's layout, a few MB, which says which model it belongs to."""

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
from musicgen_train.training.weights.adapters import NAME, AdapterRecord, lora_config

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# peft's names are those below a model of its own around the adapted one.
_PREFIX = "base_model.model."
# The entry of the safetensors file's metadata that holds the record.
_RECORD = "musicgen_train"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG_NAME).is_file()


def save_adapter(model: nn.Module, record: AdapterRecord, folder: Path, card: str) -> None:
    """Write a model's adapter, and nothing of its base.

    peft reads the folder too: `peft.PeftModel.from_pretrained(model, folder)` on transformers' class of the same base
    (made stereo before, where the record says so).

    Args:
        model: with the adapter.
        record: of it.
        folder: where to; made if need be.
        card: the README.md.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    tensors = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in state.items()}
    config = lora_config(record)
    config.inference_mode = True
    with atomic_folder(folder) as staging:
        config.save_pretrained(str(staging))
        metadata = {"format": "pt", _RECORD: json.dumps(dataclasses.asdict(record), sort_keys=True)}
        save_file(tensors, staging / WEIGHTS_NAME, metadata)
        (staging / "README.md").write_text(card, encoding="utf-8")


def adapter_card(record: AdapterRecord, model_card: str) -> str:
    """The README.md of an adapter.

    Args:
        record: of it.
        model_card: of the model that it is merged into, whose numbers and provenance are the adapter's too.
    """
    kind = "DoRA" if record.dora else "LoRA"
    made_stereo = ", made stereo" if record.audio_channels == 2 else ""
    _, _, numbers = model_card.partition("## Numbers")
    return f"""---
library_name: peft
base_model: {json.dumps(record.base)}
tags: [musicgen, music, audio, lora]
---

# A {kind} adapter for MusicGen, trained with musicgen_train

Of rank {record.rank}, for `{record.base}`{made_stereo}, whose decoder and projection have the fingerprint
`{record.base_fingerprint}`. On another model it means nothing.

## Use

```python
from musicgen_train.training.weights.merged import load_adapted

model = load_adapted("FOLDER")  # merged into the weights of its base; base="..." says where that is now
```

Or, on transformers' model of the same base, `peft.PeftModel.from_pretrained(model, "FOLDER")`.

## Numbers{numbers}"""


def read_adapter(folder: Path) -> tuple[AdapterRecord, dict[str, torch.Tensor]]:
    """An adapter's record and its tensors, under the names of a training checkpoint.

    Raises:
        FileNotFoundError: the folder has no adapter.
        CheckpointError: the file is damaged, or does not say which model it belongs to.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS_NAME}")
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
    """A tensor's name in a model, where the adapter's own name is part of it."""
    name = name.removeprefix(_PREFIX)
    module, _, part = name.rpartition(".lora_")
    kind, dot, rest = part.partition(".")
    if kind == "magnitude_vector":
        dot, rest = ".", "weight"
    return f"{module}.lora_{kind}.{NAME}{dot}{rest}"
