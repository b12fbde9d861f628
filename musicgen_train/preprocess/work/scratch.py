"""Tables on disk for what would grow with the corpus in memory: names, captions, what is done."""

from __future__ import annotations

import sqlite3

_CACHE_KIB = 16 * 1024


def scratch_database() -> sqlite3.Connection:
    """An empty database of this process alone, in the folder for temporary files; gone when it is closed.

    Up to 16 MiB of it are kept in memory.
    """
    # The empty name is SQLite's for a private file that is deleted on closing, whatever ends the process.
    database = sqlite3.connect("", check_same_thread=False)
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    database.execute("PRAGMA journal_mode = OFF")
    return database
