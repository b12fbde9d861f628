"""Progress of a run, and the histograms of a dry run, against lines written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from audio_corpus import SettingsMaker, write_track

from musicgen_train.preprocess.dry_run import histogram
from musicgen_train.preprocess.encoding.pipeline import EncodingCounts
from musicgen_train.preprocess.run import preprocess


def test_hours_and_times_real_time_stand_beside_the_tracks() -> None:
    counts = EncodingCounts(encoded=10, rejected=2, audio_seconds=1800.0, reused=20)
    assert counts.note(60.0) == "0.50 h of audio, 30 x real time, 2 rejected, 20 from before"
    assert EncodingCounts(encoded=1, audio_seconds=7.2).note(0.0) == "0.00 h of audio"


def test_a_run_says_how_far_it_is(
    tmp_path: Path, make_settings: SettingsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_track(tmp_path / "input" / f"{number}.wav", 1.2)
    (tmp_path / "input" / "bad.wav").touch()
    preprocess(make_settings(progress_seconds=1000.0))
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert last.startswith("encoding: 100% 4/4 tracks [00:0")
    assert last.endswith(" x real time, 1 rejected]")
    assert "0.001 h of audio in 0:00:0" in said.out
    write_track(tmp_path / "input" / "3.wav", 0.6)
    preprocess(make_settings(progress_seconds=1000.0))
    said = capsys.readouterr()
    assert "encoding: 100% 5/5 tracks" in said.err
    assert said.err.splitlines()[-1].endswith("1 rejected, 3 from before]")
    assert "3 tracks were encoded by earlier runs, 2 by this one" in said.out
    preprocess(make_settings(progress_seconds=0.0))
    assert capsys.readouterr().err == ""


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
