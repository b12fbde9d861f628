"""Memory of the process that a step has freed stays for the next one.

A step on a CPU frees its activations at its end, and glibc gives much of that back to the system, whose pages the next
step gets one by one, each filled with zeros. A GPU's memory is kept by torch itself.
"""

from __future__ import annotations

import ctypes
import os

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
# What is larger still comes from the system and goes back to it: else clips of many lengths would leave gaps that
# nothing fits into.
_LARGEST_KEPT = 2**25


def keep_freed_memory() -> bool:
    """Have the process keep what it frees, for good, but for tensors of more than 32 MiB.

    Returns:
        Whether it does: not without glibc, nor where the user has set what malloc does (`MALLOC_...` or
        `GLIBC_TUNABLES` in the environment).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library; the last is Windows'
        return False
    # Either alone would leave the other where it is by default, since malloc then stops to adapt them.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
