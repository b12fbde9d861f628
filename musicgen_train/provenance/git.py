"""Finds the commit of the code that runs, and how the code differs from it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]

# Git on a slow disk may take this long.
_TIMEOUT_SECONDS = 30


def git_state(folder: Path = REPOSITORY) -> dict[str, Any]:
    """The commit of a repository, the number of files that differ from it, and a SHA-256 of the difference.

    Empty if git is not installed, or if the folder is not the top of a repository: an installed package may lie inside
    the repository of another project.
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
    """The difference of tracked files to the commit, for `git apply`; empty if there is none, or no repository.

    Untracked files are not in it.
    """
    try:
        # A user's git settings may add colours or call another diff program.
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
        timeout=_TIMEOUT_SECONDS,
    )
    return done.stdout
