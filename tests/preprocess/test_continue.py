"""Runs that are killed, shared, repeated and grown make the same dataset as one run from start to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from audio_corpus import SettingsMaker, write_encoders, write_track
from killed_run import KilledRuns

from musicgen_train.preprocess.encoding.encoders import AudioCoder
from musicgen_train.preprocess.run import preprocess
from musicgen_train.preprocess.sources.tracks import Track
from musicgen_train.preprocess.work.work_folder import work_root

ROOT = Path(__file__).parents[2]
# These fields of the manifest differ from run to run.
OF_THE_RUN = {"created", "command", "versions", "settings"}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL and flock are POSIX's")


def write_corpus(folder: Path, numbers: range = range(11)) -> None:
    """Write tracks of one to three clips. Some share captions; one is no audio, one is too short, one is silent."""
    for number in numbers:
        captions = [f"jazz number {number}", "a lofi beat", *(["chorus"] if number % 3 == 0 else [])]
        about = {
            "description": captions[: 1 + number % 3],
            "tags": ["guitar", "drums"],
            "genre": "pop" if number % 2 else "jazz",
        }
        write_track(folder / f"{number:02d}.wav", 0.6 + 0.55 * (number % 4), caption=about, pitch=90.0 + 40 * number)
    if 0 in numbers:
        (folder / "broken.wav").write_bytes(b"RIFF of nothing")
        write_track(folder / "blip.wav", 0.1)
        write_track(folder / "silence.wav", 1.0, level=0.0)


def content_of(folder: Path) -> dict[str, Any]:
    """Return the bytes of every file, without what differs from run to run."""
    files: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    del files["provenance.json"]
    manifest = json.loads(files.pop("manifest.json"))
    files["manifest"] = {name: value for name, value in manifest.items() if name not in OF_THE_RUN}
    return files


def tracks_of(folder: Path) -> set[str]:
    return {row for part in datasets.load_from_disk(str(folder)).values() for row in part["track"]}


@pytest.fixture
def settings(make_settings: SettingsMaker) -> Callable[..., Any]:
    """Make settings of a run with several shards and partly filled batches."""

    def make(**given: Any) -> Any:
        values = {"shard_tracks": 3, "batch_seconds": 4.0, "captions": {"word_dropout": 0.3, "variants": 5}}
        return make_settings(**{**values, "split": {"validation": 0.2}, **given})

    return make


@pytest.fixture(scope="module")
def killed_runs() -> Iterator[KilledRuns]:
    runs = KilledRuns()
    yield runs
    runs.close()


@pytest.fixture
def read_tracks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tracks that were read: only those are given a content key."""
    tracks: list[str] = []
    content_key = Track.content_key

    def noted(track: Track) -> str:
        tracks.append(track.id)
        return content_key(track)

    monkeypatch.setattr(Track, "content_key", noted)
    return tracks


def kill_points(changes: int, number: int) -> list[int]:
    return sorted({round(step * (changes - 1) / (number - 1)) for step in range(number)})


def check_kills(tmp_path: Path, settings: Callable[..., Any], killed_runs: KilledRuns, number: int | None) -> None:
    write_corpus(tmp_path / "input")
    changes = killed_runs.run(settings(output=str(tmp_path / "whole")).to_dict())
    whole = content_of(tmp_path / "whole")
    assert changes > 30
    for kill_at in range(changes) if number is None else kill_points(changes, number):
        output = tmp_path / "made" / str(kill_at)
        output.parent.mkdir(exist_ok=True)
        values = settings(output=str(output)).to_dict()
        assert killed_runs.run(values, kill_at) == kill_at
        assert not output.exists() or content_of(output) == whole, f"half a dataset after a kill at {kill_at}"
        killed_runs.run(values)
        assert content_of(output) == whole, f"killed at {kill_at} of {changes}"
        shutil.rmtree(tmp_path / "made")


def test_a_killed_run_goes_on_and_makes_the_same_bytes(
    tmp_path: Path, settings: Callable[..., Any], killed_runs: KilledRuns
) -> None:
    check_kills(tmp_path, settings, killed_runs, 3)


