"""A track, as every source lists and describes it, and what its name says of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from musicgen_train.preprocess.sources.captions import Description
from musicgen_train.preprocess.work.scratch import scratch_database

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
    order: str = ""
    """That of its candidate."""
    stamp: str = ""
    """That of its candidate when it was read; "" where it does not cover all that was read."""
    key: str = ""
    """See `content_key`."""

    def content_key(self) -> str:
        """SHA-256 of what decides the track's rows, settings and encoders apart: itself, and what is said of it.

        A file counts by its size and time of change, since reading it twice would cost as much as decoding it.
        """
        description = self.description
        about = [self.id, description.captions, description.tags, description.metadata, self.split, self.group]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        audio = hashlib.sha256(self.audio).hexdigest() if isinstance(self.audio, bytes) else file_stamp(self.audio)
        digest.update(audio.encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A track that is known by name and not read yet."""

    id: str
    """`Track.id`."""
    order: str
    """Sorting by it gives the order of the source, also for candidates that different processes listed."""
    stamp: Callable[[], str]
    """Changes whenever what `read` would give does, and costs next to nothing; "" where only reading tells."""
    read: Callable[[], Track]
    """The track with captions, and its audio or where that is."""


class Source(Protocol):
    """Candidates in an order that is always the same."""

    kind: str
    """A word for people."""

    def __iter__(self) -> Iterator[Candidate]: ...

    def count(self) -> int | None:
        """How many candidates there are, where that is known before reading them."""
        ...

    def check_it_is_there(self) -> None:
        """Raise OSError where what is read from is gone as a whole, as a disk that was taken away."""
        ...


class UniqueNames:
    """Names that Arrow can hold and that stay different from each other: a second "a" becomes "a (2)"."""

    def __init__(self) -> None:
        self._database = scratch_database()
        self._database.execute("CREATE TABLE given (name TEXT PRIMARY KEY, times INTEGER) WITHOUT ROWID")

    def of(self, name: str) -> str:
        """The name to use for this one."""
        printable = name.encode("utf-8", "replace").decode("utf-8")
        unique, number = printable, 1
        while not self._take(unique):
            number = max(number, self._times(printable)) + 1
            unique = f"{printable} ({number})"
            self._database.execute("UPDATE given SET times = ? WHERE name = ?", (number, printable))
        return unique

    def _take(self, name: str) -> bool:
        return self._database.execute("INSERT OR IGNORE INTO given VALUES (?, 1)", (name,)).rowcount == 1

    def _times(self, name: str) -> int:
        return int(self._database.execute("SELECT times FROM given WHERE name = ?", (name,)).fetchone()[0])


def file_stamp(path: str | os.PathLike[str]) -> str:
    """A file's size in bytes and time of change in nanoseconds; "-" where there is none that can be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return "-"
    return f"{status.st_size} {status.st_mtime_ns}"


def split_of_folder(relative: str) -> str | None:
    """The split that the first folder of a relative path names."""
    parts = PurePosixPath(relative).parts
    return split_name(parts[0]) if len(parts) > 1 else None


def split_name(name: object) -> str | None:
    """The split that a word stands for, as "valid" for validation; None for any other."""
    return _SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
