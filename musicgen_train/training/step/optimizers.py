"""Optimizers that depend on what the machine has; all others of the config are torch's own classes."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

MakeOptimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
"""An optimizer that lacks only its parameters, as a config's `optimizer` gives it."""


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """Make torch's AdamW (Loshchilov & Hutter 2019), fused into one kernel on a GPU.

    Args:
        parameters: the parameters to train.
        lr, betas, eps, weight_decay: see `torch.optim.AdamW`.
        fused: None uses the fused kernel if all parameters are on CUDA devices, else torch's own choice.

    Raises:
        RuntimeError: `fused` is True on a device that has no such kernel.
    """
    trained = list(parameters)
    if fused is None and all(parameter.device.type == "cuda" for parameter in trained):
        fused = True
    return torch.optim.AdamW(trained, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def adamw_8bit(
    parameters: Iterable[nn.Parameter], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make AdamW with both moments in 8 bits (Dettmers et al. 2022), from bitsandbytes or else from torchao.

    Tensors with fewer than 4096 elements keep their moments in 32 bits.

    Raises:
        ValueError: neither package is installed.
    """
    require_8bit()
    if importlib.util.find_spec("bitsandbytes") is not None:
        make: Callable[..., Any] = importlib.import_module("bitsandbytes.optim").AdamW8bit
    else:
        make = importlib.import_module("torchao.optim").AdamW8bit
    return make(list(parameters), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def require_8bit() -> None:
    """Check that a package with 8-bit optimizers is installed.

    Raises:
        ValueError: neither bitsandbytes nor torchao is installed.
    """
    if all(importlib.util.find_spec(package) is None for package in ("bitsandbytes", "torchao")):
        raise ValueError(
            "optimizer=adamw_8bit needs bitsandbytes (NVIDIA GPUs) or torchao, and neither is installed: pip install "
            "bitsandbytes, or use optimizer=adamw or optimizer=adafactor"
        )


def require_available(make_optimizer: MakeOptimizer) -> None:
    """Check that the optimizer of the config can be made here, before anything is loaded.

    Raises:
        ValueError: a package is missing.
    """
    if isinstance(make_optimizer, functools.partial) and make_optimizer.func is adamw_8bit:
        require_8bit()
