"""Divides tracks into splits. A track, or a whole group of tracks, goes to one split with all its clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from musicgen_train.preprocess.settings import SPLITS, SplitSettings


@dataclass(frozen=True, kw_only=True)
class Membership:
    """What decides a track's split."""

    group: str
    """Tracks of one group share a split, such as those of an album; by default a track is a group of its own."""
    stated: str | None
    """The split that the source states, if any."""


class SplitRule:
    """Decides the split of every track. Memory does not grow with their number.

    A split that the source states is kept (unless `from_source` is off). The split of any other group follows from the
    hash of its name and the seed, so tracks that are added later move none of the earlier ones. Small corpora are the
    exception: a split with a share above 0 that would stay empty takes the group of the training split with the lowest
    place, as long as one is left for training.

    Args:
        members: all tracks, in any order.
        settings: shares and seed.
    """

    def __init__(self, members: Iterable[Membership], settings: SplitSettings) -> None:
        self._settings = settings
        self._shares = {"validation": settings.validation, "test": settings.test}
        # An empty split takes a group of the training split, which keeps at least one.
        wanted = len(self._shares) + 1
        lowest: dict[str, float] = {}
        filled: set[str] = set()
        for member in members:
            if self._stated(member) is not None:
                continue
            at = place(member.group, settings.seed)
            split = _split_at(at, self._shares)
            filled.add(split)
            if split == "train":
                lowest[member.group] = at
                if len(lowest) > wanted:
                    del lowest[max(lowest, key=lambda group: lowest[group])]
        left = sorted(lowest, key=lambda group: lowest[group])
        self._moved: dict[str, str] = {}
        for split, share in self._shares.items():
            if share > 0 and split not in filled and len(left) > 1:
                self._moved[left.pop(0)] = split

    def split_of(self, member: Membership) -> str:
        """Return the split of one of the tracks."""
        stated = self._stated(member)
        if stated is not None:
            return stated
        at = place(member.group, self._settings.seed)
        return self._moved.get(member.group) or _split_at(at, self._shares)

    def _stated(self, member: Membership) -> str | None:
        return member.stated if self._settings.from_source and member.stated in SPLITS else None


def split_group(group: str, metadata: Mapping[str, Any], group_by: str | None) -> str:
    """Return the group that decides a track's split: a field of its metadata where it has it, else its own group."""
    value = metadata.get(group_by) if group_by is not None else None
    return group if value in (None, "", []) else f"{group_by}={value}"


def place(group: str, seed: int) -> float:
    """Return a group's place in [0, 1), from the SHA-256 of seed and name."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_at(place: float, shares: Mapping[str, float]) -> str:
    edge = 0.0
    for split, share in shares.items():
        edge += share
        if place < edge:
            return split
    return "train"
