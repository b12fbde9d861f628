"""Files that list audio, one entry a row: an AudioFolder's metadata and audiocraft's manifests."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from musicgen_train.files import read_json
from musicgen_train.preprocess.settings import CaptionSettings
from musicgen_train.preprocess.sources.captions import Description
from musicgen_train.preprocess.sources.listing import check_not_empty
from musicgen_train.preprocess.sources.tracks import (
    Candidate,
    Track,
    UniqueNames,
    file_stamp,
    problem_text,
    split_name,
    split_of_folder,
)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
MANIFEST_NAMES = ("data.jsonl", "data.jsonl.gz")
# These fields of audiocraft's manifests describe the file rather than the music.
_MANIFEST_FIELDS = {"path", "duration", "sample_rate", "amplitude", "weight", "info_path"}


class _RowSource:
    """Files whose rows name audio files.

    Args:
        files: the files.
        root: the input folder, to which the tracks' names are relative.
        captions: which fields are captions and which are tags.
    """

    def __init__(self, files: list[Path], root: Path, captions: CaptionSettings) -> None:
        self._files = files
        self._root = root
        self._captions = captions

    def count(self) -> int:
        return sum(1 for file in self._files for _ in _rows(file))

    def check_it_is_there(self) -> None:
        check_not_empty(self._root)


class MetadataSource(_RowSource):
    """An AudioFolder as Hugging Face writes it: `metadata.csv` or `metadata.jsonl` with a column `file_name`.

    Files are named relative to their metadata file. As with Hugging Face, audio that no metadata file names is left
    out.
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
        name = _relative_name(audio, self._root)
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
                description=Description.from_fields(row, self._captions),
            )

        return Candidate(id=unique, order=order, stamp=stamp, read=read)


class ManifestSource(_RowSource):
    """An audiocraft manifest: `data.jsonl` or `.gz` with `path`, and beside each audio file a `.json` of its own.

    A relative path is looked for in the working directory, as audiocraft does, and then beside the manifest.
    """

    kind = "audiocraft"

    def __iter__(self) -> Iterator[Candidate]:
        names = UniqueNames()
        for place, file in enumerate(self._files):
            # audiocraft keeps one manifest per split, in folders called train, valid and so on.
            split = split_of_folder(_relative_name(file, self._root))
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
        name = _relative_name(audio, self._root)
        unique = names.of(name)
        beside = audio.with_suffix(".json")
        given_here = {name: value for name, value in row.items() if name not in _MANIFEST_FIELDS}

        def stamp() -> str:
            return f"{_digest(given_here)}; {file_stamp(audio)}; {file_stamp(beside)}"

        def read() -> Track:
            track = Track(id=unique, order=order, stamp=stamp(), audio=audio, group=name, split=split)
            try:
                fields = read_json(beside) if beside.is_file() else {}
                track.description = Description.from_fields({**given_here, **fields}, self._captions)
            except (OSError, ValueError) as error:
                track.problem = f"its description cannot be read: {problem_text(error, self._root)}"
            return track

        return Candidate(id=unique, order=order, stamp=stamp, read=read)


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


def _relative_name(path: Path, root: Path) -> str:
    """Return the path with forward slashes, relative to the root where it is below it."""
    try:
        return PurePosixPath(os.path.relpath(path, root) if path.is_relative_to(root) else path).as_posix()
    except ValueError:
        return path.as_posix()
