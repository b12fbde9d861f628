"""Draws random numbers from keys, many keys at once; a key gives the same numbers in any process, at any time."""

from __future__ import annotations

import numpy as np

# The constants of splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(seed: int, keys: np.ndarray, count: int) -> np.ndarray:
    """Draw numbers from 0 up to, but not including, 1.

    A key's numbers are the first ones of a splitmix64 generator, whose state is the key, mixed in word by word. numpy's
    generators have better streams, but take 15 us to make, for each key.

    Args:
        seed: any integer from 0.
        keys: integers from 0, `(N, words)`.
        count: numbers per key.

    Returns:
        float64 `(N, count)`.
    """
    state_N = np.full(len(keys), np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    for word_N in keys.astype(np.uint64).T:
        state_N = _mixed(state_N + np.uint64(_GAMMA) ^ word_N)
    # Multiples of gamma, modulo 2^64.
    steps_C = np.array([_GAMMA * step % 2**64 for step in range(1, count + 1)], dtype=np.uint64)
    bits_NC = _mixed(state_N[:, None] + steps_C)
    return (bits_NC >> np.uint64(11)) * 2.0**-53


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Mix 64 bits as splitmix64 does; the mapping is one to one."""
    bits = (bits ^ bits >> np.uint64(30)) * _FIRST
    bits = (bits ^ bits >> np.uint64(27)) * _SECOND
    return bits ^ bits >> np.uint64(31)
