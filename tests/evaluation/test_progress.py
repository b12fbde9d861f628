"""The line that says how far a step is."""

from __future__ import annotations

import io

import pytest

from musicgen_train.progress import Progress, minutes


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rate_and_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("sampling", 80, stream=stream, clock=clock) as progress:
        clock.now += 8
        progress.advance(20)
        assert stream.getvalue() == ""
        assert progress.line() == "sampling: 20 of 80 s of audio, 2.5 s of audio per second, 0:24 left"
        clock.now += 8
        progress.advance(20)
        assert stream.getvalue() == "sampling: 40 of 80 s of audio, 2.5 s of audio per second, 0:16 left\n"
        clock.now += 16
        progress.advance(40)
    assert stream.getvalue().splitlines()[-1] == "sampling: 80 s of audio in 0:32, 2.5 s of audio per second"


def test_a_terminal_has_one_line() -> None:
    clock, stream = Clock(), Terminal()
    with Progress("sampling", 4, stream=stream, clock=clock) as progress:
        for _ in range(4):
            clock.now += 1
            progress.advance(1)
    assert stream.getvalue().count("\r") == 5
    assert stream.getvalue().count("\n") == 1


def test_an_error_is_no_success() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Progress("sampling", 4, stream=stream):
        raise ValueError("broken")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "expected"), [(7.4, "0:07"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03")])
def test_minutes(seconds: float, expected: str) -> None:
    assert minutes(seconds) == expected
