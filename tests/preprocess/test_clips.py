"""Where clips begin and end, by hand and by their properties; decoding in workers keeps the order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audio_corpus import RATE, write_track
from hypothesis import given
from hypothesis import strategies as st

from musicgen_train.preprocess.encoding.clips import ClipCutter, decode_tracks
from musicgen_train.preprocess.sources.tracks import Track


def cutter(length: int, hop: int, shortest: int) -> ClipCutter:
    return ClipCutter(sampling_rate=RATE, channels=1, length=length, hop=hop, shortest=shortest)


def test_spans_by_hand() -> None:
    assert cutter(10, 10, 3).spans(25) == [(0, 10), (10, 20), (20, 25)]
    assert cutter(10, 10, 6).spans(25) == [(0, 10), (10, 20)]
    assert cutter(10, 10, 3).spans(20) == [(0, 10), (10, 20)]
    assert cutter(10, 4, 3).spans(15) == [(0, 10), (4, 14), (8, 15)]
    assert cutter(10, 15, 3).spans(28) == [(0, 10), (15, 25)]
    assert cutter(10, 10, 3).spans(2) == []
    assert cutter(10, 10, 3).spans(0) == []


@given(st.integers(1, 30), st.integers(1, 40), st.data())
def test_spans_have_their_properties(length: int, hop: int, data: st.DataObject) -> None:
    shortest = data.draw(st.integers(1, length))
    samples = data.draw(st.integers(0, 200))
    spans = cutter(length, hop, shortest).spans(samples)
    for number, (start, end) in enumerate(spans):
        assert start == number * hop
        assert shortest <= end - start <= length
        assert end == samples or end - start == length
    # Only the last clip reaches the end.
    assert all(end < samples for _, end in spans[:-1])
    if hop <= length and samples >= length:
        covered = spans[-1][1]
        assert samples - covered < shortest + hop


def test_tracks_come_in_order_from_workers_lazily(tmp_path: Path) -> None:
    asked: list[int] = []

    def tracks(number: int) -> Iterator[Track]:
        for index in range(number):
            path = write_track(tmp_path / f"{index}.wav", 0.2 + 0.1 * (index % 3))
            asked.append(index)
            yield Track(id=str(index), audio=path.read_bytes() if index % 2 else path)

    decoded = decode_tracks(tracks(11), cutter(RATE, RATE, 1), workers=2)
    first = next(decoded)
    assert len(asked) <= 6
    found = [first, *decoded]
    assert [cut.track.id for cut in found] == [str(index) for index in range(11)]
    assert [cut.samples for cut in found] == [round(RATE * (0.2 + 0.1 * (index % 3))) for index in range(11)]
    assert all(not isinstance(cut.track.audio, bytes) or cut.track.audio == b"" for cut in found)


class Deadly:
    """Ends the process that unpickles it, as the system ends one that takes too much memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_killed_worker_is_told() -> None:
    track = Track(id="x", audio=b"")
    track.description.metadata["poison"] = Deadly()
    with pytest.raises(OSError, match=r"a process that decodes audio was killed, .* \(workers=1\) need less"):
        list(decode_tracks([track], cutter(RATE, RATE, 1), workers=2))


DECODING = """
import multiprocessing, time
from pathlib import Path
from musicgen_train.preprocess.encoding.clips import ClipCutter, decode_tracks
from musicgen_train.preprocess.sources.tracks import Track

if __name__ == "__main__":
    cutter = ClipCutter(sampling_rate=8000, channels=1, length=10**9, hop=10**9, shortest=1)
    tracks = (Track(id=str(number), audio=Path("long.wav")) for number in range(99))
    decoded = decode_tracks(tracks, cutter, workers=1)
    next(decoded)  # the others do not fit through the pipe until they are asked for
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes as Linux shows them")
def test_workers_end_with_a_killed_process(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(200_000), 8000)
    (tmp_path / "decoding.py").write_text(DECODING)
    command = [sys.executable, "decoding.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = Path("/proc", process.stdout.readline().strip())
        assert (worker / "cmdline").read_bytes()
        process.kill()
    deadline = time.monotonic() + 30
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.exists()
