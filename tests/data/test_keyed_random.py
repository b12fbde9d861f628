"""The numbers of a key: the same whoever asks, uniform, and without a trace of each other."""

from __future__ import annotations

import numpy as np
import pytest

from musicgen_train.data.keyed_random import uniform

# Rows of two datasets in three epochs, next to each other as they are in training.
KEYS = np.stack(np.meshgrid(range(2), range(3000), range(3), indexing="ij"), axis=-1).reshape(-1, 3)


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as published, with Python's own integers."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        bits = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        numbers.append(bits ^ bits >> 31)
    return numbers


@pytest.mark.parametrize("seed", [0, 1234, 2**32, 2**70 + 5])
def test_a_keys_numbers_are_those_of_splitmix64(seed: int) -> None:
    keys = [[0, 0, 0], [1, 12345, 6], [3, 2**40, 1]]
    for key, numbers in zip(keys, uniform(seed, np.array(keys), 3).tolist(), strict=True):
        state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        for word in key:
            bits = (state + 0x9E3779B97F4A7C15) % 2**64 ^ word
            # What the generator does with its state once it has moved on.
            (state,) = splitmix64((bits - 0x9E3779B97F4A7C15) % 2**64, 1)
        assert numbers == [(bits >> 11) / 2**53 for bits in splitmix64(state, 3)]


def test_a_key_has_the_same_numbers_alone_and_among_others() -> None:
    together = uniform(5, KEYS, 3)
    for row in (0, 17, len(KEYS) - 1):
        assert np.array_equal(uniform(5, KEYS[row : row + 1], 3)[0], together[row])
    assert uniform(5, KEYS[:0], 3).shape == (0, 3)


def test_numbers_are_uniform_and_those_of_neighbours_unrelated() -> None:
    numbers = uniform(7, KEYS, 3)
    assert len(np.unique(numbers)) == numbers.size
    counts = np.stack([np.histogram(column, bins=50, range=(0, 1))[0] for column in numbers.T])
    expected = len(KEYS) / 50
    # Chi-squared of 49 degrees of freedom: 99.99 % lie below 95.
    assert (((counts - expected) ** 2 / expected).sum(axis=1) < 95).all()
    grid = numbers.reshape(2, 3000, 3, 3)
    pairs = [
        (numbers[:, 0], numbers[:, 1]),
        (grid[0], grid[1]),
        (grid[:, :-1], grid[:, 1:]),
        (grid[:, :, 0], grid[:, :, 1]),
    ]
    other_seed = uniform(8, KEYS, 3)
    for one, other in [*pairs, (numbers, other_seed)]:
        # Four standard deviations.
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(one.size)
