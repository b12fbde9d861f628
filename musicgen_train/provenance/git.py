"""The state of the code that runs: its commit, and what differs from it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]

# Of a repository on a slow disk.
_SECONDS = 30


def git_state(folder: Path = REPOSITORY) -> dict[str, Any]:
    """Commit of a repository, and how many files differ from it, with a SHA-256 of how the tracked ones do.

    Empty where git is not installed, or the folder is not the top of a repository: an installed package may lie in
    somebody else's.
    """
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel").strip()).resolve() != folder.resolve():
            return {}
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=normal").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    state: dict[str, Any] = {"commit": commit, "changed_files": len(changed)}
    if patch := uncommitted_patch(folder):
        state["diff_sha256"] = digest(patch)
    return state


def uncommitted_patch(folder: Path = REPOSITORY) -> str:
    """How tracked files differ from the commit, for `git apply`; empty where they do not, or git knows nothing.

    New files that git has not been told of are not in it.
    """
    try:
        # Without what a user's own settings would add.
        return _git(folder, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color")
    except (OSError, subprocess.SubprocessError):
        return ""


def digest(patch: str) -> str:
    """The SHA-256 of a patch, hexadecimal."""
    return hashlib.sha256(patch.encode(errors="surrogateescape")).hexdigest()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=True,
        timeout=_SECONDS,
    )
    return done.stdout
