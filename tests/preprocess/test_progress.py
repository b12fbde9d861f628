"""What is said on the way and what dry runs draw, by hand."""

from __future__ import annotations

import io

import pytest

from musicgen_train.preprocess.dry_run import as_bytes, histogram
from musicgen_train.preprocess.progress import Progress, as_time


def test_rate_and_time_left() -> None:
    progress = Progress(total=40, interval=0.0)
    progress.add(tracks=10, audio_seconds=1800.0, rejected=2)
    expected = "10/40 tracks | 0.50 h of audio | 0.0083 h/s (30 x real time) | 2 rejected | 0:03:00 left"
    assert progress.line(60.0) == expected
    continued = Progress(total=40, interval=0.0)
    continued.add(reused=20)
    continued.add(tracks=10, audio_seconds=1800.0)
    # What was encoded before took no time, and says nothing of how long the rest takes.
    expected = "30/40 tracks | 0.50 h of audio | 0.0083 h/s (30 x real time) | 20 from before | 0:01:00 left"
    assert continued.line(60.0) == expected
    unknown = Progress(total=None, interval=0.0)
    unknown.add(tracks=3, audio_seconds=7.2)
    assert unknown.line(3.6) == "3 tracks | 0.00 h of audio | 0.0006 h/s (2 x real time)"


def test_it_speaks_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(total=4, interval=10.0, stream=stream)
    for _ in range(4):
        now[0] += 6.0
        progress.add(tracks=1, audio_seconds=60.0)
    progress.close()
    assert [line.split(" | ")[0] for line in stream.getvalue().splitlines()] == ["2/4 tracks", "4/4 tracks"]


def test_times() -> None:
    assert [as_time(seconds) for seconds in (0.4, 59.6, 3725, 360_000)] == [
        "0:00:00",
        "0:01:00",
        "1:02:05",
        "100:00:00",
    ]


def test_sizes() -> None:
    assert [as_bytes(size) for size in (7, 1200, 3.45e6, 2e9, 8e12)] == [
        "7 bytes",
        "1.2 kB",
        "3.5 MB",
        "2.0 GB",
        "8.0 TB",
    ]


def test_histograms() -> None:
    assert histogram([]) == ["  none"]
    assert histogram([2.0, 2.0]) == ["      2.00           " + "#" * 40 + " 2"]
    lines = histogram([0.0, 1.0, 1.0, 1.0, 1.0, 4.0], bars=4, width=8)
    assert [line.split() for line in lines] == [
        ["0.00", "-", "1.00", "##", "1"],
        ["1.00", "-", "2.00", "########", "4"],
        ["2.00", "-", "3.00", "0"],
        ["3.00", "-", "4.00", "##", "1"],
    ]
