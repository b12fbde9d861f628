"""Signals that ask a run to stop: Ctrl-C, SIGTERM, and SIGUSR1, which SLURM sends before a job's time is over."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# EX_TEMPFAIL of sysexits.h, "try again later". An error has another code, so that a job script can tell them apart.
STOPPED_EXIT_CODE = 75
INTERRUPTED_EXIT_CODE = 130


class RunStopped(SystemExit):
    """Ends a run that was asked to stop and has saved; the same command with `resume=auto` resumes it.

    The exit code is 75 on the first rank and 0 on the others: launchers take a rank with an error code for a broken run
    and kill the rest.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(STOPPED_EXIT_CODE if rank == 0 else 0)


class StopSignals:
    """Notes in `received` that this process was asked to stop, so that its loop can stop between two steps.

    A second Ctrl-C ends the process at once, with exit code 130.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process = os.getpid()

    def listen(self) -> None:
        """Handle the signals; those that the process ignores, as under `nohup`, stay ignored."""
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def let_go(self) -> None:
        """Restore the default handling of the signals, once there is nothing more to save."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            if signal.getsignal(number) == self._receive:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # Worker processes inherit this handler; they end with the training process.
        if os.getpid() != self._process:
            return
        if number == signal.SIGINT and self.received == signal.SIGINT:
            _say("stopped at once; what was saved before is intact")
            os._exit(INTERRUPTED_EXIT_CODE)
        if self.received is None:
            self.received = signal.Signals(number)
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            _say(f"{self.received.name}: saving after this step, then stopping{again}")


def _say(line: str) -> None:
    # print() is not reentrant, and the signal may have come in the middle of one.
    os.write(2, f"\n{line}\n".encode())
