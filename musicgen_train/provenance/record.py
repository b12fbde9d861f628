"""Records the process that made a result."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import Any

from musicgen_train.files import write_json
from musicgen_train.provenance.git import digest, git_state, uncommitted_patch
from musicgen_train.provenance.machine import machine, versions

RECORD_NAME = "provenance.json"
# The name of a patch ends with the beginning of its SHA-256; the record has all of it.
PATCH_PREFIX = "uncommitted-"


def record() -> dict[str, Any]:
    """Command, time, state of the code, versions and machine, as plain values for a JSON file."""
    return {
        "command": command(),
        "started": now(),
        "git": git_state(),
        "versions": versions(),
        "machine": machine(),
    }


def command() -> str:
    """The command line of this process, quoted for a shell, without the settings that `launch` adds for Hydra."""
    return shlex.join(word for word in sys.argv if not word.startswith("hydra"))


def now() -> str:
    """The time in UTC as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_record(folder: Path) -> None:
    """Write the record of this process into a folder that exists, as `provenance.json`."""
    write_json(folder / RECORD_NAME, record())


def write_patch(folder: Path) -> None:
    """Write the difference of the code to its commit into `uncommitted-*.patch`, if there is one."""
    if patch := uncommitted_patch():
        path = folder / f"{PATCH_PREFIX}{digest(patch)[:12]}.patch"
        path.write_text(patch, encoding="utf-8", errors="surrogateescape")
