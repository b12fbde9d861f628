"""How far a long step is, with its rate and the time left, on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

# A terminal's line is rewritten often, a log gets a new line seldom.
_TERMINAL_SECONDS = 0.2
_LOG_SECONDS = 15.0


class Progress:
    """Counts seconds of audio and says so on stderr; a context manager.

    Args:
        what: what is being done, the start of the line.
        total: seconds of audio in all.
        stream: where to write.
        clock: seconds, in place of the machine's clock.
    """

    def __init__(
        self, what: str, total: float, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what = what
        self.total = total
        self.done = 0.0
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = self._shown = clock()
        self._terminal = self._stream.isatty()

    def advance(self, audio_seconds: float) -> None:
        """Count what was done since the last call."""
        self.done += audio_seconds
        now = self._clock()
        if now - self._shown >= (_TERMINAL_SECONDS if self._terminal else _LOG_SECONDS):
            self._shown = now
            self._write(self.line(), last=False)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def rate(self) -> float:
        """Seconds of audio per second; 0 before there is any."""
        return self.done / self.elapsed if self.elapsed > 0 else 0.0

    def line(self) -> str:
        """`sampling: 20 of 80 s of audio, 2.5 s of audio per second, 0:24 left`."""
        text = f"{self.what}: {self.done:.0f} of {self.total:.0f} s of audio"
        if self.rate > 0:
            left = max(0.0, self.total - self.done) / self.rate
            text += f", {self.rate:.3g} s of audio per second, {minutes(left)} left"
        return text

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write(
                f"{self.what}: {self.done:.0f} s of audio in {minutes(self.elapsed)}, {self.rate:.3g} s of audio per "
                "second",
                last=True,
            )
        elif self._terminal:
            self._stream.write("\n")

    def _write(self, text: str, *, last: bool) -> None:
        if self._terminal:
            # Back to the start of the line, and clear what is left of the old one.
            self._stream.write(f"\r{text}\x1b[K" + "\n" * last)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def minutes(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
