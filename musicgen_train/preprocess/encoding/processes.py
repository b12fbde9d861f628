"""The processes that decode audio: how many there are, and how they are started.

Nothing here takes long to import, so that they can get ready while the rest of the stage is imported.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import threading
from multiprocessing.context import BaseContext

from musicgen_train.devices import available_cores
from musicgen_train.preprocess.work.ranks import Rank

_MOST = 8
# What decoding imports, including what it imports late.
_PRELOADED = ["musicgen_train.preprocess.encoding.clips", "torchaudio", "soundfile"]


def number_of_processes(workers: int | None, rank: Rank) -> int:
    """Return how many processes decode: as many as the setting `workers` says, or else one per core but one, up to 8.

    The one core is for the process that encodes. Ranks on the same machine divide the cores among them.
    """
    if workers is not None:
        return workers
    return max(0, min(available_cores() // rank.local_size - 1, _MOST))


def prepare_processes() -> None:
    """Start the fork server, which takes longest, without waiting for it."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        process_context()
        multiprocessing.forkserver.ensure_running()


def process_context() -> BaseContext:
    """Return how worker processes are started: by a fork server, or where there is none, by spawning.

    They are not forked from this process: a forked process must not touch CUDA, and threads of this one may hold
    locks. A fork server imports torch once for all workers; a spawned worker does so itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def end_with_parent() -> None:
    """End this worker process as soon as the process that started it ends.

    Nobody stops the workers of a killed process: torch watches the process that a worker was forked from, which is the
    fork server, and the fork server lives as long as its workers.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
