"""Lists the files below a folder, once, and keeps the names on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from musicgen_train.preprocess.scratch import scratch_database


class Listing:
    """The names of all files below a folder, sorted, relative to it and with forward slashes.

    Links to folders are followed after all real folders are listed, so that a file has its own path where it has one.
    A folder that was entered before, by whatever path, is not entered again, so loops end. The names are kept in a
    database on disk, not in memory.

    Args:
        root: the folder.

    Raises:
        OSError: `root` cannot be listed. A folder further down that cannot be listed goes into `unlisted`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unlisted: dict[str, str] = {}
        """The folders that could not be listed, each with the reason."""
        self._database = scratch_database()
        # Names are bytes, since they need not be text; UTF-8 sorts in the order of the characters.
        self._database.execute("CREATE TABLE files (path BLOB PRIMARY KEY, name BLOB, suffix BLOB) WITHOUT ROWID")
        self._database.execute("CREATE TABLE pending (is_link INTEGER, path BLOB, PRIMARY KEY (is_link, path))")
        self._database.execute("CREATE TABLE seen (device TEXT, inode TEXT, PRIMARY KEY (device, inode))")
        os.scandir(root).close()
        self._database.execute("INSERT INTO pending VALUES (0, x'')")
        while (following := self._following()) is not None:
            self._enter(following)

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM files").fetchone()[0])

    def __contains__(self, path: str) -> bool:
        found = self._database.execute("SELECT 1 FROM files WHERE path = ?", (os.fsencode(path),))
        return found.fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        for (path,) in self._database.execute("SELECT path FROM files ORDER BY path"):
            yield os.fsdecode(path)

    def named(self, names: Sequence[str]) -> list[str]:
        """Return the files with these names, in any folder."""
        places = ", ".join("?" * len(names))
        found = self._database.execute(
            f"SELECT path FROM files WHERE name IN ({places}) ORDER BY path", [os.fsencode(name) for name in names]
        )
        return [os.fsdecode(path) for (path,) in found]

    def suffixes(self) -> set[str]:
        """Return the suffixes of all files in lower case, with their dot."""
        return {os.fsdecode(suffix) for (suffix,) in self._database.execute("SELECT DISTINCT suffix FROM files")}

    def ending(self, suffixes: Sequence[str]) -> Iterator[str]:
        """Yield the files with these suffixes, which are given in lower case. Hidden files are left out."""
        places = ", ".join("?" * len(suffixes))
        found = self._database.execute(
            f"SELECT path FROM files WHERE suffix IN ({places}) AND substr(name, 1, 1) != x'2e' ORDER BY path",
            [os.fsencode(suffix) for suffix in suffixes],
        )
        for (path,) in found:
            yield os.fsdecode(path)

    def count_ending(self, suffixes: Sequence[str]) -> int:
        """Return how many files `ending` yields."""
        return sum(1 for _ in self.ending(suffixes))

    def _following(self) -> str | None:
        found = self._database.execute("SELECT is_link, path FROM pending ORDER BY is_link, path LIMIT 1").fetchone()
        if found is None:
            return None
        self._database.execute("DELETE FROM pending WHERE is_link = ? AND path = ?", found)
        return os.fsdecode(found[1])

    def _enter(self, folder: str) -> None:
        try:
            status = os.stat(self.root / folder)
            # Inode numbers may be larger than SQLite's integers, so they are text.
            new = self._database.execute(
                "INSERT OR IGNORE INTO seen VALUES (?, ?)", (str(status.st_dev), str(status.st_ino))
            )
            if not new.rowcount:
                return
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        self._database.execute(
                            "INSERT OR IGNORE INTO pending VALUES (?, ?)", (entry.is_symlink(), os.fsencode(path))
                        )
                    else:
                        suffix = os.path.splitext(entry.name)[1].lower()
                        self._database.execute(
                            "INSERT INTO files VALUES (?, ?, ?)",
                            (os.fsencode(path), os.fsencode(entry.name), os.fsencode(suffix)),
                        )
        except OSError as error:
            self.unlisted[folder] = error.strerror or type(error).__name__


def check_not_empty(folder: Path) -> None:
    """Raise OSError where a folder is gone or empty.

    When a disk is taken away, the folder it was mounted on is left, and is empty.
    """
    with os.scandir(folder) as entries:
        if next(entries, None) is None:
            raise FileNotFoundError(f"{folder} is empty")
