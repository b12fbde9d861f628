"""Memory that batches travel in, from the worker that fills it to the process that trains, used again and again.

torch shares new memory for every tensor that a worker sends: it is mapped and cleared page by page on both sides, and
its file descriptor asked for over a socket, which took three quarters of the time of reading (`docs/benchmarks.md`).
Here a block is sent once; after that only its name is, and a byte in it says whether it is in use.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

import torch

# In front of the bytes that are for use: the first byte is 1 from when a worker takes the block until its batch has
# been copied out of it. 64, so that what follows begins with a cache line.
_HEADER = 64
# A longer batch than any before needs a new block; with some room it is not every one of them.
_ROOM = 1.25

BlockName = tuple[int, int]
"""Process that made it, and its number there."""


class SharedBlock:
    """A block of a worker process; it is pickled as its name, and the first time with its memory.

    Args:
        size: bytes for use.
    """

    _numbers = itertools.count()

    def __init__(self, size: int) -> None:
        self.name: BlockName = (os.getpid(), next(self._numbers))
        self._sent = False
        shared = torch.UntypedStorage._new_shared(_HEADER + size)
        self._memory = torch.empty(0, dtype=torch.uint8).set_(shared)

    @property
    def bytes(self) -> torch.Tensor:
        """uint8 `(size,)`."""
        return self._memory[_HEADER:]

    @property
    def busy(self) -> bool:
        """Whether what was last written into it has not been taken out yet."""
        return bool(self._memory[0])

    @busy.setter
    def busy(self, busy: bool) -> None:
        self._memory[0] = int(busy)

    def __reduce__(self) -> tuple[Callable[..., SharedBlock], tuple[Any, ...]]:
        memory = None if self._sent else self._memory
        self._sent = True
        return _received, (self.name, memory)


_own: list[SharedBlock] = []
"""The blocks that this process, a worker, has made."""
_received_from: dict[BlockName, SharedBlock] = {}
"""The blocks that this process has got from its workers."""
_receiving = threading.Lock()
"""Where batches are pinned, each loader has a thread that receives them."""


def take_block(size: int) -> SharedBlock:
    """A block of at least so many bytes that nothing is in; it is busy from now on.

    A worker has as many as batches of it are on their way at once.
    """
    block = next((block for block in _own if not block.busy and len(block.bytes) >= size), None)
    if block is None:
        # Those that have become too small go first.
        _own[:] = [block for block in _own if block.busy or len(block.bytes) >= size]
        block = SharedBlock(int(size * _ROOM))
        _own.append(block)
    block.busy = True
    return block


def _received(name: BlockName, memory: torch.Tensor | None) -> SharedBlock:
    with _receiving:
        if memory is None:
            return _received_from[name]
        _forget_dead_workers()
        block = SharedBlock.__new__(SharedBlock)
        block.name, block._sent, block._memory = name, True, memory
        _received_from[name] = block
        return block


def _forget_dead_workers() -> None:
    alive = {worker.pid for worker in multiprocessing.active_children()}
    for name in [name for name in _received_from if name[0] not in alive]:
        del _received_from[name]
