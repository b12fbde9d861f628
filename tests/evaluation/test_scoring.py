"""The control test's arithmetic, against brute force and published numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from musicgen_train.demo.demo_listener import DemoListener
from musicgen_train.evaluation.control.scoring import (
    ALL,
    OTHER_CAPTIONS,
    RECORDINGS,
    ROUND_TRIP,
    ControlClip,
    bootstrap,
    control_table,
    followed,
    not_followed,
    wilson,
)
from musicgen_train.evaluation.records import MetricRow, MetricTable

LISTENER = DemoListener()
BY_LABEL = {criterion.label: criterion for criterion in LISTENER.criteria}
ASKED = [
    {"bpm": "100", "key": "C", "mode": "major", "drums": "yes", "style": "jazz"},
    {"bpm": "125", "key": "A", "mode": "minor", "drums": "no", "style": "rock"},
    {"bpm": "62", "key": "C", "mode": "minor", "drums": "yes", "style": "folk"},
    {"bpm": "125", "key": "Bb", "mode": "major", "drums": "yes", "style": "jazz"},
    {"key": "F", "mode": "major", "drums": "no", "style": "ambient"},
]
HEARD = [
    {"bpm": "102.0", "key": "C", "mode": "minor", "drums": "yes", "style": "jazz"},
    {"bpm": "62.7", "key": "C", "mode": "major", "drums": "yes", "style": "rock"},
    {"bpm": "124.2", "key": "G", "mode": "minor", "drums": "yes", "style": "rock"},
    {"bpm": "119.0", "key": "Bb", "mode": "major", "drums": "no", "style": "folk"},
    {},
]


def row_of(table: MetricTable, label: str) -> MetricRow:
    return next(row for row in table.rows if row.label == label)


def clips_of(heard: list[dict[str, str]], **others: list[dict[str, str]]) -> list[ControlClip]:
    sets = {"guidance 3": heard, **{name.replace("_", " "): values for name, values in others.items()}}
    return [
        ControlClip(caption=str(n), asked=ASKED[n], heard={name: sets[name][n] for name in sets}, files={})
        for n in range(len(ASKED))
    ]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        # By hand: 102 is within 4 % of 100; 62.7 is half of 125; 124.2 is double 62; 119 is neither.
        ("tempo", [1, 0, 0, 0, math.nan]),
        ("tempo or octave", [1, 1, 1, 0, math.nan]),
        ("key", [1, 0, 0, 1, 0]),
        # C major has the notes of A minor.
        ("key or relative", [0, 1, 0, 1, 0]),
        ("mode", [0, 0, 1, 1, 0]),
        ("drums", [1, 0, 1, 0, 0]),
        ("style", [1, 1, 0, 0, 0]),
        ("lead", [math.nan] * 5),
    ],
)
def test_what_counts_as_followed(label: str, expected: list[float]) -> None:
    found = followed(BY_LABEL[label], ASKED, HEARD)
    torch.testing.assert_close(found.own, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
    assert found.count == sum(not math.isnan(value) for value in expected)


@pytest.mark.parametrize("label", ["tempo or octave", "key", "mode", "drums", "style"])
def test_other_captions_are_the_mean_over_all_ways_to_exchange_them(label: str) -> None:
    criterion = BY_LABEL[label]
    # The last caption names no tempo, so it can be exchanged with none that does.
    numbers = [n for n in range(5) if all(name in ASKED[n] for name in criterion.needs)]
    shares = []
    for order in itertools.permutations(numbers):
        if any(a == b for a, b in zip(order, numbers, strict=True)):
            continue
        hits = [
            all(name in HEARD[clip] for name in criterion.needs) and criterion.agree(ASKED[caption], HEARD[clip])
            for clip, caption in zip(numbers, order, strict=True)
        ]
        shares.append(sum(hits) / len(hits))
    found = followed(criterion, ASKED, HEARD).others.nanmean().item()
    assert found == pytest.approx(sum(shares) / len(shares))


def test_wilson_intervals() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
    published = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718))
    for hits, count, low, high in published:
        assert wilson(hits, count) == pytest.approx((low, high), abs=6e-5)
    assert wilson(7, 7)[1] == 1


def test_bootstrap_intervals_are_those_of_the_normal_approximation() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    low, high = bootstrap(values)
    error = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - error, abs=0.012)
    assert high == pytest.approx(values.mean().item() + error, abs=0.012)
    # What a clip says nothing of does not count.
    gaps = torch.cat([values, torch.full_like(values, math.nan)], dim=1)
    gaps[:, 1] = torch.where(torch.arange(400) < 399, values[:, 0], math.nan)
    assert bootstrap(gaps) == pytest.approx((low, high), abs=0.01)


def test_a_model_that_follows_is_told_from_one_that_does_not() -> None:
    ignoring = [{"bpm": "125.0", "key": "C", "mode": "major", "drums": "yes", "style": "jazz"}] * 5
    right = [{"bpm": "100.0", **ASKED[n]} for n in range(5)]
    clips = clips_of(right, guidance_1=ignoring, recordings=right)
    table = control_table(clips, ["guidance 1", "guidance 3"], "tests", LISTENER)
    overall = row_of(table, ALL)
    assert overall.values["guidance 3"] == 1
    assert overall.intervals["guidance 3"] == (1, 1)
    # One answer for all captions: it is as right with any.
    for row in table.rows:
        own, others = row.values["guidance 1"], row.values[OTHER_CAPTIONS.format("guidance 1")]
        assert own is not None
        assert own == pytest.approx(others)
    assert row_of(table, "drums").values["guidance 1"] == pytest.approx(3 / 5)
    ignored, followed_well, gain, limits = table.findings
    assert "captions hardly steer it" in ignored
    assert ignored.startswith("Guidance 1:")
    assert "100.0% of what captions ask for is heard" in followed_well
    assert "The right caption is worth +" in followed_well
    assert gain.startswith("Guidance 3 is followed more than guidance 1: +")
    assert limits == "The most that can be heard is 100.0% in the recordings."


def test_the_columns_and_lines_of_the_table() -> None:
    table = control_table(clips_of(HEARD, recordings=HEARD, codec_round_trip=HEARD), ["guidance 3"], "tests", LISTENER)
    assert [column.name for column in table.columns] == [
        "asked", RECORDINGS, ROUND_TRIP, "guidance 3", "guidance 3, other captions",
    ]  # fmt: skip
    # Nobody asked for instruments, brightness or energy.
    assert [row.label for row in table.rows] == [
        ALL, "tempo", "tempo or octave", "key", "key or relative", "mode", "style", "drums",
    ]  # fmt: skip
    assert row_of(table, "tempo").values["asked"] == 4
    assert row_of(table, "tempo").intervals["guidance 3"] == wilson(1, 4)
    # The mean over properties, each by itself: 1/4, 2/5, 2/5, 2/5, 2/5; the lenient ones left out.
    assert row_of(table, ALL).values["guidance 3"] == pytest.approx((1 / 4 + 4 * 2 / 5) / 5)
    low, high = row_of(table, ALL).intervals["guidance 3"]
    assert low < 0.37 < high
    stored = table.as_json()
    assert stored["intervals"]["tempo"]["guidance 3"] == wilson(1, 4)


def test_what_is_not_followed_in_words() -> None:
    assert not_followed(LISTENER.criteria, ASKED[1], HEARD[1]) == [
        "tempo 62.7 in place of 125", "key C in place of A", "mode major in place of minor", "drums yes in place of no",
    ]  # fmt: skip
    assert not_followed(LISTENER.criteria, ASKED[4], {}) == ["silence"]
    assert not_followed(LISTENER.criteria, {"drums": "yes"}, HEARD[0]) == []
