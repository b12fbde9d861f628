"""Fingerprints of frozen encoders, so that a dataset is never used with other encoders than those that made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from musicgen_train.models.config import EncodecConfig, T5Config
from musicgen_train.models.pretrained import PretrainedModel


def fingerprint(model: PretrainedModel[Any]) -> str:
    """Returns the SHA-256, hex, of what determines an encoder's output: config fields, and tensors by name in float32.

    It does not depend on the names in the model's files, on the dtype and device it was loaded to as long as the values
    are the same, or on the transformers version that wrote its config.
    """
    digest = hashlib.sha256()
    config: T5Config | EncodecConfig = model.config
    fields = {name: getattr(config, name) for name in sorted(config.field_names())}
    digest.update(json.dumps([config.model_type, fields], sort_keys=True).encode())
    add_tensors(digest, {name: value for name, value in model.state_dict().items() if name not in model.tied_keys})
    return digest.hexdigest()


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, torch.Tensor]) -> None:
    """Feeds tensors to a digest: names in order, shapes, and values, floating-point ones as float32."""
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu")
        value = value.to(torch.float32) if value.is_floating_point() else value
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
