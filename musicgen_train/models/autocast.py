"""Autocast, also on devices that have none, such as `meta`, of which torch itself raises."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast rounds the operands of products to on a device; None where it is off, or there is none."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off for what is computed on a device."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
