"""Which dataset of a mix each draw comes from, and which datasets may be mixed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_latents import ClipSpec, write_latents

from musicgen_train.data.mix import MixOrder, MixPart, require_compatible
from musicgen_train.latents.manifest import Manifest


@pytest.mark.parametrize(
    ("weights", "per_round"),
    [
        ([0.7, 0.3], [7, 3]),
        ([1], [1]),
        ([2, 6], [1, 3]),
        ([0.1, 0.1, 0.1], [1, 1, 1]),
        ([1, 0.5, 0.25], [4, 2, 1]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([0.33337, 0.66663], [3334, 6666]),
    ],
)
def test_weights_are_kept_as_whole_numbers(weights: list[float], per_round: list[int]) -> None:
    assert MixOrder(weights).per_round.tolist() == per_round


@given(
    weights=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    draws=st.integers(0, 700),
)
@settings(max_examples=60, deadline=None)
def test_counts_equal_drawing_one_by_one(weights: list[int], draws: int) -> None:
    """Brute force with fractions: every draw is of the dataset that is furthest behind what it should have."""
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    drawn = [0] * len(weights)
    for number in range(1, draws + 1):
        behind = [share * number - count for share, count in zip(shares, drawn, strict=True)]
        drawn[behind.index(max(behind))] += 1
    counts = MixOrder(weights).counts(draws)
    assert counts.tolist() == drawn
    assert all(abs(count - share * draws) < len(weights) for count, share in zip(drawn, shares, strict=True))


def test_counts_of_many_at_once() -> None:
    mix = MixOrder([0.7, 0.3])
    assert mix.counts(np.array([0, 10, 25, 10**12])).tolist() == [[0, 0], [7, 3], [18, 7], [7 * 10**11, 3 * 10**11]]
    assert mix.shares.tolist() == [0.7, 0.3]


def test_a_weight_that_would_never_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="the smallest would be less than one clip in 10000"):
        MixOrder([1, 1e-6])


def test_entries_of_the_config() -> None:
    part = MixPart.from_config({"path": "some/OWN", "weight": 2})
    assert (part.path, part.weight, part.name) == ("some/OWN", 2, "OWN")
    assert MixPart.from_config({"path": "a", "name": "b"}).name == "b"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("LATENTS", r"an entry is \{path: FOLDER, weight: NUMBER\}, and may have a name; not LATENTS"),
        ({"weight": 1}, r"an entry is \{path: FOLDER"),
        ({"path": "a", "wieght": 1}, r"an entry is \{path: FOLDER"),
        ({"path": "a", "weight": 0}, "the weight of a is 0; it must be above 0"),
        ({"path": "a", "weight": float("nan")}, "the weight of a is nan"),
        ({"path": "a", "weight": "much"}, "the weight of a is 'much'; it must be a number above 0"),
    ],
)
def test_entries_that_say_something_else_are_refused(entry: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        MixPart.from_config(entry)


def test_datasets_of_other_encoders_are_refused(composite: Path, tmp_path: Path) -> None:
    one = Manifest.load(write_latents(tmp_path / "one", composite, [ClipSpec(9)]))
    require_compatible(one, "ONE", Manifest.load(write_latents(tmp_path / "same", composite, [ClipSpec(7)])), "SAME")
    changes: dict[str, Any] = {"sampling_rate": 640, "num_codebooks": 8}
    other = Manifest.load(write_latents(tmp_path / "other", composite, [ClipSpec(9)], **changes))
    other.text_encoder.fingerprint = "f" * 64
    mine = one.text_encoder.fingerprint[:12]
    problem = (
        f"ONE and OTHER cannot be trained on together; they differ in text encoder {mine} and ffffffffffff; "
        "sampling rate 320 and 640; codebooks 4 and 8. Preprocess one of them again"
    )
    with pytest.raises(ValueError, match=problem):
        require_compatible(one, "ONE", other, "OTHER")
