"""How far a run is: one line now and then, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Counts what is done and says it every so many seconds.

    Args:
        total: how many tracks there are, if that is known.
        interval: seconds from line to line; 0 says nothing.
        stream: where to; a terminal gets one line that changes, anything else a line each time.
    """

    def __init__(self, total: int | None, interval: float, stream: TextIO | None = None) -> None:
        self._total = total
        self._interval = interval
        self._stream = sys.stderr if stream is None else stream
        self._start = self._said = time.monotonic()
        self._line_open = False
        self.tracks = 0
        self.audio_seconds = 0.0
        self.rejected = 0
        self.reused = 0

    def add(self, *, tracks: int = 0, audio_seconds: float = 0.0, rejected: int = 0, reused: int = 0) -> None:
        """Count, and say it if it is time. Reused tracks were encoded by an earlier run, and count as tracks too."""
        self.tracks += tracks + reused
        self.reused += reused
        self.audio_seconds += audio_seconds
        self.rejected += rejected
        now = time.monotonic()
        if self._interval > 0 and now - self._said >= self._interval:
            self._said = now
            self._say(self.line(now - self._start))

    def line(self, elapsed: float) -> str:
        """What is said after so many seconds."""
        of = "" if self._total is None else f"/{self._total}"
        hours = self.audio_seconds / 3600
        parts = [f"{self.tracks}{of} tracks", f"{hours:.2f} h of audio"]
        if elapsed > 0:
            parts.append(f"{hours / elapsed:.4f} h/s ({self.audio_seconds / elapsed:.0f} x real time)")
        if self.rejected:
            parts.append(f"{self.rejected} rejected")
        if self.reused:
            parts.append(f"{self.reused} from before")
        if self._total and self.tracks > self.reused:
            left = elapsed * max(self._total - self.tracks, 0) / (self.tracks - self.reused)
            parts.append(f"{as_time(left)} left")
        return " | ".join(parts)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def close(self) -> None:
        """End the line on a terminal."""
        if self._line_open:
            self._stream.write("\n")
            self._line_open = False

    def _say(self, line: str) -> None:
        if self._stream.isatty():
            self._stream.write(f"\r{line}\x1b[K")
            self._line_open = True
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()


def as_time(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
