"""Splits: whole tracks are divided, and tracks that are added move no others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from musicgen_train.preprocess.dataset.splits import Membership, SplitRule, place, split_group
from musicgen_train.preprocess.settings import SplitSettings


def assign_splits(members: dict[str, Membership], settings: SplitSettings) -> dict[str, str]:
    rule = SplitRule(members.values(), settings)
    return {name: rule.split_of(member) for name, member in members.items()}


def tracks(number: int, **stated: str) -> dict[str, Membership]:
    return {f"t{index}": Membership(group=f"t{index}", stated=stated.get(f"t{index}")) for index in range(number)}


def test_shares_are_those_asked_for() -> None:
    splits = list(assign_splits(tracks(4000), SplitSettings(validation=0.2, test=0.1)).values())
    # Four standard deviations of 4000 draws.
    assert abs(splits.count("validation") / 4000 - 0.2) < 0.026
    assert abs(splits.count("test") / 4000 - 0.1) < 0.019


@given(st.integers(30, 80), st.integers(1, 40), st.integers(0, 5))
def test_later_tracks_move_no_earlier_one(number: int, more: int, seed: int) -> None:
    settings = SplitSettings(validation=0.3, seed=seed)
    before, after = (assign_splits(tracks(count), settings) for count in (number, number + more))
    assert {name: after[name] for name in before} == before


def test_the_seed_draws_another_division() -> None:
    first, second = (assign_splits(tracks(50), SplitSettings(validation=0.5, seed=seed)) for seed in (0, 1))
    assert first != second


def test_small_corpora_get_a_validation_track() -> None:
    for number in range(2, 9):
        splits = assign_splits(tracks(number), SplitSettings(validation=1e-9))
        lowest = min(splits, key=lambda name: place(name, 0))
        assert [name for name, split in splits.items() if split == "validation"] == [lowest]
    three = assign_splits(tracks(3), SplitSettings(validation=1e-9, test=1e-9))
    assert sorted(three.values()) == ["test", "train", "validation"]
    assert set(assign_splits(tracks(1), SplitSettings()).values()) == {"train"}
    assert set(assign_splits(tracks(9), SplitSettings(validation=0.0)).values()) == {"train"}


def test_what_the_source_states_stands() -> None:
    given_tracks = tracks(4, t0="test", t1="validation", t2="train", t3="train")
    stated = {"t0": "test", "t1": "validation", "t2": "train", "t3": "train"}
    assert assign_splits(given_tracks, SplitSettings()) == stated
    assert assign_splits(given_tracks, SplitSettings(from_source=False)) == assign_splits(tracks(4), SplitSettings())


def test_tracks_of_a_group_stay_together() -> None:
    members = {f"t{index}": Membership(group=f"album={index % 7}", stated=None) for index in range(70)}
    splits = assign_splits(members, SplitSettings(validation=0.4))
    by_group: dict[str, set[str]] = {}
    for name, split in splits.items():
        by_group.setdefault(members[name].group, set()).add(split)
    assert all(len(found) == 1 for found in by_group.values())
    # The group's name decides, not those of its tracks: a new track goes where its album is.
    assert by_group == {g: {"validation" if place(g, 0) < 0.4 else "train"} for g in by_group}
    assert set(splits.values()) == {"train", "validation"}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.floats(0, 0.9), st.floats(0, 0.09))
def test_the_rule_is_that_of_all_groups_sorted(groups: list[int], validation: float, test: float) -> None:
    """Compare with brute force over all sorted groups. Groups come in any order, and any number of times."""
    settings = SplitSettings(validation=validation, test=test)
    members = {f"t{index}": Membership(group=f"g{group}", stated=None) for index, group in enumerate(groups)}
    expected: dict[str, str] = {}
    for group in sorted({f"g{group}" for group in groups}, key=lambda name: place(name, 0)):
        at = place(group, 0)
        expected[group] = "validation" if at < validation else "test" if at < validation + test else "train"
    for split, share in (("validation", validation), ("test", test)):
        left = [group for group, of in expected.items() if of == "train"]
        if share > 0 and split not in expected.values() and len(left) > 1:
            expected[left[0]] = split
    found = assign_splits(members, settings)
    assert found == {name: expected[member.group] for name, member in members.items()}


def test_a_field_names_the_group() -> None:
    assert split_group("a.wav", {"album": "Blue"}, "album") == "album=Blue"
    assert split_group("a.wav", {"album": ""}, "album") == split_group("a.wav", {}, "album") == "a.wav"
    assert split_group("a.wav", {"album": "Blue"}, None) == "a.wav"
