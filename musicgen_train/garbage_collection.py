"""What Python's collector of garbage need not look at."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def lasting_objects() -> Iterator[None]:
    """For imports: what is there at the end is no garbage until the process ends, and the collector passes it over.

    They make a million objects, through which it would look again and again: while they go on, in a run, and before
    the process ends. A command is a second shorter without.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
