"""When something around a run goes wrong, one line says so, and nothing that is made already is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audio_corpus import SettingsMaker, write_track

from musicgen_train.audio.io import AudioError
from musicgen_train.preprocess.encoding import clips
from musicgen_train.preprocess.encoding.encoders import AudioCoder
from musicgen_train.preprocess.encoding.pipeline import RejectedTrackError
from musicgen_train.preprocess.run import preprocess
from musicgen_train.preprocess.work import shards
from musicgen_train.preprocess.work.work_folder import work_root


@pytest.fixture
def settings(tmp_path: Path, make_settings: SettingsMaker) -> Callable[..., Any]:
    """Make settings of a run over six tracks with two in a shard."""
    for number in range(6):
        write_track(tmp_path / "input" / f"{number}.wav", 1.0, caption=f"jazz {number}", pitch=100.0 + 50 * number)
    return lambda **given: make_settings(**{"shard_tracks": 2, "batch_seconds": 2.0, **given})


def whole_shards(output: Path) -> list[Path]:
    return list(work_root(output).glob("*/shards/*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_keeps_what_is_encoded(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = 0
    file_on_disk = shards.pa.OSFile

    def on_a_full_disk_later(path: str, mode: str) -> Any:
        nonlocal files
        files += 1
        return file_on_disk("/dev/full" if files > 4 else path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(shards.pa, "OSFile", on_a_full_disk_later)
        with pytest.raises(
            OSError, match=r"no space left on the disk of .*output\.work\. What is encoded so far is kept"
        ):
            preprocess(settings())
    assert len(whole_shards(tmp_path / "output")) == 1
    assert not list(work_root(tmp_path / "output").glob("*/staging/*/*"))
    encoded_clips.clear()
    assert preprocess(settings()).counts["tracks"] == 6
    assert sum(encoded_clips) == 4


def test_a_full_disk_while_the_dataset_is_assembled_keeps_the_old_one(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(settings())
    before = (tmp_path / "output" / "manifest.json").read_bytes()
    write_track(tmp_path / "input" / "new.wav", 1.0)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("datasets.DatasetDict.save_to_disk", full)
        with pytest.raises(OSError, match="no space left on the disk"):
            preprocess(settings())
    assert (tmp_path / "output" / "manifest.json").read_bytes() == before
    encoded_clips.clear()
    assert preprocess(settings()).counts["tracks"] == 7
    assert not encoded_clips


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that nobody may write to")
def test_a_read_only_place_is_told_before_anything_is_encoded(
    settings: Callable[..., Any], encoded_clips: list[int]
) -> None:
    with pytest.raises(
        OSError, match=r"the work folder /sys/kernel/\.latents\.work cannot be written \(.*give an output"
    ):
        preprocess(settings(output="/sys/kernel/latents"))
    assert not encoded_clips


def test_an_input_that_goes_away_ends_the_run_and_keeps_what_is_encoded(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard = shards.write_shard

    def then_unmounted(*arguments: Any) -> Path:
        shard = write_shard(*arguments)
        if not (tmp_path / "disk").exists():
            (tmp_path / "input").rename(tmp_path / "disk")
            (tmp_path / "input").mkdir()
        return shard

    with monkeypatch.context() as patch:
        patch.setattr("musicgen_train.preprocess.encoding.shard_builder.write_shard", then_unmounted)
        with pytest.raises(OSError, match=r"input .* is gone .*, noticed at \d\.wav\. What is encoded so far is kept"):
            preprocess(settings())
    assert not (tmp_path / "output").exists()
    kept = len(whole_shards(tmp_path / "output"))
    assert kept >= 1
    (tmp_path / "input").rmdir()
    (tmp_path / "disk").rename(tmp_path / "input")
    encoded_clips.clear()
    manifest = preprocess(settings())
    assert (manifest.counts["tracks"], manifest.counts["rejected"]) == (6, 0)
    assert sum(encoded_clips) == 6 - 2 * kept


def test_one_file_that_goes_away_is_rejected(
    tmp_path: Path, settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = AudioCoder.encode

    def then_deleted(coder: AudioCoder, clips: Any, rows: int) -> Any:
        (tmp_path / "input" / "5.wav").unlink(missing_ok=True)
        return encode(coder, clips, rows)

    monkeypatch.setattr(AudioCoder, "encode", then_deleted)
    counts = preprocess(settings()).counts
    assert (counts["tracks"], counts["rejected"]) == (5, 1)
    assert "it cannot be opened: No such file" in (tmp_path / "output" / "rejected.jsonl").read_text()


def test_a_file_that_cannot_be_used_ends_the_run_where_that_is_asked_for(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int]
) -> None:
    (tmp_path / "input" / "4b.wav").touch()
    with pytest.raises(RejectedTrackError, match=r"4b\.wav: the file is empty \(stop_on_rejected=true\)\. What is"):
        preprocess(settings(stop_on_rejected=True))
    assert sum(encoded_clips) == 5
    (tmp_path / "input" / "4b.wav").unlink()
    encoded_clips.clear()
    assert preprocess(settings(stop_on_rejected=True)).counts["tracks"] == 6
    assert sum(encoded_clips) == 1


def test_what_was_rejected_is_tried_again(
    tmp_path: Path, settings: Callable[..., Any], encoded_clips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has not changed but can be read now, as if a decoder had been installed meanwhile."""
    with monkeypatch.context() as patch:
        whole = clips.read_audio

        def without_a_decoder(source: Any, **options: Any) -> Any:
            if str(source).endswith("3.wav"):
                raise AudioError("no decoder")
            return whole(source, **options)

        patch.setattr(clips, "read_audio", without_a_decoder)
        assert preprocess(settings()).counts["rejected"] == 1
    encoded_clips.clear()
    assert preprocess(settings()).counts["rejected"] == 0
    assert sum(encoded_clips) == 1
