"""The lines that a run prints: once, on the first rank, however many processes it has."""

from __future__ import annotations

import sys

from lightning.fabric.utilities.rank_zero import rank_zero_only


@rank_zero_only
def say(line: str) -> None:
    """Print a line to stdout."""
    print(line, flush=True)


@rank_zero_only
def warn(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)
