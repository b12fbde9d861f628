"""Keeping freed memory in the process, for training on a CPU.

A step frees its activations at its end, and glibc returns much of that memory to the system. The next step then gets
it back page by page, each page filled with zeros first. (On a GPU torch itself keeps freed memory.)
"""

from __future__ import annotations

import ctypes
import os

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
# Bytes. Larger blocks still go back to the system: with clips of many lengths they would leave gaps that nothing fits
# into.
_LARGEST_KEPT = 2**25


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, except for tensors of more than 32 MiB, until it ends.

    Returns:
        False if nothing was changed: without glibc, or if the user has configured malloc (`MALLOC_...` or
        `GLIBC_TUNABLES` in the environment).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library; the last is Windows'
        return False
    # Both are needed: setting one stops malloc from adapting the other, which would then stay at its default.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
