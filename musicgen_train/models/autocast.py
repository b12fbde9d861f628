"""Autocast, also on the `meta` device, which has none: torch raises when it is asked there."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

# Compared by name: torch's own `is_autocast_available` breaks compiled graphs in torch 2.11.
_WITHOUT = "meta"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast rounds the operands of products to on a device; None where it is off, or there is none."""
    if device.type != _WITHOUT and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off for what is computed on a device."""
    return contextlib.nullcontext() if device.type == _WITHOUT else torch.autocast(device.type, enabled=False)
