"""The processes that decode audio: how many, and how they come to be.

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
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.work.ranks import Rank

_MOST = 8
# What decoding imports, also what it imports late.
_PRELOADED = ["musicgen_train.preprocess.encoding.clips", "torchaudio", "soundfile"]


def number_of_processes(settings: PreprocessSettings, rank: Rank) -> int:
    """Decoding takes a core per 100 or so times real time; the process that encodes needs one for itself."""
    if settings.workers is not None:
        return settings.workers
    return max(0, min(available_cores() // rank.local_size - 1, _MOST))


def prepare_processes() -> None:
    """Begin what takes longest about starting them, and do not wait for it."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        process_context()
        multiprocessing.forkserver.ensure_running()


def process_context() -> BaseContext:
    """How they are started.

    Not by forking: a forked process must not touch CUDA, and threads of this one may hold locks. A fork server imports
    torch once for all of them; where there is none, each does so itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def end_with_parent() -> None:
    """Have this process end when the one that started it does.

    Of a killed process nobody tells its workers to stop. torch looks at the process a worker was forked from, which is
    the fork server, and that lives as long as its workers.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
