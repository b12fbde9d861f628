"""Loaders whose worker processes live exactly as long as the training process needs them."""

from __future__ import annotations

import atexit
import contextlib
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from musicgen_train.data.batch import Batch

# These signals often go to all processes of a run. Workers ignore them: the training process needs its workers until it
# has saved a checkpoint, and ends them itself.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


class LastingLoader(DataLoader[Batch]):
    """A loader whose workers ignore signals to the whole process group.

    It takes torch's arguments; a `worker_init_fn` must call `begin_worker`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"worker_init_fn": begin_worker, **kwargs})
        self._ended_at_exit: Callable[[], Any] = lambda: None

    def __iter__(self) -> Any:
        # A worker inherits blocked signals, so that none arrives before it ignores them.
        with _blocked_signals():
            batches = super().__iter__()
        if isinstance(batches, _MultiProcessingDataLoaderIter) and batches is not self._ended_at_exit():
            # An error elsewhere keeps the iterator alive in its traceback, and with it the workers until the process
            # ends. Python then terminates them by a signal that they ignore, and would wait for them for ever.
            self._ended_at_exit = weakref.ref(batches)
            atexit.register(_end_workers, self._ended_at_exit)
        return batches


class TimedLoader(LastingLoader):
    """A loader that measures how long the training loop waits for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waited = 0.0
        """Seconds that the training loop has waited for batches."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            begin = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - begin
            yield batch

    # The data module saves the place in the data; these two tell Lightning that resuming is taken care of.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    # A signal that arrives meanwhile is delivered afterwards.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(worker: int) -> None:
    """Ignore the signals that end a run, in a worker process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_workers(reference: weakref.ref[_MultiProcessingDataLoaderIter]) -> None:
    batches = reference()
    if batches is not None:
        batches._shutdown_workers()  # as torch itself does when the iterator is gone
