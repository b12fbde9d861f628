"""`scripts/benchmarks/data_speed.py`: its inputs against plain readers, one small run, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import data_speed
import datasets
import numpy as np
import pytest
import soundfile

from musicgen_train.latents.manifest import Manifest

SCRIPT = Path(data_speed.__file__)


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--repeats", "1", "--json", "out.json", "--markdown", "out.md", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_reading_from_the_command_line(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "latents", "--rows", "20", "--reads", "32")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.md").read_text() == done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["rows", "---", "20", "20, nested lists"]
    assert len({line.count("|") for line in table}) == 1
    report = json.loads((tmp_path / "out.json").read_text())
    mapped, nested = report["latents"]["runs"]
    assert len(mapped) == len(nested) == 1
    assert all(run[name] > 0 for run in mapped for name in ("open", "first_access", "rows", "batches", "loader"))
    assert report["environment"]["command"].startswith("python scripts/benchmarks/data_speed.py --repeats 1")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--rows", "0"], "0 is given; allowed are whole numbers from 1"),
        (["--minutes", "nan"], "nan is given; allowed are numbers above 0"),
        (["--only", "reading"], "invalid choice: 'reading'"),
        (["--json", "nowhere/out.json"], "there is no folder nowhere to write out.json into"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        data_speed.parse(options)
    assert stopped.value.code == 2
    assert problem in capsys.readouterr().err


def test_latents_are_as_plain_datasets_reads_them(tmp_path: Path) -> None:
    assert data_speed.write_latents(tmp_path / "latents", 7) == 1500
    rows = datasets.load_from_disk(str(tmp_path / "latents" / "train"))
    assert rows["frames"] == [1500] * 7
    assert {len(packed) for packed in rows["codes"]} == {4 * 1500 * 2}
    captions = datasets.load_from_disk(str(tmp_path / "latents" / "captions"))
    assert sorted(number for row in rows["captions"] for number in row) == list(range(28)) == list(range(len(captions)))
    for row in captions:
        states = np.frombuffer(row["states"], dtype="<f2").reshape(row["length"], 768)
        assert 32 <= len(states) <= 48
        assert 0.9 < states.std() < 1.1
    assert Manifest.load(tmp_path / "latents").splits["train"].hours == pytest.approx(7 * 30 / 3600)


def test_clips_of_many_rows_are_shorter() -> None:
    # 2.4 GB among a million clips of 4 codebooks at 2 bytes are 300 frames, 6 s.
    assert data_speed.MOST_CODE_BYTES // (2 * 4 * 1_000_000) == 300


def test_a_corpus_has_the_minutes_asked_for(tmp_path: Path) -> None:
    assert data_speed.write_corpus(tmp_path / "music", 0.6) == 2
    found = {
        path.suffix: soundfile.info(path) for path in (tmp_path / "music").glob("track*.*") if path.suffix != ".txt"
    }
    assert {suffix: round(info.duration, 1) for suffix, info in found.items()} == {".wav": 30.0, ".flac": 6.0}
    assert {(info.samplerate, info.channels) for info in found.values()} == {(44_100, 2)}
    assert len(list((tmp_path / "music").glob("*.txt"))) == 2


def test_medians_and_ranges() -> None:
    assert data_speed.spread([3.0, 1.0, 2000.0]) == "3 (1-2,000)"
    assert data_speed.spread([0.12345, 0.2]) == "0.162 (0.123-0.2)"
