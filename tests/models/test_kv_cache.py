"""The attention cache against plain concatenation."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from musicgen_train.models.kv_cache import KVCache

BATCH, HEADS, WIDTH = 2, 3, 4


def steps_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, BATCH, HEADS, count, WIDTH).unbind()
    return keys, values


def test_what_is_appended_stands_one_after_the_other_beyond_the_capacity_too() -> None:
    cache = KVCache(num_layers=2, capacity=3)
    past = [steps_of(count) for count in (2, 1, 1, 30)]
    for new in past:
        for layer in range(2):
            keys, values = cache.append(layer, new[0] + layer, new[1] - layer)
        cache.advance(new[0].shape[2])
    assert cache.get_seq_length() == 34
    assert_close(keys, torch.cat([step[0] for step in past], dim=2) + 1)
    assert_close(values, torch.cat([step[1] for step in past], dim=2) - 1)
    assert_close(cache[0][0], torch.cat([step[0] for step in past], dim=2))


def test_what_is_written_into_the_buffers_is_what_was_appended() -> None:
    cache = KVCache(num_layers=1, capacity=2)
    first, second = steps_of(2), steps_of(1)
    cache.append(0, *first)
    cache.advance(2)
    cache.reserve(5)
    keys, values = cache.buffers(0)
    assert keys.shape[2] >= 5
    keys[:, :, 2:3], values[:, :, 2:3] = second
    cache.advance(1)
    assert_close(cache[0], tuple(torch.cat(both, dim=2) for both in zip(first, second, strict=True)))


def test_reserving_what_is_there_copies_nothing() -> None:
    cache = KVCache(num_layers=1, capacity=8)
    cache.append(0, *steps_of(2))
    cache.advance(2)
    before = cache.buffers(0)[0].data_ptr()
    cache.reserve(8)
    assert cache.buffers(0)[0].data_ptr() == before
