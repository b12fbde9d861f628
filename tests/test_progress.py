"""The progress of a long step on a terminal and in a log, with a clock that the tests set."""

from __future__ import annotations

import io

import pytest

from musicgen_train.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def test_a_log_has_rate_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("sampling", 80, "s of audio", stream=stream) as progress:
        for _ in range(4):
            clock.now += 8
            progress.advance(20)
        assert progress.done == 80
        assert progress.elapsed == 32
    assert stream.getvalue().splitlines() == [
        "sampling: 0% 0/80 s of audio [00:00<?, ? s of audio/s]",
        "sampling: 100% 80/80 s of audio [00:32<00:00, 2.50 s of audio/s]",
        "sampling: 100% 80/80 s of audio [00:32<00:00, 2.50 s of audio/s]",
    ]


def test_a_log_of_a_long_run_has_few_lines(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("preprocessing", 10_000, "tracks", log_seconds=60, stream=stream) as progress:
        for _ in range(5000):
            clock.now += 0.5
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 + 5000 * 0.5 // 60
    assert lines[1] == "preprocessing: 1% 120/10000 tracks [01:00<1:22:20, 2.00 tracks/s]"


def test_what_an_earlier_run_did_says_nothing_of_the_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("preprocessing", 40, "tracks", stream=stream) as progress:
        progress.skip(20)
        clock.now += 60
        progress.advance(10, "0.50 h of audio, 2 rejected")
        progress.skip(0)
        assert progress.done == 30
    expected = "preprocessing: 75% 30/40 tracks [01:00<01:00, 0.17 tracks/s, 0.50 h of audio, 2 rejected]"
    assert stream.getvalue().splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("total", "line"),
    [
        (None, "reading: 5 tracks [00:10, 0.50 tracks/s]"),
        (4, "reading: 100% 5/5 tracks [00:10<00:00, 0.50 tracks/s]"),
    ],
)
def test_an_unknown_total_and_one_that_was_too_low(clock: Clock, total: float | None, line: str) -> None:
    stream = io.StringIO()
    with Progress("reading", total, "tracks", stream=stream) as progress:
        clock.now += 10
        progress.advance(5)
    assert stream.getvalue().splitlines()[-1] == line


def test_a_terminal_has_one_line(clock: Clock) -> None:
    stream = Terminal()
    with Progress("sampling", 4, "s of audio", stream=stream) as progress:
        for _ in range(4):
            clock.now += 1
            progress.advance(1)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")
    assert len(stream.getvalue().split("\r")) > 5


def test_nothing_is_shown_when_so_asked(clock: Clock) -> None:
    for stream in (Terminal(), io.StringIO()):
        with Progress("sampling", 4, "tracks", log_seconds=0, stream=stream) as progress:
            clock.now += 100
            progress.advance(3)
            assert progress.done == 3
        assert stream.getvalue() == ""


def test_an_error_ends_the_line_where_it_came(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress("sampling", 4, "tracks", stream=stream)
    progress.advance()
    with pytest.raises(ZeroDivisionError), progress:
        progress.advance(1 / 0)
    assert stream.getvalue().splitlines()[-1].startswith("sampling:  25%|")
