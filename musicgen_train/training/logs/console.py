"""What a run says, once, however many processes it has."""

from __future__ import annotations

from lightning.fabric.utilities.rank_zero import rank_zero_only


@rank_zero_only
def say(line: str) -> None:
    """Print a line, on the first rank."""
    print(line, flush=True)