@pytest.mark.heavy
def test_a_run_may_be_killed_at_every_change_to_the_file_system(
    tmp_path: Path, settings: Callable[..., Any], killed_runs: KilledRuns
) -> None:
    check_kills(tmp_path, settings, killed_runs, None)


def test_a_run_that_is_killed_again_and_again_ends(
    tmp_path: Path, settings: Callable[..., Any], killed_runs: KilledRuns, encoded_clips: list[int]
) -> None:
    write_corpus(tmp_path / "input")
    preprocess(settings(output=str(tmp_path / "whole")))
    whole_run = sum(encoded_clips)
    values = settings().to_dict()
    shards = work_root(tmp_path / "output")
    for kill_at in (12, 16, 13, 16):
        before = len(list(shards.glob("*/shards/*")))
        killed_runs.run(values, kill_at)
        assert len(list(shards.glob("*/shards/*"))) >= before
    assert len(list(shards.glob("*/shards/*"))) >= 2
    encoded_clips.clear()
    preprocess(settings())
    assert 0 < sum(encoded_clips) < whole_run
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")
    assert [path.name for path in shards.glob("*/staging/*/*")] == []


def test_a_kill_while_a_dataset_is_replaced_loses_nothing(
    tmp_path: Path, settings: Callable[..., Any], killed_runs: KilledRuns
) -> None:
    write_corpus(tmp_path / "input", range(6))
    preprocess(settings())
    small = content_of(tmp_path / "output")
    shutil.copytree(tmp_path / ".output.work", tmp_path / "work")
    shutil.copytree(tmp_path / "output", tmp_path / "small")
    write_corpus(tmp_path / "input", range(6, 9))
    values = settings().to_dict()
    changes = killed_runs.run(values)
    grown = content_of(tmp_path / "output")
    # Kill before the last change, the one before it and so on, back to before the two renames, where the old dataset is
    # still in its place.
    for kill_at in range(changes - 1, 0, -1):
        for name, copy in ((".output.work", "work"), ("output", "small")):
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / copy, tmp_path / name)
        killed_runs.run(values, kill_at)
        was_there = content_of(tmp_path / "output") if (tmp_path / "output").exists() else None
        killed_runs.run(values)
        assert content_of(tmp_path / "output") == grown, f"killed at {kill_at}"
        if was_there == small:
            break
        assert was_there in (None, grown)
    else:
        pytest.fail("no kill hit before the renames")


def test_two_ranks_make_the_bytes_of_one_in_either_order(tmp_path: Path, settings: Callable[..., Any]) -> None:
    write_corpus(tmp_path / "input")
    whole = preprocess(settings(output=str(tmp_path / "whole")))
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        ranks = [settings(output=str(tmp_path / name), rank=rank, world_size=2) for rank in order]
        assert preprocess(ranks[0]) is None
        assert not (tmp_path / name).exists()
        last = preprocess(ranks[1])
        assert last is not None
        assert last.counts == whole.counts
        assert content_of(tmp_path / name) == content_of(tmp_path / "whole")


def test_shards_that_take_long_are_smaller_and_make_the_same_bytes(
    tmp_path: Path, settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "input", range(5))
    preprocess(settings(output=str(tmp_path / "whole")))
    monkeypatch.setattr("musicgen_train.preprocess.encoding.shard_builder._MOST_SHARD_SECONDS", 0.0)
    preprocess(settings())
    assert len(list(work_root(tmp_path / "output").glob("*/shards/*"))) == 8
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")


def test_another_number_of_ranks_may_go_on(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "input")
    preprocess(settings(output=str(tmp_path / "whole")))
    whole_run = sum(encoded_clips)
    encoded_clips.clear()
    preprocess(settings(rank=1, world_size=3))
    third = sum(encoded_clips)
    assert 0 < third < whole_run
    assert (
        "rank 1 of 3 is done; the dataset is assembled by the last, ranks 0, 2 are not done" in capsys.readouterr().out
    )
    preprocess(settings(rank=0, world_size=2))
    preprocess(settings(rank=1, world_size=2))
    assert sum(encoded_clips) == whole_run
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")


