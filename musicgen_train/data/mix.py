"""Mixes several latent datasets: decides which one each draw comes from, and whether they fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from musicgen_train.latents.manifest import Manifest

# Shares are exact if a round of this many draws can represent them, otherwise rounded to one part in this many.
_LONGEST_ROUND = 10_000


@dataclass(kw_only=True)
class MixPart:
    """One dataset of a mix."""

    path: str
    """The latent dataset's folder."""
    weight: float = 1
    """Its share of the clips is this weight over the sum of all."""
    name: str = ""
    """The name under which its losses are logged; empty for the folder's name."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight <= 0:
            raise ValueError(f"data.mix: the weight of {self.path} is {self.weight}; it must be above 0")
        self.name = self.name or Path(self.path).name

    @classmethod
    def from_config(cls, values: object) -> MixPart:
        """Read one entry of `data.mix`.

        Raises:
            ValueError: the entry is not of the form {path: FOLDER, weight: NUMBER}.
        """
        if not isinstance(values, Mapping) or "path" not in values or not set(values) <= {"path", "weight", "name"}:
            raise ValueError(
                f"data.mix: an entry is {{path: FOLDER, weight: NUMBER}}, and may have a name; not {values}"
            )
        weight = values.get("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"data.mix: the weight of {values['path']} is {weight!r}; it must be a number above 0")
        return cls(path=str(values["path"]), weight=weight, name=str(values.get("name") or ""))


class MixOrder:
    """Decides which dataset every draw of an endless stream comes from.

    Draws are made in rounds. A round has each dataset's exact number of draws, spread as evenly as whole draws can be,
    so that any number of consecutive draws has each share to within a few draws. Only the weights decide the order.

    Args:
        weights: one per dataset, above 0.

    Raises:
        ValueError: a weight is so small beside the others that it would never be drawn.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.per_round = _whole_numbers(weights)
        """int64 `(datasets,)`: draws of each dataset in a round."""
        self._round = _spread(self.per_round)
        drawn = self._round[:, None] == np.arange(len(weights))
        self._before = np.concatenate([np.zeros((1, len(weights)), np.int64), np.cumsum(drawn, axis=0)])

    @property
    def shares(self) -> np.ndarray:
        """float64 `(datasets,)`, adding up to 1."""
        return self.per_round / self.per_round.sum()

    def counts(self, draws: np.ndarray | int) -> np.ndarray:
        """How many of the first `draws` draws come from each dataset, int64 `(..., datasets)`."""
        rounds, rest = np.divmod(np.asarray(draws, dtype=np.int64), len(self._round))
        return rounds[..., None] * self.per_round + self._before[rest]


def require_compatible(first: Manifest, first_path: str, other: Manifest, other_path: str) -> None:
    """Check that one model can be trained on both datasets.

    Raises:
        ValueError: their encoders or the shape of their codes and states differ.
    """
    mine, theirs = _features(first), _features(other)
    different = [f"{what} {mine[what]} and {theirs[what]}" for what in mine if mine[what] != theirs[what]]
    if different:
        raise ValueError(
            f"data.mix: {first_path} and {other_path} cannot be trained on together; they differ in "
            f"{'; '.join(different)}. Preprocess one of them again, with the encoders and audio settings of the other"
        )


def _features(manifest: Manifest) -> dict[str, object]:
    return {
        "text encoder": manifest.text_encoder.fingerprint[:12],
        "audio encoder": manifest.audio_encoder.fingerprint[:12],
        "sampling rate": manifest.sampling_rate,
        "frame rate": manifest.frame_rate,
        "codebooks": manifest.num_codebooks,
        "codebook size": manifest.codebook_size,
        "audio channels": manifest.audio_channels,
        "text width": manifest.text_width,
    }


def _whole_numbers(weights: Sequence[float]) -> np.ndarray:
    # repr gives the decimal digits: 0.7 is 7/10 then, not the nearest binary fraction.
    exact = [Fraction(repr(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    round_length = min(_LONGEST_ROUND, math.lcm(*(share.denominator for share in shares)))
    quotas = [share * round_length for share in shares]
    numbers = [math.floor(quota) for quota in quotas]
    # The draws that rounding down leaves over go to the largest remainders.
    by_remainder = sorted(range(len(quotas)), key=lambda number: numbers[number] - quotas[number])
    for number in by_remainder[: round_length - sum(numbers)]:
        numbers[number] += 1
    if not all(numbers):
        raise ValueError(
            f"data.mix: of the weights {', '.join(map(str, weights))} the smallest would be less than one clip in "
            f"{_LONGEST_ROUND}; leave that dataset out, or give it a larger weight"
        )
    return np.array(numbers, dtype=np.int64)


def _spread(numbers: np.ndarray) -> np.ndarray:
    """Order the draws of a round, int64 `(sum of numbers,)`: the dataset furthest behind its share comes next."""
    length = int(numbers.sum())
    drawn = np.zeros_like(numbers)
    order = np.empty(length, dtype=np.int64)
    for draw in range(length):
        order[draw] = np.argmax(numbers * (draw + 1) - drawn * length)
        drawn[order[draw]] += 1
    return order
