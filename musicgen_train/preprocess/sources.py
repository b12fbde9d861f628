"""Where tracks come from: a folder, an AudioFolder's metadata, an audiocraft manifest, a Hugging Face dataset.

A source is listed once, and lazily: captions are read when their track's turn comes, so memory holds names only.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from musicgen_train.audio.io import AUDIO_EXTENSIONS
from musicgen_train.hub.folder import read_json
from musicgen_train.preprocess.captions import describe
from musicgen_train.preprocess.hugging_face import open_dataset
from musicgen_train.preprocess.settings import CaptionSettings, PreprocessSettings
from musicgen_train.preprocess.tracks import Source, Track, UniqueNames, split_name, split_of_folder

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
    unlisted: dict[str, str] = {}
    listing = list(walk(path, unlisted)) if path.is_dir() and not is_saved else []
    kind = asked if asked != "auto" else "dataset" if is_saved else _kind_of(path, listing)
    root = path if path.is_dir() else path.parent
    if kind == "folder":
        if not path.is_dir():
            raise ValueError(f"input {name} is a file; expected a folder of audio")
        return FolderSource(path, listing, settings.captions, unlisted)
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

    def __init__(
        self,
        folder: Path,
        listing: list[tuple[str, list[str]]],
        captions: CaptionSettings,
        unlisted: Mapping[str, str],
    ) -> None:
        self.folder = folder
        self._captions = captions
        self._unlisted = unlisted
        # Relative path, whether a .txt and whether a .json lies beside it.
        self._files: list[tuple[str, bool, bool]] = []
        for below, names in listing:
            there = set(names)
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in AUDIO_EXTENSIONS and not name.startswith("."):
                    relative = f"{below}/{name}" if below else name
                    self._files.append((relative, f"{stem}.txt" in there, f"{stem}.json" in there))
        self._files.sort()

    def count(self) -> int:
        return len(self._files) + len(self._unlisted)

    def __iter__(self) -> Iterator[Track]:
        names = UniqueNames()
        for relative, has_text, has_json in self._files:
            path = self.folder / relative
            track = Track(id=names.of(relative), audio=path, split=split_of_folder(relative))
            try:
                captions = _read_lines(path.with_suffix(".txt")) if has_text else []
                fields = read_json(path.with_suffix(".json")) if has_json else {}
                track.description = describe(fields, self._captions, captions)
            except (OSError, ValueError) as error:
                track.problem = f"its captions cannot be read: {_short(error, self.folder)}"
            yield track
        for relative, reason in sorted(self._unlisted.items()):
            yield Track(id=names.of(f"{relative}/"), audio=b"", problem=f"the folder cannot be listed: {reason}")


class MetadataSource:
    """An AudioFolder as Hugging Face writes it: `metadata.csv` or `metadata.jsonl` with a column `file_name`.

    Files are named relative to their metadata file. Audio that no metadata file names is no candidate, as there.
    """

    kind = "audiofolder"

    def __init__(self, files: list[Path], root: Path, captions: CaptionSettings) -> None:
        self._files = files
        self._root = root
        self._captions = captions

    def count(self) -> int:
        return sum(1 for file in self._files for _ in _rows(file))

    def __iter__(self) -> Iterator[Track]:
        names = UniqueNames()
        for file in self._files:
            for number, row in enumerate(_rows(file), start=1):
                given = row.pop("file_name", None)
                if not isinstance(given, str) or not given:
                    raise ValueError(f"{file}, entry {number}: no file_name; it has {', '.join(row) or 'no columns'}")
                audio = file.parent / given
                name = _below(audio, self._root)
                stated = row.get("split")
                yield Track(
                    id=names.of(name),
                    audio=audio,
                    group=name,
                    split=split_name(stated) or split_of_folder(name),
                    description=describe(row, self._captions),
                )


class ManifestSource:
    """An audiocraft manifest: `data.jsonl` or `.gz` with `path`, and beside each audio file a `.json` of its own.

    A relative path is looked for in the working folder, as audiocraft does, and then beside the manifest.
    """

    kind = "audiocraft"

    def __init__(self, files: list[Path], root: Path, captions: CaptionSettings) -> None:
        self._files = files
        self._root = root
        self._captions = captions

    def count(self) -> int:
        return sum(1 for file in self._files for _ in _rows(file))

    def __iter__(self) -> Iterator[Track]:
        names = UniqueNames()
        for file in self._files:
            # audiocraft keeps one manifest per split, in folders called train, valid and so on.
            split = split_of_folder(_below(file, self._root))
            for number, row in enumerate(_rows(file), start=1):
                given = row.get("path")
                if not isinstance(given, str) or not given:
                    raise ValueError(f"{file}, line {number}: no path; it has {', '.join(row) or 'no fields'}")
                audio = Path(given)
                if not audio.is_absolute() and not audio.is_file():
                    audio = file.parent / audio
                name = _below(audio, self._root)
                track = Track(id=names.of(name), audio=audio, group=name, split=split)
                beside = audio.with_suffix(".json")
                try:
                    fields = read_json(beside) if beside.is_file() else {}
                    given_here = {name: value for name, value in row.items() if name not in _MANIFEST_FIELDS}
                    track.description = describe({**given_here, **fields}, self._captions)
                except (OSError, ValueError) as error:
                    track.problem = f"its description cannot be read: {_short(error, self._root)}"
                yield track


# What audiocraft's manifests say of the file rather than of the music.
_MANIFEST_FIELDS = {"path", "duration", "sample_rate", "amplitude", "weight", "info_path"}


def walk(root: Path, unlisted: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Folders from `root` down, relative with forward slashes ("" is `root`), and the names of the files in each.

    Links to folders are followed once all real folders are listed, so that files go by their own path where they have
    one. A folder that was seen before, by whatever path, is not entered again: loops end.

    Raises:
        OSError: `root` cannot be listed. A folder further down that cannot be goes into `unlisted`, with the reason.
    """

    def below(folder: str) -> str:
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        return "" if relative == "." else relative

    def note(error: OSError) -> None:
        if unlisted is not None:
            unlisted[below(os.fspath(error.filename))] = error.strerror or type(error).__name__

    os.scandir(root).close()
    seen: set[tuple[int, int]] = set()
    starts = deque([os.fspath(root)])
    while starts:
        for folder, folders, files in os.walk(starts.popleft(), onerror=note):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            starts.extend(path for name in folders if os.path.islink(path := os.path.join(folder, name)))
            yield below(folder), sorted(files)


def first(source: Source, limit: int | None) -> Iterable[Track]:
    """The first tracks of a source, all without a limit."""
    return source if limit is None else itertools.islice(source, limit)


def _kind_of(path: Path, listing: list[tuple[str, list[str]]]) -> str:
    if path.is_file():
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
    names = {name for _, files in listing for name in files}
    if names & set(METADATA_NAMES):
        return "audiofolder"
    if names & set(MANIFEST_NAMES):
        return "audiocraft"
    suffixes = {os.path.splitext(name)[1].lower() for name in names}
    return "dataset" if ".parquet" in suffixes and not suffixes & AUDIO_EXTENSIONS else "folder"


def _files_named(names: Sequence[str], path: Path, listing: list[tuple[str, list[str]]]) -> list[Path]:
    files = [path / folder / name for folder, there in listing for name in names if name in there]
    if path.is_file():
        return [path]
    if not files:
        raise ValueError(f"input {path} has no {' or '.join(names)}; for a folder of audio use input_format=folder")
    return files


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
