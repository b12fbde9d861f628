"""Every kind of input gives the tracks, captions and splits that its files state."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from audio_corpus import SettingsMaker, write_track

from musicgen_train.preprocess.run import preprocess
from musicgen_train.preprocess.settings import PreprocessSettings
from musicgen_train.preprocess.sources.input_formats import open_source
from musicgen_train.preprocess.sources.listing import Listing
from musicgen_train.preprocess.sources.tracks import Source, Track


def source_of(settings: PreprocessSettings) -> Source:
    return open_source(settings.input, settings.input_format, settings.hub, settings.captions)


def tracks_of(settings: PreprocessSettings) -> dict[str, Track]:
    source = source_of(settings)
    tracks = [candidate.read() for candidate in source]
    assert [candidate.id for candidate in source] == [track.id for track in tracks]
    assert [track.order for track in tracks] == sorted(track.order for track in tracks)
    assert source.count() in (None, len(tracks))
    assert len({track.id for track in tracks}) == len(tracks)
    return {track.id: track for track in tracks}


def test_a_folder_with_texts_beside_the_audio(tmp_path: Path, make_settings: SettingsMaker) -> None:
    folder = tmp_path / "input"
    write_track(folder / "a.wav", 0.3, caption="\ufeffjazz guitar\r\n\r\nslow beat\n")
    write_track(folder / "deep" / "er" / "b.FLAC", 0.3, caption={"description": "pop", "tags": ["x", "y"], "bpm": 90})
    write_track(folder / "c.mp3", 0.3, rate=44_100, caption={"caption": "from json"})
    (folder / "c.txt").write_text("from text")
    write_track(folder / "val" / "d.ogg", 0.3)
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    write_track(folder / "latin.wav", 0.3)
    tracks = tracks_of(make_settings())
    assert list(tracks) == ["a.wav", "c.mp3", "deep/er/b.FLAC", "latin.wav", "val/d.ogg"]
    assert tracks["a.wav"].description.captions == ["jazz guitar", "slow beat"]
    assert tracks["c.mp3"].description.captions == ["from text", "from json"]
    assert tracks["deep/er/b.FLAC"].description.tags == ["x", "y"]
    assert tracks["deep/er/b.FLAC"].description.metadata["bpm"] == 90
    assert tracks["val/d.ogg"].split == "validation"
    assert tracks["a.wav"].split is tracks["deep/er/b.FLAC"].split is None
    assert tracks["latin.wav"].problem is not None
    assert "latin.txt is no text in UTF-8" in tracks["latin.wav"].problem


def test_loops_and_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "z" / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "z" / "deep" / "1.wav").touch()
    (tmp_path / "outside" / "2.wav").touch()
    (root / "a").symlink_to(root / "z")
    (root / "z" / "up").symlink_to(root)
    (root / "b").symlink_to(tmp_path / "outside")
    (root / "c").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(root)
    assert list(Listing(root)) == ["b/2.wav", "z/deep/1.wav"]


def test_a_folder_that_cannot_be_listed_is_rejected(
    tmp_path: Path, make_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.4)
    write_track(tmp_path / "input" / "locked" / "b.wav", 0.4)
    scandir = os.scandir

    def refuse(folder: Any) -> Any:
        # Not by permissions, since root may read everything.
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert preprocess(make_settings()).counts["rejected"] == 1
    line = json.loads((tmp_path / "output" / "rejected.jsonl").read_text())
    assert line == {"file": "locked/", "reason": "the folder cannot be listed: Permission denied"}


def test_names_that_are_no_text(tmp_path: Path, make_settings: SettingsMaker) -> None:
    sound = write_track(tmp_path / "x.wav", 0.4).read_bytes()
    (tmp_path / "input").mkdir()
    for name in (b"\xff.wav", b"\xfe.wav"):
        with open(os.path.join(os.fsencode(tmp_path / "input"), name), "wb") as file:
            file.write(sound)
    assert sorted(tracks_of(make_settings())) == ["?.wav", "?.wav (2)"]
    assert preprocess(make_settings()).counts["tracks"] == 2


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("by_file", [False, True])
def test_an_audiofolder(tmp_path: Path, make_settings: SettingsMaker, name: str, by_file: bool) -> None:
    folder = tmp_path / "input"
    rows = [
        {"file_name": "data/a.wav", "caption": "jazz, late", "split": "test", "bpm": "90"},
        {"file_name": "b.wav", "caption": "", "split": "", "bpm": "80"},
    ]
    write_track(folder / "data" / "a.wav", 0.3)
    write_track(folder / "b.wav", 0.3)
    write_track(folder / "not listed.wav", 0.3)
    if name.endswith(".csv"):
        lines = ["file_name,caption,split,bpm", 'data/a.wav,"jazz, late",test,90', "b.wav,,,80"]
        (folder / name).write_text("\n".join(lines))
    else:
        (folder / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    given = {"input": str(folder / name)} if by_file else {}
    tracks = tracks_of(make_settings(**given))
    assert list(tracks) == ["data/a.wav", "b.wav"]
    assert tracks["data/a.wav"].description.captions == ["jazz, late"]
    assert tracks["data/a.wav"].description.metadata["bpm"] == "90"
    assert [track.split for track in tracks.values()] == ["test", None]
    assert tracks["b.wav"].description.captions == []
    assert preprocess(make_settings(**given)).counts["tracks"] == 2


def test_an_audiofolder_with_a_folder_per_split(tmp_path: Path, make_settings: SettingsMaker) -> None:
    for split in ("train", "validation"):
        write_track(tmp_path / "input" / split / "a.wav", 0.3)
        row = {"file_name": "a.wav", "text": f"the {split} one"}
        (tmp_path / "input" / split / "metadata.jsonl").write_text(json.dumps(row))
    tracks = tracks_of(make_settings())
    assert {name: (track.split, track.description.captions) for name, track in tracks.items()} == {
        "train/a.wav": ("train", ["the train one"]),
        "validation/a.wav": ("validation", ["the validation one"]),
    }


def test_a_file_that_is_listed_twice_is_in_one_split(tmp_path: Path, make_settings: SettingsMaker) -> None:
    lines = ["file_name,text"]
    for number in range(8):
        write_track(tmp_path / "input" / f"{number}.wav", 0.4)
        lines += [f"{number}.wav,jazz {number}", f"{number}.wav,pop {number}"]
    (tmp_path / "input" / "metadata.csv").write_text("\n".join(lines))
    preprocess(make_settings(split={"validation": 0.5}))
    parts = datasets.load_from_disk(str(tmp_path / "output"))
    files = {split: [track.removesuffix(" (2)") for track in part["track"]] for split, part in parts.items()}
    assert sorted(files) == ["train", "validation"]
    assert not set(files["train"]) & set(files["validation"])
    assert sorted(files["train"] + files["validation"]) == sorted([f"{number}.wav" for number in range(8)] * 2)


def test_a_listed_file_that_is_not_there_is_rejected(tmp_path: Path, make_settings: SettingsMaker) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.3)
    (tmp_path / "input" / "metadata.csv").write_text("file_name,text\na.wav,x\ngone.wav,y\n")
    assert preprocess(make_settings()).counts["rejected"] == 1
    line = json.loads((tmp_path / "output" / "rejected.jsonl").read_text())
    assert line == {"file": "gone.wav", "reason": "it cannot be opened: No such file or directory"}


@pytest.mark.parametrize("packed", [False, True])
def test_an_audiocraft_manifest(tmp_path: Path, make_settings: SettingsMaker, packed: bool) -> None:
    music = tmp_path / "music"
    write_track(
        music / "a.wav",
        0.5,
        caption={"description": "jazz trio", "keywords": "piano, bass", "genre": "jazz", "bpm": 90},
    )
    write_track(music / "b.wav", 0.5)
    egs = tmp_path / "input" / "train"
    egs.mkdir(parents=True)
    entry = {"duration": 0.5, "sample_rate": 8000, "amplitude": None, "weight": None, "info_path": None}
    lines = [{"path": str(music / "a.wav"), **entry}, {"path": "../../music/b.wav", **entry}]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (egs / ("data.jsonl.gz" if packed else "data.jsonl")).write_bytes(gzip.compress(text) if packed else text)
    first, second = tracks_of(make_settings()).values()
    assert first.description.captions == ["jazz trio"]
    assert first.description.tags == ["piano", "bass", "jazz"]
    assert first.description.metadata == json.loads((music / "a.json").read_text())
    assert second.description.captions == []
    assert first.split == second.split == "train"
    assert preprocess(make_settings()).counts["tracks"] == 2


def hugging_face(folder: Path, number: int = 3) -> datasets.Dataset:
    rows = [
        {
            "sound": {
                "bytes": write_track(folder / f"{index}.wav", 0.5, pitch=100.0 + index).read_bytes(),
                "path": None,
            },
            "caption": f"jazz {index}",
            "tags": ["x", "y"],
        }
        for index in range(number)
    ]
    features = datasets.Features(
        {
            # How Arrow stores an Audio column; encoding one needs torchcodec.
            "sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "caption": datasets.Value("string"),
            "tags": datasets.List(datasets.Value("string")),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


def as_stored(dataset: datasets.Dataset) -> datasets.Dataset:
    """Give the dataset an Audio column as on the hub, which would decode."""
    return dataset.cast_column("sound", datasets.Audio())


@pytest.mark.parametrize("kind", ["saved", "saved splits", "parquet", "parquet folder", "streaming"])
def test_a_hugging_face_dataset(tmp_path: Path, make_settings: SettingsMaker, kind: str) -> None:
    found = as_stored(hugging_face(tmp_path / "wavs"))
    folder = tmp_path / "input"
    given: dict[str, Any] = {}
    if kind == "saved":
        found.save_to_disk(str(folder))
    elif kind == "saved splits":
        datasets.DatasetDict({"train": found, "test": found.select([1])}).save_to_disk(str(folder))
    else:
        folder.mkdir()
        found.to_parquet(str(folder / "train-00000-of-00001.parquet"))
        if kind == "parquet":
            given["input"] = str(folder / "train-00000-of-00001.parquet")
        given["hub"] = {"streaming": kind == "streaming"}
    tracks = tracks_of(make_settings(**given))
    assert [track.id for track in tracks.values() if track.id.startswith("train")] == [
        f"train/{index:08d}" for index in range(3)
    ]
    assert tracks["train/00000001"].description.captions == ["jazz 1"]
    assert tracks["train/00000001"].description.tags == ["x", "y"]
    assert tracks["train/00000001"].split == ("train" if kind == "saved splits" else None)
    manifest = preprocess(make_settings(**given))
    assert manifest.counts["tracks"] == len(tracks) == (4 if kind == "saved splits" else 3)
    if kind == "saved splits":
        assert {name: split.tracks for name, split in manifest.splits.items()} == {"train": 3, "test": 1}
        assert len(tracks_of(make_settings(hub={"split": "test"}))) == 1


def test_the_same_sound_gives_the_same_codes_from_any_source(tmp_path: Path, make_settings: SettingsMaker) -> None:
    as_stored(hugging_face(tmp_path / "wavs")).save_to_disk(str(tmp_path / "input"))
    contents = []
    for given in ({}, {"input": str(tmp_path / "wavs")}):
        output = tmp_path / f"from{len(contents)}"
        preprocess(make_settings(output=str(output), split={"validation": 0.0}, **given))
        contents.append(list(datasets.load_from_disk(str(output))["train"]["codes"]))
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 3


def test_a_row_without_audio_is_rejected(tmp_path: Path, make_settings: SettingsMaker) -> None:
    rows = hugging_face(tmp_path / "wavs").to_list()
    rows[1]["sound"] = None
    found = datasets.Dataset.from_list(rows, features=hugging_face(tmp_path / "wavs").features)
    as_stored(found).save_to_disk(str(tmp_path / "input"))
    assert preprocess(make_settings()).counts["rejected"] == 1
    assert "the row has no audio in its column sound" in (tmp_path / "output" / "rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ({"metadata.csv": "name,text\na,b\n"}, {}, r"metadata\.csv, entry 1: no file_name; it has name, text"),
        ({"data.jsonl": '{"file": 1}\n'}, {}, r"data\.jsonl, line 1: no path; it has file"),
        ({"data.jsonl": "{}\nnonsense\n"}, {}, r"data\.jsonl, line 2: Expecting value"),
        ({"data.jsonl.gz": "not packed"}, {}, r"data\.jsonl\.gz, line 0: Not a gzipped file"),
        ({"a.wav": ""}, {"input_format": "audiofolder"}, r"has no metadata\.csv or metadata\.jsonl"),
        ({"a.wav": ""}, {"input_format": "audiocraft"}, r"has no data\.jsonl or data\.jsonl\.gz"),
        ({"a.wav": ""}, {"input_format": "dataset"}, r"there is no \.parquet file in"),
        ({"x.parquet": "no parquet"}, {}, r"input .* cannot be read: "),
    ],
)
def test_a_source_that_is_damaged_is_named(
    tmp_path: Path, make_settings: SettingsMaker, files: dict[str, str], given: dict[str, Any], message: str
) -> None:
    (tmp_path / "input").mkdir()
    for name, text in files.items():
        (tmp_path / "input" / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        preprocess(make_settings(**given))


@pytest.mark.parametrize("name", ["nobody/nothing", "hf://nobody/nothing"])
def test_a_dataset_of_the_hub_that_cannot_be_had_is_told(make_settings: SettingsMaker, name: str) -> None:
    with pytest.raises(ValueError, match=r"is nothing on this machine, and as a dataset of the hub cannot be read: "):
        source_of(make_settings(input=name))


def test_a_file_of_another_kind_is_told(tmp_path: Path, make_settings: SettingsMaker) -> None:
    (tmp_path / "song.zip").touch()
    with pytest.raises(ValueError, match=r"song\.zip is a file that is neither metadata\.csv nor metadata\.jsonl"):
        source_of(make_settings(input=str(tmp_path / "song.zip")))


def test_columns_are_named_when_the_audio_is_not_found(tmp_path: Path, make_settings: SettingsMaker) -> None:
    datasets.Dataset.from_dict({"a": [1], "b": ["x"]}).save_to_disk(str(tmp_path / "input"))
    with pytest.raises(
        ValueError, match=r"the dataset has no Audio column; it has a, b\. Name one with hub\.audio_column"
    ):
        source_of(make_settings())
    with pytest.raises(ValueError, match=r"the dataset has no column 'c' \(hub\.audio_column\); it has a, b"):
        source_of(make_settings(hub={"audio_column": "c"}))


def test_keys_follow_what_decides_a_tracks_rows(tmp_path: Path, make_settings: SettingsMaker) -> None:
    write_track(tmp_path / "input" / "a.wav", 0.3, caption="jazz")

    def key() -> str:
        (track,) = tracks_of(make_settings()).values()
        return track.content_key()

    before = key()
    assert key() == before
    (tmp_path / "input" / "a.txt").write_text("pop")
    changed_caption = key()
    assert changed_caption != before
    write_track(tmp_path / "input" / "a.wav", 0.4)
    assert key() != changed_caption
