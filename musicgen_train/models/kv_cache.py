"""Keys and values of past steps, kept in memory that is allocated once.

Axes: B batch, N heads, S steps, L text length, H head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch

KeysValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class KVCache:
    """Caches a decoder's keys and values: those of self-attention grow with each step, those of the text are fixed.

    The caller of a forward pass creates it and passes it in, so no state stays in the model. It can be read like
    the reference's older nested tuples: `cache[layer]` is `(key, value, cross_key, cross_value)`, each
    `(batch, heads, length, head_width)`.

    Args:
        num_layers: layers of the decoder.
        capacity: steps to allocate memory for. When they are exceeded, the memory is doubled and copied.
    """

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._self: list[KeysValues | None] = [None] * num_layers
        self._cross: list[KeysValues | None] = [None] * num_layers

    @classmethod
    def from_legacy(cls, past: Sequence[Sequence[torch.Tensor]], room: int = 64) -> KVCache:
        """Make a cache from nested tuples, per layer `(key, value)` or `(key, value, cross_key, cross_value)`.

        Args:
            past: the tuples; keys and values of self-attention are copied.
            room: further steps to allocate memory for.
        """
        cache = cls(len(past), capacity=past[0][0].shape[2] + room)
        for layer, tensors in enumerate(past):
            cache.append(layer, tensors[0], tensors[1])
            if len(tensors) == 4:
                cache._cross[layer] = (tensors[2], tensors[3])
        cache.advance(past[0][0].shape[2])
        return cache

    def append(self, layer: int, keys_BNSH: torch.Tensor, values_BNSH: torch.Tensor) -> KeysValues:
        """Store the keys and values of new steps and return those of all steps so far, as views.

        Call `advance` once every layer has appended.
        """
        stored = self._self[layer]
        if keys_BNSH.requires_grad:
            # A buffer written in place would break the backward pass through an earlier step.
            joined = _joined(stored, (keys_BNSH, values_BNSH), self.length)
            self._self[layer] = joined
            return joined
        end = self.length + keys_BNSH.shape[2]
        if stored is None or stored[0].shape[2] < end:
            stored = self._allocate(stored, keys_BNSH, values_BNSH, end)
            self._self[layer] = stored
        keys, values = stored
        keys[:, :, self.length : end] = keys_BNSH
        values[:, :, self.length : end] = values_BNSH
        return keys[:, :, :end], values[:, :, :end]

    def reserve(self, steps: int) -> None:
        """Allocate memory for `steps` steps in every layer that holds any."""
        for layer, stored in enumerate(self._self):
            if stored is not None and stored[0].shape[2] < steps:
                self._self[layer] = self._allocate(stored, *stored, steps)

    def buffers(self, layer: int) -> KeysValues:
        """Returns a layer's whole buffers, `(batch, heads, capacity, head_width)`, for code that writes keys and values
        without `append`. The layer must hold at least one step."""
        stored = self._self[layer]
        assert stored is not None
        return stored

    def advance(self, steps: int) -> None:
        """Count `steps` more steps as past."""
        self.length += steps

    def cross(self, layer: int) -> KeysValues | None:
        """Returns the text's keys and values, `(batch, heads, text_length, head_width)`; None before they are set."""
        return self._cross[layer]

    def set_cross(self, layer: int, keys_values: KeysValues) -> None:
        """Store the keys and values of the text for all later steps."""
        self._cross[layer] = keys_values

    def get_seq_length(self) -> int:
        """Returns the number of past steps."""
        return self.length

    def _allocate(
        self, stored: KeysValues | None, keys_BNSH: torch.Tensor, values_BNSH: torch.Tensor, end: int
    ) -> KeysValues:
        while self.capacity < end:
            self.capacity = max(2 * self.capacity, 16)
        batch, heads, _, width = keys_BNSH.shape
        keys = keys_BNSH.new_empty((batch, heads, self.capacity, width))
        values = values_BNSH.new_empty((batch, heads, self.capacity, width))
        if stored is not None:
            keys[:, :, : self.length] = stored[0][:, :, : self.length]
            values[:, :, : self.length] = stored[1][:, :, : self.length]
        return keys, values

    def __len__(self) -> int:
        return len(self._self)

    def __getitem__(self, layer: int) -> tuple[torch.Tensor, ...]:
        stored = self._self[layer]
        if stored is None:
            return ()
        past = tuple(tensor[:, :, : self.length] for tensor in stored)
        return past + (self._cross[layer] or ())

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return (self[layer] for layer in range(len(self)))


class FixedKVCache(KVCache):
    """Caches keys and values for a CUDA graph: every step uses the same memory, at an index held on the device.

    `append` returns `border` steps, including future ones, which the caller's mask must hide. Their memory is set to
    zero, since NaN would spread even from masked steps.

    Args:
        cache: the cache whose memory and text this takes over; it must hold at least one step.
        steps: steps to allocate memory for.
    """

    def __init__(self, cache: KVCache, steps: int) -> None:
        cache.reserve(steps)
        keys, _ = cache.buffers(0)
        super().__init__(len(cache), capacity=keys.shape[2])
        self._self, self._cross, self.length = cache._self, cache._cross, cache.length
        for layer in range(len(cache)):
            for stored in cache.buffers(layer):
                stored[:, :, self.length :] = 0
        self.border = self.capacity
        self.place_1 = torch.full((1,), self.length, device=keys.device)
        """The number of past steps, int64 on the device."""

    def append(self, layer: int, keys_BN1H: torch.Tensor, values_BN1H: torch.Tensor) -> KeysValues:
        """Store the keys and values of one step and return those of all steps up to the border, as views."""
        keys, values = self.buffers(layer)
        keys.index_copy_(2, self.place_1, keys_BN1H)
        values.index_copy_(2, self.place_1, values_BN1H)
        return keys[:, :, : self.border], values[:, :, : self.border]

    def advance(self, steps: int) -> None:
        """Count `steps` more steps as past, here and on the device."""
        super().advance(steps)
        self.place_1 += steps


def _joined(stored: KeysValues | None, new: KeysValues, length: int) -> KeysValues:
    if stored is None or length == 0:
        return new
    keys, values = (torch.cat([past[:, :, :length], step], dim=2) for past, step in zip(stored, new, strict=True))
    return keys, values
