"""Memory does not grow with the corpus: a long listing takes no more than a short one."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from audio_corpus import RATE, SettingsMaker, tone, write_track

from musicgen_train.preprocess.run import preprocess, resolve
from musicgen_train.preprocess.sources.captions import Description
from musicgen_train.preprocess.sources.folder_source import FolderSource
from musicgen_train.preprocess.sources.listing import Listing
from musicgen_train.preprocess.sources.tracks import Candidate, Track
from musicgen_train.preprocess.work.ranks import Rank


class Made:
    """A source of any number of tracks of two frames, each with a caption of its own and one that all share."""

    kind = "made"

    def __init__(self, tracks: int) -> None:
        self._tracks = tracks
        file = io.BytesIO()
        soundfile.write(file, tone(0.04), RATE, format="WAV")
        self._audio = file.getvalue()

    def count(self) -> int:
        return self._tracks

    def check_it_is_there(self) -> None: ...

    def __iter__(self) -> Iterator[Candidate]:
        for number in range(self._tracks):
            name = f"{'artist/' * 300}{number:07d}.wav"
            yield Candidate(id=name, order=name, stamp=lambda: "1", read=lambda name=name: self._read(name))

    def _read(self, name: str) -> Track:
        description = Description(captions=[" ".join(f"caption {name[-11:-4]}"), "jazz"], metadata={"file": name})
        return Track(id=name, order=name, audio=self._audio, description=description, stamp="1")


def peak(action: Any) -> int:
    """Return by how many bytes the memory of Python and numpy grew at most."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        action()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_tracks(
    tmp_path: Path, make_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.5)
    encoders = resolve(make_settings(), Rank()).recipe.encoders
    monkeypatch.setattr("musicgen_train.preprocess.run.load_encoders", lambda **_: encoders)
    peaks = []
    for number in (30, 80, 280):
        source = Made(number)
        monkeypatch.setattr("musicgen_train.preprocess.run.open_source", lambda *_, source=source: source)
        settings = make_settings(
            output=str(tmp_path / str(number)),
            clip_seconds=0.04,
            min_clip_seconds=0.01,
            shard_tracks=16,
            progress_seconds=0.0,
        )
        peaks.append(peak(lambda settings=settings: preprocess(settings)))
    # The first run also imports modules. The names alone of 200 more tracks take 420 kB.
    assert peaks[2] < peaks[1] + 210_000, peaks


def test_memory_does_not_grow_with_the_listing(tmp_path: Path, make_settings: SettingsMaker) -> None:
    peaks = []
    for number in (1000, 5000):
        folder = tmp_path / str(number)
        for album in range(10):
            (folder / f"album {album}").mkdir(parents=True)
            for track in range(number // 10):
                (folder / f"album {album}" / f"a track with a name that people would give it {track:06d}.flac").touch()
        seen = 0

        def look(folder: Path = folder) -> None:
            nonlocal seen
            seen = sum(1 for _ in FolderSource(Listing(folder), make_settings().captions))

        peaks.append(peak(look))
        assert seen == number
    # The names alone take 70 bytes each.
    assert peaks[1] < peaks[0] + 50_000, peaks
