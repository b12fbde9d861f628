"""Temporary tables on disk, for lists that grow with the corpus: names, captions, results."""

from __future__ import annotations

import sqlite3

_CACHE_KIB = 16 * 1024


def scratch_database() -> sqlite3.Connection:
    """Open an empty database that only this process sees, in the system's folder for temporary files.

    It is gone when it is closed or the process ends. Up to 16 MiB of it are cached in memory.
    """
    # SQLite gives a database without a name a private file, which is deleted however the process ends.
    database = sqlite3.connect("", check_same_thread=False)
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    database.execute("PRAGMA journal_mode = OFF")
    return database
