"""Where tracks come from: a folder, an AudioFolder's metadata, an audiocraft manifest, a Hugging Face dataset.

A source is listed once, and lazily: captions are read when their track's turn comes, and names are kept on disk.
"""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from musicgen_train.audio.io import AUDIO_EXTENSIONS
from musicgen_train.files import read_json
from musicgen_train.preprocess.settings import CaptionSettings, PreprocessSettings
from musicgen_train.preprocess.sources.captions import describe
from musicgen_train.preprocess.sources.hugging_face import open_dataset
from musicgen_train.preprocess.sources.listing import Listing
from musicgen_train.preprocess.sources.tracks import (
    Candidate,
    Source,
    Track,
    UniqueNames,
    file_stamp,
    split_name,
    split_of_folder,
)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
MANIFEST_NAMES = ("data.jsonl", "data.jsonl.gz")
_SAVED_DATASET_NAMES = ("dataset_dict.json", "dataset_info.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_source(settings: PreprocessSettings) -> Source:
    """The source that the settings name.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is there and holds nothing that can be preprocessed, or is not of the format asked for.
    """
    asked, name = settings.input_format, settings.input
    path = Path(name).expanduser()
    if asked == "hub" or (asked == "auto" and name.startswith("hf://")):
        return open_dataset(settings, None, name.removeprefix("hf://datasets/").removeprefix("hf://"))
    if not path.exists():
        if asked == "auto" and _HUB_ID.fullmatch(name) and not path.parent.exists():
            return open_dataset(settings, None, name)
        raise FileNotFoundError(
            f"input {name} does not exist; give a folder of audio, a metadata or manifest file, or a dataset of "
            "the hub as hf://owner/name"
        )
    is_saved = path.is_dir() and any((path / saved).is_file() for saved in _SAVED_DATASET_NAMES)
    # Of a large library even the names take a while: they are listed once, for whatever the input turns out to be.
    listing = Listing(path) if path.is_dir() and not is_saved else None
    kind = asked if asked != "auto" else "dataset" if is_saved else _kind_of(path, listing)
    if kind == "folder":
        if listing is None:
            raise ValueError(
                f"input {name} is {'a saved dataset' if is_saved else 'a file'}; expected a folder of audio"
            )
        return FolderSource(listing, settings.captions)
    root = path if path.is_dir() else path.parent
    if kind == "audiofolder":
        return MetadataSource(_files_named(METADATA_NAMES, path, listing), root, settings.captions)
    if kind == "audiocraft":
        return ManifestSource(_files_named(MANIFEST_NAMES, path, listing), root, settings.captions)
    return open_dataset(settings, path, name, listing)


class FolderSource:
    """Audio files of a folder and those below it, each with what lies beside it: same stem, `.txt` or `.json`.

    Of a `.txt` each line that is not empty is a caption. The fields of a `.json` come after it. Links are followed,
    and each folder is entered once. Hidden files (macOS leaves `._song.wav` behind) are passed over.
    """

    kind = "folder"

    def __init__(self, listing: Listing, captions: CaptionSettings) -> None:
        self._listing = listing
        self._folder = listing.root
        self._captions = captions
        self._suffixes = sorted(AUDIO_EXTENSIONS)

    def count(self) -> int:
        return self._listing.count_ending(self._suffixes) + len(self._listing.unlisted)

    def check_it_is_there(self) -> None:
        _check_folder(self._folder)

    def __iter__(self) -> Iterator[Candidate]:
        names = UniqueNames()
        for relative in self._listing.ending(self._suffixes):
            stem = os.path.splitext(relative)[0]
            beside = [f"{stem}{suffix}" for suffix in (".txt", ".json") if f"{stem}{suffix}" in self._listing]
            name = names.of(relative)
            yield Candidate(
                id=name,
                order=name,
                stamp=functools.partial(self._stamp, relative, beside),
                read=functools.partial(self._read, name, relative, beside),
            )
        for relative, reason in sorted(self._listing.unlisted.items()):
            name = names.of(f"{relative}/")
            track = Track(id=name, order=name, audio=b"", problem=f"the folder cannot be listed: {reason}")
            yield Candidate(id=name, order=name, stamp=lambda: "", read=functools.partial(_as_it_is, track))

    def _stamp(self, relative: str, beside: Sequence[str]) -> str:
        return "; ".join([file_stamp(self._folder / each) for each in (relative, *beside)])

    def _read(self, name: str, relative: str, beside: Sequence[str]) -> Track:
        # Before anything is read: what changes meanwhile is noticed the next time.
        stamp = self._stamp(relative, beside)
        track = Track(id=name, order=name, audio=self._folder / relative, split=split_of_folder(relative), stamp=stamp)
        captions: list[str] = []
        fields: dict[str, Any] = {}
        try:
            for each in beside:
                if each.endswith(".txt"):
                    captions = _read_lines(self._folder / each)
                else:
                    fields = read_json(self._folder / each)
            track.description = describe(fields, self._captions, captions)
        except (OSError, ValueError) as error:
            track.problem = f"its captions cannot be read: {_short(error, self._folder)}"
        return track


class _TableSource:
    """Files that list audio, one entry a row."""

    def __init__(self, files: list[Path], root: Path, captions: CaptionSettings) -> None:
        self._files = files
        self._root = root
        self._captions = captions

    def count(self) -> int:
        return sum(1 for file in self._files for _ in _rows(file))

    def check_it_is_there(self) -> None:
        _check_folder(self._root)


class MetadataSource(_TableSource):
    """An AudioFolder as Hugging Face writes it: `metadata.csv` or `metadata.jsonl` with a column `file_name`.

    Files are named relative to their metadata file. Audio that no metadata file names is no candidate, as there.
    """

    kind = "audiofolder"

    def __iter__(self) -> Iterator[Candidate]:
        names = UniqueNames()
        for place, file in enumerate(self._files):
            for number, row in enumerate(_rows(file), start=1):
                given = row.pop("file_name", None)
                if not isinstance(given, str) or not given:
                    raise ValueError(f"{file}, entry {number}: no file_name; it has {', '.join(row) or 'no columns'}")
                yield self._candidate(file.parent / given, row, names, f"{place:06d}/{number:012d}")

    def _candidate(self, audio: Path, row: Mapping[str, Any], names: UniqueNames, order: str) -> Candidate:
        name = _below(audio, self._root)
        unique = names.of(name)

        def stamp() -> str:
            return f"{_digest(row)}; {file_stamp(audio)}"

        def read() -> Track:
            return Track(
                id=unique,
                order=order,
                stamp=stamp(),
                audio=audio,
                group=name,
                split=split_name(row.get("split")) or split_of_folder(name),
                description=describe(row, self._captions),
            )

        return Candidate(id=unique, order=order, stamp=stamp, read=read)


class ManifestSource(_TableSource):
    """An audiocraft manifest: `data.jsonl` or `.gz` with `path`, and beside each audio file a `.json` of its own.

    A relative path is looked for in the working folder, as audiocraft does, and then beside the manifest.
    """

    kind = "audiocraft"

    def __iter__(self) -> Iterator[Candidate]:
        names = UniqueNames()
        for place, file in enumerate(self._files):
            # audiocraft keeps one manifest per split, in folders called train, valid and so on.
            split = split_of_folder(_below(file, self._root))
            for number, row in enumerate(_rows(file), start=1):
                given = row.get("path")
                if not isinstance(given, str) or not given:
                    raise ValueError(f"{file}, line {number}: no path; it has {', '.join(row) or 'no fields'}")
                audio = Path(given)
                if not audio.is_absolute() and not audio.is_file():
                    audio = file.parent / audio
                yield self._candidate(audio, row, split, names, f"{place:06d}/{number:012d}")

    def _candidate(
        self, audio: Path, row: Mapping[str, Any], split: str | None, names: UniqueNames, order: str
    ) -> Candidate:
        name = _below(audio, self._root)
        unique = names.of(name)
        beside = audio.with_suffix(".json")
        given_here = {name: value for name, value in row.items() if name not in _MANIFEST_FIELDS}

        def stamp() -> str:
            return f"{_digest(given_here)}; {file_stamp(audio)}; {file_stamp(beside)}"

        def read() -> Track:
            track = Track(id=unique, order=order, stamp=stamp(), audio=audio, group=name, split=split)
            try:
                fields = read_json(beside) if beside.is_file() else {}
                track.description = describe({**given_here, **fields}, self._captions)
            except (OSError, ValueError) as error:
                track.problem = f"its description cannot be read: {_short(error, self._root)}"
            return track

        return Candidate(id=unique, order=order, stamp=stamp, read=read)


# What audiocraft's manifests say of the file rather than of the music.
_MANIFEST_FIELDS = {"path", "duration", "sample_rate", "amplitude", "weight", "info_path"}


def first(source: Source, limit: int | None) -> Iterable[Candidate]:
    """The first candidates of a source, all without a limit."""
    return source if limit is None else itertools.islice(source, limit)


def _kind_of(path: Path, listing: Listing | None) -> str:
    if listing is None:
        if path.name in METADATA_NAMES:
            return "audiofolder"
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            return "audiocraft"
        if path.suffix in (".parquet", ".arrow"):
            return "dataset"
        raise ValueError(
            f"input {path} is a file that is neither {' nor '.join(METADATA_NAMES)}, .jsonl[.gz], .parquet nor .arrow; "
            "give the folder that holds it"
        )
    if listing.named(METADATA_NAMES):
        return "audiofolder"
    if listing.named(MANIFEST_NAMES):
        return "audiocraft"
    suffixes = listing.suffixes()
    return "dataset" if ".parquet" in suffixes and not suffixes & AUDIO_EXTENSIONS else "folder"


def _files_named(names: Sequence[str], path: Path, listing: Listing | None) -> list[Path]:
    if listing is None:
        return [path]
    files = [path / file for file in listing.named(names)]
    if not files:
        raise ValueError(f"input {path} has no {' or '.join(names)}; for a folder of audio use input_format=folder")
    return files


def _check_folder(folder: Path) -> None:
    # A disk that was taken away leaves nothing, or the empty folder that it was mounted to.
    with os.scandir(folder) as entries:
        if next(entries, None) is None:
            raise FileNotFoundError(f"{folder} is empty")


def _as_it_is(track: Track) -> Track:
    return track


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    return _csv_rows(file) if file.suffix == ".csv" else _json_lines(file)


def _csv_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines):
                yield {name: value for name, value in row.items() if name is not None}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is no table of comma-separated values in UTF-8: {error}") from error


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"expected a JSON object, got {type(row).__name__}")
                yield row
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{file}, line {number}: {error}") from error


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}") from error


def _below(path: Path, root: Path) -> str:
    """The path relative to the root where it is below it, with forward slashes."""
    try:
        return PurePosixPath(os.path.relpath(path, root) if path.is_relative_to(root) else path).as_posix()
    except ValueError:
        return path.as_posix()


def _short(error: Exception, root: Path) -> str:
    return " ".join(str(error).replace(f"{root}{os.sep}", "").split())
