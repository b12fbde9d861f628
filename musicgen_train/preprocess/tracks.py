"""A track, as every source describes it, and what its name says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from musicgen_train.preprocess.captions import Description

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "evaluate": "test",
    "eval": "test",
}


@dataclass(kw_only=True)
class Track:
    """One piece of audio and what is said of it."""

    id: str
    """Path below the input folder with forward slashes, or split and row of a dataset; unique."""
    audio: Path | bytes
    """An encoded audio file."""
    description: Description = field(default_factory=Description)
    split: str | None = None
    """Where the source puts it."""
    group: str = ""
    """What it shares with tracks that must be in the same split, as a file listed twice; by default nothing."""
    problem: str | None = None
    """Why it cannot be used, where the source itself knows."""
    key: str = ""
    """See `content_key`."""

    def content_key(self, content_digest: str) -> str:
        """SHA-256 of what decides the track's rows: itself, what is said of it, and the settings.

        A file counts by its size and time of change, since reading it twice would cost as much as decoding it.
        """
        digest = hashlib.sha256(content_digest.encode())
        about = [self.id, self.description.captions, self.description.tags, self.description.metadata, self.split]
        digest.update(json.dumps(about, sort_keys=True).encode())
        if isinstance(self.audio, bytes):
            digest.update(hashlib.sha256(self.audio).digest())
        else:
            try:
                status = self.audio.stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            except OSError as error:
                digest.update(f"unreadable {error.errno}".encode())
        return digest.hexdigest()


class Source(Protocol):
    """Tracks in an order that is always the same."""

    kind: str
    """A word for people."""

    def __iter__(self) -> Iterator[Track]: ...

    def count(self) -> int | None:
        """How many tracks there are, where that is known before reading them."""
        ...


class UniqueNames:
    """Names that Arrow can hold and that stay different from each other: a second "a" becomes "a (2)"."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def of(self, name: str) -> str:
        """The name to use for this one."""
        printable = name.encode("utf-8", "replace").decode("utf-8")
        count = self._given[printable] = self._given.get(printable, 0) + 1
        return printable if count == 1 else f"{printable} ({count})"


def split_of_folder(relative: str) -> str | None:
    """The split that the first folder of a relative path names."""
    parts = PurePosixPath(relative).parts
    return split_name(parts[0]) if len(parts) > 1 else None


def split_name(name: object) -> str | None:
    """The split that a word stands for, as "valid" for validation; None for any other."""
    return _SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
