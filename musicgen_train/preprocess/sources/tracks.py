"""Tracks and the sources that list them, whatever the kind of source."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from musicgen_train.preprocess.scratch import scratch_database
from musicgen_train.preprocess.sources.captions import Description

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
    """One piece of audio and what the source says of it."""

    id: str
    """The path below the input folder with forward slashes, or split and row of a dataset. It is unique."""
    audio: Path | bytes
    """An audio file, by its path or its content."""
    description: Description = field(default_factory=Description)
    split: str | None = None
    """The split that the source states."""
    group: str = ""
    """A name shared by tracks that must be in the same split, such as a file that is listed twice; "" for none."""
    problem: str | None = None
    """Why the track cannot be used, where the source already knows."""
    order: str = ""
    """`Candidate.order`."""
    stamp: str = ""
    """`Candidate.stamp` just before the track was read; "" where it does not cover everything that was read."""
    key: str = ""
    """`content_key`, once it is worked out."""

    def content_key(self) -> str:
        """Return the SHA-256 of what decides the track's rows apart from settings and encoders: audio and description.

        A file counts by its size and modification time, since hashing its bytes would cost as much as decoding it.
        """
        description = self.description
        about = [self.id, description.captions, description.tags, description.metadata, self.split, self.group]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        audio = hashlib.sha256(self.audio).hexdigest() if isinstance(self.audio, bytes) else file_stamp(self.audio)
        digest.update(audio.encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A track that is listed by name and not read yet."""

    id: str
    """`Track.id`."""
    order: str
    """The sort key for the order of the source; it is the same in every process that lists the source."""
    stamp: Callable[[], str]
    """Changes whenever the result of `read` would, and is cheap; "" where only reading can tell."""
    read: Callable[[], Track]
    """Reads the track: its captions, and its audio or the path of it."""


class Source(Protocol):
    """Something that lists candidates, always in the same order."""

    kind: str
    """A word for messages, such as `folder`."""

    def __iter__(self) -> Iterator[Candidate]: ...

    def count(self) -> int | None:
        """Return the number of candidates; None where only reading them all would tell."""
        ...

    def check_it_is_there(self) -> None:
        """Raise OSError where the whole input is gone, for example because a disk was taken away."""
        ...


class UniqueNames:
    """Makes names unique and valid UTF-8, as Arrow needs them: a second "a" becomes "a (2)"."""

    def __init__(self) -> None:
        self._database = scratch_database()
        self._database.execute("CREATE TABLE given (name TEXT PRIMARY KEY, times INTEGER) WITHOUT ROWID")

    def of(self, name: str) -> str:
        """Return the name to use in place of this one."""
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
    """Return a file's size in bytes and modification time in nanoseconds; "-" where it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return "-"
    return f"{status.st_size} {status.st_mtime_ns}"


def split_of_folder(relative: str) -> str | None:
    """Return the split that the first folder of a relative path names; None where it names none."""
    parts = PurePosixPath(relative).parts
    return split_name(parts[0]) if len(parts) > 1 else None


def split_name(name: object) -> str | None:
    """Return the split that a word stands for, such as validation for "valid"; None for any other word."""
    return _SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None


def problem_text(error: Exception, root: Path) -> str:
    """Return an error's message as one line, with the paths in it relative to the input folder."""
    return " ".join(str(error).replace(f"{root}{os.sep}", "").split())
