"""The exchanges between ranks that the training step needs; without `torch.distributed` there is one rank."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

_T = TypeVar("_T")


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on each of them; the host does not wait for it."""
    # Lightning's own reduction waits for all ranks first.
    if _is_distributed():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def from_all_ranks(value: _T) -> list[_T]:
    """A small picklable value of each rank, on each of them."""
    if not _is_distributed():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor that FSDP has divided; any other tensor as it is."""
    part = tensor.detach()
    return part.to_local() if hasattr(part, "to_local") else part


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