def test_ranks_at_the_same_time_make_the_bytes_of_one(
    tmp_path: Path, settings: Callable[..., Any], killed_runs: KilledRuns
) -> None:
    write_corpus(tmp_path / "input")
    preprocess(settings(output=str(tmp_path / "whole")))
    killed_runs.run_together([settings(rank=rank, world_size=3).to_dict() for rank in range(3)])
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")


@pytest.mark.heavy
def test_torchrun_starts_ranks(tmp_path: Path, encoders_folder: Path, settings: Callable[..., Any]) -> None:
    write_corpus(tmp_path / "input")
    preprocess(settings(output=str(tmp_path / "whole")))
    given = {
        "input": tmp_path / "input", "output": tmp_path / "output", "encoders": encoders_folder, "clip_seconds": 1,
        "min_clip_seconds": 0.3, "workers": 0, "device": "cpu", "shard_tracks": 3, "batch_seconds": 4,
        "captions.word_dropout": 0.3, "captions.variants": 5, "split.validation": 0.2,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(ROOT / "scripts" / "preprocess.py"), *(f"{name}={value}" for name, value in given.items()),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2: " in done.stdout
    assert "rank 1 of 2: " in done.stdout
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")


def test_a_grown_folder_encodes_only_what_is_new(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int], read_tracks: list[str]
) -> None:
    write_corpus(tmp_path / "input", range(0, 10, 2))
    preprocess(settings())
    before = sum(encoded_clips)
    encoded_clips.clear()
    read_tracks.clear()
    write_corpus(tmp_path / "input", range(1, 10, 2))
    preprocess(settings())
    new = sum(encoded_clips)
    # A file that could not be used is tried again: the reason may be gone.
    assert sorted(read_tracks) == ["01.wav", "03.wav", "05.wav", "07.wav", "09.wav", "broken.wav"]
    encoded_clips.clear()
    preprocess(settings(output=str(tmp_path / "whole")))
    assert before + new == sum(encoded_clips)
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")


def test_a_run_with_nothing_new_writes_nothing(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "input", range(4))
    first = preprocess(settings())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "output").rglob("*")}
    encoded_clips.clear()
    assert preprocess(settings()) == first
    assert not encoded_clips
    assert "has all of it already; nothing was written" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "output").rglob("*")} == times
    shutil.rmtree(tmp_path / "output")
    assert preprocess(settings()).splits == first.splits
    assert not encoded_clips


def test_a_changed_file_is_encoded_again(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int], read_tracks: list[str]
) -> None:
    write_corpus(tmp_path / "input", range(1, 6))
    preprocess(settings())
    encoded_clips.clear()
    read_tracks.clear()
    write_track(tmp_path / "input" / "02.wav", 1.0, pitch=777.0)
    (tmp_path / "input" / "03.json").write_text('{"description": "pop"}')
    preprocess(settings())
    assert read_tracks == ["02.wav", "03.wav"]
    preprocess(settings(output=str(tmp_path / "whole")))
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")


def test_other_settings_are_refused_and_never_mixed(tmp_path: Path, settings: Callable[..., Any]) -> None:
    write_corpus(tmp_path / "input", range(1, 6))
    preprocess(settings())
    before = content_of(tmp_path / "output")
    other = write_encoders(tmp_path / "other", codebook_size=32)
    shutil.copytree(tmp_path / "input", tmp_path / "elsewhere")
    for changed, told in (
        ({"clip_seconds": 0.5}, r"clip_seconds was 1\.0 and is 0\.5"),
        ({"encoders": str(other)}, "the audio encoder is another"),
        ({"captions": {"seed": 1, "word_dropout": 0.3, "variants": 5}}, r"captions\.seed was 0 and is 1"),
        ({"split": {"validation": 0.2, "seed": 1}}, r"split\.seed was 0 and is 1"),
        ({"states_dtype": "float32"}, "states_dtype was float16 and is float32"),
        ({"input": str(tmp_path / "elsewhere")}, "input was .*/input and is .*/elsewhere"),
    ):
        with pytest.raises(ValueError, match=rf"made otherwise, and is never mixed: .*{told}.*overwrite=true"):
            preprocess(settings(**changed))
    assert content_of(tmp_path / "output") == before
    preprocess(settings(clip_seconds=0.5, overwrite=True))
    assert len(list(work_root(tmp_path / "output").iterdir())) == 1
    preprocess(settings(clip_seconds=0.5, output=str(tmp_path / "whole")))
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")


