"""The whole stage: the dataset equals what transformers makes of clips that are cut by hand."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import audio_corpus
import datasets
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from audio_corpus import RATE, SettingsMaker, tone, write_track

from musicgen_train.hub.weights import CheckpointError
from musicgen_train.latents.format import unpack_codes, unpack_states
from musicgen_train.latents.manifest import Manifest
from musicgen_train.preprocess.encoding import pipeline, shard_builder
from musicgen_train.preprocess.encoding.encoders import AudioCoder
from musicgen_train.preprocess.run import dry_run, preprocess
from musicgen_train.provenance.machine import versions


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return all clips of a dataset sorted by track and start, with their split and the text of their captions."""
    captions = datasets.load_from_disk(str(folder / "captions"))["text"]
    rows = [
        {**row, "split": split, "captions": [captions[number] for number in row["captions"]]}
        for split, part in datasets.load_from_disk(str(folder)).items()
        for row in part
    ]
    return sorted(rows, key=lambda row: (row["track"], row["start_seconds"]))


def states_of(folder: Path, dtype: str = "float16") -> dict[str, torch.Tensor]:
    captions = datasets.load_from_disk(str(folder / "captions"))
    return {row["text"]: unpack_states(row["states"], row["length"], dtype) for row in captions}


def reference_codes(reference: Any, audio_S: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        codes = reference.audio_encoder.encode(audio_S[None, None]).audio_codes
    return codes[0, 0].numpy()


def test_codes_are_those_of_each_clip_encoded_alone(
    tmp_path: Path, make_settings: SettingsMaker, reference: Any
) -> None:
    files = {
        "one.wav": write_track(tmp_path / "input" / "one.wav", 3.4),
        "two.flac": write_track(tmp_path / "input" / "two.flac", 2.71, rate=44_100, channels=2, pitch=330.0),
        "three.ogg": write_track(tmp_path / "input" / "three.ogg", 1.05, rate=48_000, pitch=110.0),
    }
    preprocess(make_settings(hop_seconds=0.7, batch_seconds=3.0))
    rows = rows_of(tmp_path / "output")
    found = []
    for name, file in sorted(files.items()):
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        audio = torchaudio.functional.resample(torch.from_numpy(samples.mean(axis=1)), rate, RATE)
        for number in range(20):
            start = number * round(0.7 * RATE)
            clip = audio[start : start + RATE]
            if len(clip) >= 0.3 * RATE:
                row = next(
                    row for row in rows if row["track"] == name and abs(row["start_seconds"] - 0.7 * number) < 1e-3
                )
                codes = unpack_codes(row["codes"], 4)
                assert row["frames"] == codes.shape[1] == math.ceil(len(clip) / 160)
                assert np.array_equal(codes, reference_codes(reference, clip)), (name, number)
                found.append(row)
            if start + RATE >= len(audio):
                break
    assert len(found) == len(rows) == 5 + 4 + 2


def test_stereo_is_coded_side_by_side_and_interleaved(
    tmp_path: Path, make_settings: SettingsMaker, reference: Any
) -> None:
    write_track(tmp_path / "input" / "wide.wav", 1.0, channels=2)
    write_track(tmp_path / "input" / "narrow.wav", 0.9)
    manifest = preprocess(make_settings(audio_channels=2))
    assert (manifest.num_codebooks, manifest.audio_channels) == (8, 2)
    narrow, wide = (unpack_codes(row["codes"], 8) for row in rows_of(tmp_path / "output"))
    sides, _ = soundfile.read(tmp_path / "input" / "wide.wav", dtype="float32")
    for side in range(2):
        assert np.array_equal(wide[side::2], reference_codes(reference, torch.from_numpy(sides[:, side].copy())))
    assert not np.array_equal(wide[0::2], wide[1::2])
    assert np.array_equal(narrow[0::2], narrow[1::2])


def test_the_composites_decoder_decides_between_mono_and_stereo(tmp_path: Path, make_settings: SettingsMaker) -> None:
    folder = audio_corpus.write_encoders(tmp_path / "stereo", decoder={"num_codebooks": 8, "audio_channels": 2})
    write_track(tmp_path / "input" / "a.wav", 0.5)
    assert preprocess(make_settings(encoders=str(folder))).num_codebooks == 8


def test_states_are_those_of_each_caption_encoded_alone(
    tmp_path: Path, make_settings: SettingsMaker, reference: Any, tokenizer: Any
) -> None:
    texts = ["jazz guitar", "a lofi beat with drums and a chorus", "pop", "guitar guitar guitar jazz, 120 bpm!"]
    for number, text in enumerate(texts):
        write_track(tmp_path / "input" / f"{number}.wav", 0.5, caption=text)
    write_track(tmp_path / "input" / "again.wav", 0.5, caption=texts[0])
    manifest = preprocess(make_settings(text_batch_tokens=24))
    states = states_of(tmp_path / "output")
    assert manifest.captions == len(states) == len(texts)
    for text in texts:
        with torch.no_grad():
            alone = reference.text_encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert states[text].shape == alone.shape
        # Half an ulp of float16 at values of a few units, and float32 rounding.
        assert (states[text].float() - alone).abs().max() < 2e-3
        assert torch.allclose(states[text], alone.half(), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_can_be_stored_in_other_dtypes(tmp_path: Path, make_settings: SettingsMaker, dtype: str) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.5, caption="jazz")
    assert preprocess(make_settings(states_dtype=dtype)).states_dtype == dtype
    assert states_of(tmp_path / "output", dtype)["jazz"].dtype == getattr(torch, dtype)


def test_the_content_depends_on_neither_workers_nor_batches_nor_the_run(
    tmp_path: Path, make_settings: SettingsMaker
) -> None:
    for number in range(5):
        about = {"description": f"jazz number {number}", "tags": ["aa", "bb", "chorus"]}
        write_track(tmp_path / "input" / f"{number}.wav", 0.6 + 0.7 * number, caption=about, pitch=100.0 + number)
    contents = []
    for name, changed in (
        ("a", {}),
        ("b", {}),
        ("c", {"workers": 2}),
        ("d", {"batch_seconds": 1.0, "shard_tracks": 2, "text_batch_tokens": 9}),
    ):
        output = tmp_path / name
        preprocess(make_settings(output=str(output), captions={"word_dropout": 0.3, "variants": 6}, **changed))
        raw = {split: part.to_list() for split, part in datasets.load_from_disk(str(output)).items()}
        contents.append((raw, datasets.load_from_disk(str(output / "captions"))["text"], states_of(output)))
    for raw, texts, states in contents[1:]:
        assert raw == contents[0][0]
        assert list(texts) == list(contents[0][1])
        for text, value in states.items():
            assert torch.allclose(value.float(), contents[0][2][text].float(), rtol=1e-3, atol=1e-4)
    assert torch.equal(contents[1][2]["jazz number 1"], contents[0][2]["jazz number 1"])


@pytest.fixture
def codec_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the codec in a thread of its own, as on a GPU."""
    monkeypatch.setattr(pipeline, "_codec_executor", lambda device: ThreadPoolExecutor(max_workers=1))


def test_a_codec_in_a_thread_of_its_own_makes_the_same(
    tmp_path: Path, make_settings: SettingsMaker, request: pytest.FixtureRequest
) -> None:
    for number in range(5):
        write_track(tmp_path / "input" / f"{number}.wav", 0.6 + 0.7 * number, pitch=100.0 + number)
    changed = {"batch_seconds": 2.0, "shard_tracks": 2}
    preprocess(make_settings(output=str(tmp_path / "at once"), **changed))
    request.getfixturevalue("codec_in_a_thread")
    preprocess(make_settings(output=str(tmp_path / "in a thread"), **changed))
    assert rows_of(tmp_path / "in a thread") == rows_of(tmp_path / "at once")


@pytest.mark.usefixtures("codec_in_a_thread")
def test_while_the_codec_is_at_work_the_next_batch_is_collected(
    tmp_path: Path, make_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips_seen, another = [], threading.Event()
    in_time: list[bool] = []
    is_silent, encode_clips = shard_builder.is_silent, AudioCoder.encode

    def noticed(clip_CS: Any) -> bool:
        clips_seen.append(clip_CS)
        if len(clips_seen) == 2:
            another.set()
        return is_silent(clip_CS)

    def slow(coder: AudioCoder, clips: Any, rows: int) -> Any:
        in_time.append(another.wait(timeout=20))
        return encode_clips(coder, clips, rows)

    monkeypatch.setattr(shard_builder, "is_silent", noticed)
    monkeypatch.setattr(AudioCoder, "encode", slow)
    for name in "ab":
        write_track(tmp_path / "input" / f"{name}.wav", 1.0)
    preprocess(make_settings(batch_seconds=1.0))  # a batch is a clip
    assert in_time == [True, True]


@pytest.mark.usefixtures("codec_in_a_thread")
def test_an_error_of_a_codec_in_a_thread_comes_up(
    tmp_path: Path, make_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(coder: AudioCoder, clips: Any, rows: int) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(AudioCoder, "encode", fail)
    write_track(tmp_path / "input" / "a.wav", 1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        preprocess(make_settings())


def test_messy_input_is_refused_with_its_reason_or_read(tmp_path: Path, make_settings: SettingsMaker) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is no sound\n" * 50)
    (folder / "header.wav").write_bytes(write_track(tmp_path / "x.wav", 0.5).read_bytes()[:44])
    whole = write_track(tmp_path / "x.mp3", 2.0, rate=44_100).read_bytes()
    (folder / "cut.mp3").write_bytes(whole[:60])
    for name, value in (("nan", np.nan), ("inf", -np.inf)):
        samples = tone(0.5)
        samples[7] = value
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    (folder / "broken.json").write_text("{")
    write_track(folder / "broken.wav", 0.5)

    write_track(folder / "eight bit.wav", 0.5, subtype="PCM_U8", caption="eight")
    write_track(folder / "high.wav", 0.5, rate=192_000, subtype="PCM_24", caption="high")
    write_track(folder / "six.flac", 0.5, rate=44_100, channels=6, caption="six")
    write_track(folder / "odd rate.wav", 0.5, rate=11_025, caption="odd")
    write_track(folder / "\u65e5\u672c \u00e9t\u00e9.ogg", 0.5, caption="\u00e9t\u00e9")
    write_track(folder / "a" / "same.wav", 0.5, pitch=100.0, caption="first")
    write_track(folder / "b" / "same.wav", 0.5, pitch=500.0, caption="second")
    write_track(folder / "long.mp3", 1.1, rate=44_100, caption="long")
    write_track(folder / "blip.wav", 0.1)
    write_track(folder / "silence.wav", 1.0, level=0.0, caption="silence")
    write_track(folder / "no caption.wav", 0.5)
    write_track(folder / "blank.wav", 0.5, caption="  \n")
    for name in ("cover.jpg", "notes.txt", "._high.wav", "list.m3u", "score.mid"):
        (folder / name).write_bytes(b"\x00\x01")
    (folder / "loop").symlink_to(folder)
    (folder / "a" / "up").symlink_to(folder / "b")

    counts = preprocess(make_settings()).counts
    lines = [json.loads(line) for line in (tmp_path / "output" / "rejected.jsonl").read_text("utf-8").splitlines()]
    reasons = {line["file"]: line["reason"] for line in lines}
    assert all(line.keys() == {"file", "reason"} for line in lines)
    assert reasons.keys() == {
        "empty.wav", "text.wav", "header.wav", "cut.mp3", "nan.wav", "inf.wav", "gone.wav",
        "broken.wav",
    }  # fmt: skip
    assert reasons["empty.wav"] == "the file is empty"
    assert reasons["text.wav"] == "it cannot be decoded: Format not recognised"
    assert reasons["header.wav"] == "it has a header and no samples"
    assert reasons["nan.wav"] == reasons["inf.wav"] == "1 samples are NaN or infinite"
    assert reasons["gone.wav"] == "it cannot be opened: No such file or directory"
    assert reasons["broken.wav"].startswith("its captions cannot be read: broken.json is not valid JSON")
    rows = rows_of(tmp_path / "output")
    assert {row["track"] for row in rows} == {
        "eight bit.wav", "high.wav", "six.flac", "odd rate.wav", "\u65e5\u672c \u00e9t\u00e9.ogg", "a/same.wav",
        "b/same.wav", "long.mp3", "silence.wav", "no caption.wav", "blank.wav",
    }  # fmt: skip
    assert counts == {
        "files": 20, "tracks": 11, "clips": len(rows), "rejected": 8, "too_short": 1, "silent": 1,
        "missing_caption": 2, "short_tails": 1, "captions_cut": 0,
    }  # fmt: skip
    by_track = {row["track"]: row for row in rows}
    assert by_track["no caption.wav"]["captions"] == by_track["blank.wav"]["captions"] == []
    assert [row["track"] for row in rows if row["silent"]] == ["silence.wav"]
    assert by_track["a/same.wav"]["captions"] == ["first"]
    assert by_track["a/same.wav"]["codes"] != by_track["b/same.wav"]["codes"]
    assert by_track["\u65e5\u672c \u00e9t\u00e9.ogg"]["captions"] == ["\u00e9t\u00e9"]


def test_clips_of_a_track_share_its_split_and_captions(tmp_path: Path, make_settings: SettingsMaker) -> None:
    for number in range(12):
        write_track(tmp_path / "input" / f"{number}.wav", 2.0, caption=f"jazz {number}")
    manifest = preprocess(make_settings(split={"validation": 0.3, "test": 0.2}, shard_tracks=5))
    rows = rows_of(tmp_path / "output")
    splits = {track: {row["split"] for row in rows if row["track"] == track} for track in {r["track"] for r in rows}}
    assert all(len(of_track) == 1 for of_track in splits.values())
    assert {"train", "validation", "test"} == set(manifest.splits)
    for name, record in manifest.splits.items():
        mine = [row for row in rows if row["split"] == name]
        assert record.clips == len(mine)
        assert record.tracks == len({row["track"] for row in mine})
        assert record.hours == pytest.approx(len(mine) / 3600)
    assert all(row["captions"] == [f"jazz {row['track'].removesuffix('.wav')}"] for row in rows)


def test_the_manifest_says_what_made_it(
    tmp_path: Path, make_settings: SettingsMaker, encoders_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["scripts/preprocess.py", "hydra.run.dir=.", "input=my music"])
    write_track(tmp_path / "input" / "a.wav", 0.5, caption="jazz")
    made = preprocess(make_settings())
    manifest = Manifest.load(tmp_path / "output")
    assert manifest == made
    assert (manifest.sampling_rate, manifest.frame_rate, manifest.num_codebooks) == (RATE, 50.0, 4)
    assert (manifest.codebook_size, manifest.text_width, manifest.audio_channels) == (64, 20, 1)
    assert manifest.text_encoder.name == manifest.audio_encoder.name == str(encoders_folder)
    assert manifest.text_encoder.fingerprint != manifest.audio_encoder.fingerprint
    assert manifest.settings["clip_seconds"] == 1.0
    assert manifest.versions == versions()
    assert manifest.command == "scripts/preprocess.py 'input=my music'"


def test_encoders_may_come_from_folders_of_their_own(
    tmp_path: Path, make_settings: SettingsMaker, encoders_folder: Path, reference: Any, tokenizer: Any
) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.5, caption="jazz")
    reference.text_encoder.save_pretrained(tmp_path / "both" / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "both" / "text_encoder")
    reference.audio_encoder.save_pretrained(tmp_path / "both" / "audio_encoder")
    whole = preprocess(make_settings())
    for name, given in (
        ("parts", {"encoders": str(tmp_path / "both")}),
        (
            "separate",
            {
                "encoders": None,
                "text_encoder": str(encoders_folder),
                "audio_encoder": str(tmp_path / "both" / "audio_encoder"),
            },
        ),
    ):
        manifest = preprocess(make_settings(output=str(tmp_path / name), **given))
        assert manifest.text_encoder.fingerprint == whole.text_encoder.fingerprint
        assert manifest.audio_encoder.fingerprint == whole.audio_encoder.fingerprint
        assert rows_of(tmp_path / name) == rows_of(tmp_path / "output")


def test_a_missing_input_is_named(make_settings: SettingsMaker, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"input .*input does not exist; give a folder of audio"):
        preprocess(make_settings())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_audio_is_an_error(tmp_path: Path, make_settings: SettingsMaker) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"holds no audio \(folder\): there is not one candidate"):
        preprocess(make_settings())


def test_an_input_of_which_nothing_can_be_used_is_an_error(tmp_path: Path, make_settings: SettingsMaker) -> None:
    write_track(tmp_path / "input" / "blip.wav", 0.1)
    (tmp_path / "input" / "bad.wav").touch()
    expected = r"none of 2 files in .* could be used: 1 rejected \(bad\.wav: the file is empty\), 1 shorter than"
    with pytest.raises(ValueError, match=expected):
        preprocess(make_settings())
    with pytest.raises(ValueError, match=expected):
        dry_run(make_settings())
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


def test_encoders_without_weights_are_named(
    tmp_path: Path, make_settings: SettingsMaker, encoders_folder: Path
) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.5)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((encoders_folder / "config.json").read_bytes())
    with pytest.raises((FileNotFoundError, CheckpointError), match="bare"):
        preprocess(make_settings(encoders=str(tmp_path / "bare")))


def test_devices_are_checked(tmp_path: Path, make_settings: SettingsMaker) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.5)
    with pytest.raises(ValueError, match="device is 'cuda:99', which torch does not find on this machine; there is "):
        preprocess(make_settings(device="cuda:99"))


def test_an_output_that_holds_something_is_refused(tmp_path: Path, make_settings: SettingsMaker) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.5)
    output = tmp_path / "output"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"output .* exists and holds something that is no latent dataset"):
            preprocess(make_settings(overwrite=overwrite))
    assert (output / "thesis.tex").read_text() == "years of work"
    (output / "thesis.tex").unlink()
    assert preprocess(make_settings()).counts["tracks"] == 1


def test_a_dataset_of_unknown_origin_is_replaced_only_on_request(tmp_path: Path, make_settings: SettingsMaker) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.5)
    preprocess(make_settings(keep_work=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "output"]
    with pytest.raises(FileExistsError, match=r"is a latent dataset already, and there is no work folder to add to it"):
        preprocess(make_settings())
    write_track(tmp_path / "input" / "b.wav", 0.5)
    assert preprocess(make_settings(overwrite=True)).counts["tracks"] == 2
    assert {row["track"] for row in rows_of(tmp_path / "output")} == {"a.wav", "b.wav"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".output.work", "input", "output"]


def test_a_file_as_output_is_refused(tmp_path: Path, make_settings: SettingsMaker) -> None:
    (tmp_path / "output").touch()
    with pytest.raises(NotADirectoryError, match="is a file; give a folder that does not exist yet"):
        preprocess(make_settings())


def test_the_input_is_only_read(tmp_path: Path, make_settings: SettingsMaker) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.5, caption="jazz")
    before = {path.name: path.read_bytes() for path in (tmp_path / "input").iterdir()}
    preprocess(make_settings())
    assert {path.name: path.read_bytes() for path in (tmp_path / "input").iterdir()} == before


def test_a_limit_takes_the_first_tracks(tmp_path: Path, make_settings: SettingsMaker) -> None:
    for name in "cab":
        write_track(tmp_path / "input" / f"{name}.wav", 0.5)
    preprocess(make_settings(limit=2))
    assert {row["track"] for row in rows_of(tmp_path / "output")} == {"a.wav", "b.wav"}


def test_a_dry_run_says_what_the_run_makes_and_writes_nothing(
    tmp_path: Path, make_settings: SettingsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write_track(tmp_path / "input" / f"{number}.wav", 1.0 + number, caption=f"jazz guitar {number}")
    write_track(tmp_path / "input" / "blip.wav", 0.1)
    write_track(tmp_path / "input" / "quiet.wav", 0.5)
    (tmp_path / "input" / "bad.wav").touch()
    found = dry_run(make_settings())
    assert [path.name for path in tmp_path.iterdir()] == ["input"]
    said = capsys.readouterr().out
    for text in (
        "7 candidates: 5 usable by their headers, 1 rejected, 1 shorter than 0.3 s; 1 without caption",
        "rejected: bad.wav: the file is empty",
        "clip length in seconds",
        "caption length in tokens",
        "estimated disk",
        "estimated time",
        "dry run: nothing was written",
    ):
        assert text in said
    manifest = preprocess(make_settings())
    for name in ("files", "tracks", "clips", "rejected", "too_short", "missing_caption"):
        assert found.counts[name] == manifest.counts[name], name
    assert found.captions == manifest.captions
    assert sum(found.clip_seconds) / 3600 == pytest.approx(sum(split.hours for split in manifest.splits.values()))
    assert found.audio_seconds == pytest.approx(1 + 2 + 3 + 4 + 0.1 + 0.5)
    files = list((tmp_path / "output").rglob("*.arrow"))
    assert found.bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.5)
