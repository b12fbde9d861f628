"""Which split each track goes to: a whole track, or a whole group of them, never a clip of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from musicgen_train.preprocess.settings import SPLITS, SplitSettings


@dataclass(frozen=True, kw_only=True)
class Membership:
    """What decides a track's split."""

    group: str
    """Tracks of one group share a split: an album, an artist; by default the track itself."""
    stated: str | None
    """What the source says."""


def assign_splits(tracks: Mapping[str, Membership], settings: SplitSettings) -> dict[str, str]:
    """The split of every track.

    What the source states stands (unless `from_source` is off). Every other group goes by the hash of its name with
    the seed, so that tracks which come later move none of the earlier ones. Small corpora are the exception: a split
    with a share above 0 that no hash falls into takes the group with the lowest one.
    """
    shares = {"validation": settings.validation, "test": settings.test}
    splits = {name: track.stated for name, track in tracks.items() if settings.from_source and track.stated in SPLITS}
    places = {track.group: place(track.group, settings.seed) for name, track in tracks.items() if name not in splits}
    by_group = {group: _split_at(place, shares) for group, place in sorted(places.items(), key=lambda item: item[1])}
    for split, share in shares.items():
        left = [group for group, at in by_group.items() if at == "train"]
        if share > 0 and split not in by_group.values() and len(left) > 1:
            by_group[left[0]] = split
    return {name: splits.get(name) or by_group[track.group] for name, track in tracks.items()}


def place(group: str, seed: int) -> float:
    """A group's place in [0, 1), by the SHA-256 of seed and name."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_at(place: float, shares: Mapping[str, float]) -> str:
    edge = 0.0
    for split, share in shares.items():
        edge += share
        if place < edge:
            return split
    return "train"
