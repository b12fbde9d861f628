"""Loaders whose worker processes live as long as the training process needs them, and no longer."""

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

# They often go to all processes of a run. Which of them end it, and when, is the training process's to say: it needs
# its workers until it has saved, and ends them itself.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


class LastingLoader(DataLoader[Batch]):
    """A loader whose workers are not ended by signals to the whole process group.

    Its arguments are those of torch's; a `worker_init_fn` of one's own has to call `begin_worker`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"worker_init_fn": begin_worker, **kwargs})
        self._ended_at_exit: Callable[[], Any] = lambda: None

    def __iter__(self) -> Any:
        # A worker inherits what is blocked, so no signal can come before it has learned to ignore them.
        with _blocked_signals():
            batches = super().__iter__()
        if isinstance(batches, _MultiProcessingDataLoaderIter) and batches is not self._ended_at_exit():
            # After an error elsewhere, whose traceback keeps the iterator, workers are still there when the process
            # ends. Python asks them to end with a signal that they ignore, and would wait for them for ever.
            self._ended_at_exit = weakref.ref(batches)
            atexit.register(_end_workers, self._ended_at_exit)
        return batches


class TimedLoader(LastingLoader):
    """A loader that knows how long it was waited for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waited = 0.0
        """Seconds that the training loop has spent in getting batches."""

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

    # The place in the data is the data module's to save; these tell Lightning that resuming is taken care of.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    # What arrives in between is delivered after it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(worker: int) -> None:
    """Ignore the signals that end a run, from now on."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_workers(reference: weakref.ref[_MultiProcessingDataLoaderIter]) -> None:
    batches = reference()
    if batches is not None:
        batches._shutdown_workers()  # as torch itself does when the iterator is gone
