"""Progress of a long step on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import sys
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

_TERMINAL_SECONDS = 0.2


class Progress:
    """Counts what is done and shows it with the rate and the time left; a context manager.

    Args:
        name: what is being done, such as `sampling`.
        total: how much there is to do; None if that is not known.
        unit: what is counted, such as `tracks` or `s of audio`.
        log_seconds: the least time between two lines where the stream is no terminal; 0 shows nothing anywhere.
        stream: where to write, standard error by default.
    """

    def __init__(
        self, name: str, total: float | None, unit: str, *, log_seconds: float = 30.0, stream: TextIO | None = None
    ) -> None:
        stream = stream or sys.stderr
        terminal = stream.isatty()
        count, time = f"{{n:.0f}} {unit}", "{elapsed}"
        if total is not None:
            bar = "{percentage:3.0f}%" + ("|{bar}|" if terminal else "")
            count, time = f"{bar} {{n:.0f}}/{{total:.0f}} {unit}", "{elapsed}<{remaining}"
        self._bar = tqdm(
            desc=name,
            total=total,
            unit=f" {unit}",
            file=stream if terminal else _Lines(stream),
            bar_format=f"{{desc}}: {count} [{time}, {{rate_noinv_fmt}}{{postfix}}]",
            mininterval=_TERMINAL_SECONDS if terminal else log_seconds,
            miniters=0,
            smoothing=0,
            dynamic_ncols=terminal,
            # A disabled bar would not count.
            delay=0 if log_seconds > 0 else math.inf,
        )

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count what was done since the last call.

        Args:
            amount: how much that is, in the unit.
            note: more to say from now on, such as `2 rejected`; an empty one leaves the last.
        """
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._update(amount)

    def skip(self, amount: float = 1) -> None:
        """Count what an earlier run did: it is done, but took no time, so the rate leaves it out."""
        self._bar.initial += amount
        self._update(amount)

    @property
    def done(self) -> float:
        """The amount done so far, in the unit, with what was skipped."""
        return self._bar.n

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._bar.format_dict["elapsed"]

    def close(self) -> None:
        """Show the last state and end the line."""
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _update(self, amount: float) -> None:
        if self._bar.total is not None:
            # The total may be an estimate; tqdm forgets one that is passed.
            self._bar.total = max(self._bar.total, self._bar.n + amount)
        self._bar.update(amount)


class _Lines:
    """A stream for tqdm that makes a line of every state it draws, in place of going back to the line's start."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        words = text.split()
        if words:
            self._stream.write(" ".join(words) + "\n")

    def flush(self) -> None:
        self._stream.flush()
