"""Random draws that are the same on every machine and with every version of numpy.

numpy guarantees stable streams for its bit generators, not for `Generator`'s methods, so draws are made from raw bits
here. Every purpose has its own stream, named by a key, so that a draw added to one does not change the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Option = TypeVar("_Option")

Signal = npt.NDArray[np.float64]


class Draws:
    """A stream of draws.

    Args:
        key: whole numbers and words that name the stream; equal keys give equal draws.
    """

    def __init__(self, *key: int | str) -> None:
        self._key = key
        digest = hashlib.sha256(repr(key).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest, "little"))

    def of(self, *purpose: int | str) -> Draws:
        """Return the stream for a purpose; it does not depend on what was drawn from this one."""
        return Draws(*self._key, *purpose)

    def units(self, count: int) -> Signal:
        """`count` uniform numbers from [0, 1), float64 `(count,)`."""
        bits = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        # The upper 53 bits fill a double's significand exactly.
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def noise(self, count: int) -> Signal:
        """Uniform white noise between -1 and 1, float64 `(count,)`."""
        return self.units(count) * 2 - 1

    def uniform(self, low: float, high: float) -> float:
        """A uniform number from [low, high)."""
        return low + (high - low) * float(self.units(1)[0])

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.uniform(0, high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0, 1) < probability

    def choice(self, options: Sequence[_Option]) -> _Option:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def weighted(self, weights: Mapping[_Option, float]) -> _Option:
        """One of the keys, with a probability proportional to its weight."""
        point = self.uniform(0, sum(weights.values()))
        for option, weight in weights.items():
            point -= weight
            if point < 0:
                return option
        return option

    def shuffled(self, options: Sequence[_Option]) -> list[_Option]:
        """The options in random order."""
        order = np.argsort(self.units(len(options)), kind="stable")
        return [options[i] for i in order]