def test_another_division_into_splits_encodes_nothing_again(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int]
) -> None:
    write_corpus(tmp_path / "input", range(1, 9))
    preprocess(settings())
    encoded_clips.clear()
    other = {"validation": 0.3, "seed": 3, "group_by": "genre"}
    preprocess(settings(overwrite=True, split=other))
    assert not encoded_clips
    preprocess(settings(split=other, output=str(tmp_path / "whole")))
    assert content_of(tmp_path / "output") == content_of(tmp_path / "whole")


def test_a_smaller_input_does_not_shrink_the_dataset_unasked(tmp_path: Path, settings: Callable[..., Any]) -> None:
    write_corpus(tmp_path / "input", range(1, 6))
    preprocess(settings())
    for name in ("02", "04"):
        (tmp_path / "input" / f"{name}.wav").unlink()
    with pytest.raises(ValueError, match=r"no longer has 2 tracks of the dataset .*, 0[24]\.wav for one"):
        preprocess(settings())
    assert tracks_of(tmp_path / "output") == {f"{number:02d}.wav" for number in range(1, 6)}
    preprocess(settings(overwrite=True))
    assert tracks_of(tmp_path / "output") == {"01.wav", "03.wav", "05.wav"}


def test_two_processes_do_not_work_as_the_same_rank(
    tmp_path: Path, settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "input", range(1, 3))
    encode = AudioCoder.encode
    refused: list[str] = []

    def meanwhile(coder: AudioCoder, clips: Any, rows: int) -> Any:
        if not refused:
            refused.append("")
            with pytest.raises(ValueError, match=r"another process works on .*output as rank 0 of 1; wait for it"):
                preprocess(settings())
        return encode(coder, clips, rows)

    monkeypatch.setattr(AudioCoder, "encode", meanwhile)
    preprocess(settings())
    assert refused


@pytest.mark.parametrize("name", ["tracks.arrow", "clips.arrow", "captions.arrow", "files.json"])
def test_a_truncated_shard_is_named_and_made_again(
    tmp_path: Path, settings: Callable[..., Any], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_corpus(tmp_path / "input", range(1, 6))
    preprocess(settings())
    whole = content_of(tmp_path / "output")
    file = next(work_root(tmp_path / "output").glob(f"*/shards/*/{name}"))
    os.truncate(file, file.stat().st_size - 9)
    shutil.rmtree(tmp_path / "output")
    preprocess(settings())
    said = capsys.readouterr().err
    assert f"shard {file.parent} is damaged: {name}" in said
    assert "its tracks are encoded again" in said
    assert content_of(tmp_path / "output") == whole


def test_a_shard_with_other_bytes_is_named_before_anything_is_made_of_it(
    tmp_path: Path, settings: Callable[..., Any]
) -> None:
    write_corpus(tmp_path / "input", range(1, 6))
    preprocess(settings())
    whole = content_of(tmp_path / "output")
    file = next(work_root(tmp_path / "output").glob("*/shards/*/clips.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    shutil.rmtree(tmp_path / "output")
    with pytest.raises(ValueError, match=r"clips\.arrow has another checksum .* removed: run the same command again"):
        preprocess(settings())
    assert not (tmp_path / "output").exists()
    preprocess(settings())
    assert content_of(tmp_path / "output") == whole


def test_all_that_is_made_is_on_the_disk_itself(
    tmp_path: Path, settings: Callable[..., Any], flushed: Callable[[Path], bool]
) -> None:
    write_corpus(tmp_path / "input", range(1, 3))
    preprocess(settings())
    work = work_root(tmp_path / "output")
    made = {
        path for name in ("about.json", "published.json", "parts/*", "shards/*/*") for path in work.glob(f"*/{name}")
    }
    assert len(made) == 3 + 4
    made |= {path.parent for path in made} | {path.parent for path in work.glob("*/shards/*")}
    made |= {tmp_path, *(tmp_path / "output").rglob("*")}
    assert [str(path.relative_to(tmp_path)) for path in sorted(made) if not flushed(path)] == []
