"""Hugging Face datasets as sources: saved to disk, parquet, or of the hub."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from musicgen_train.preprocess.settings import CaptionSettings, PreprocessSettings
from musicgen_train.preprocess.sources.captions import describe, jsonable
from musicgen_train.preprocess.sources.listing import Listing
from musicgen_train.preprocess.sources.tracks import Candidate, Track, split_name, split_of_folder

# Name of a split, its place among them, and its column of audio.
_About = tuple[str, int, str]


class DatasetSource:
    """A Hugging Face dataset: its audio undecoded, the other columns as fields."""

    kind = "dataset"

    def __init__(self, splits: Mapping[str, Any], audio_column: str | None, captions: CaptionSettings) -> None:
        self._captions = captions
        self._splits = {name: _undecoded(split, _audio_column(split, audio_column)) for name, split in splits.items()}

    def count(self) -> int | None:
        sizes = [len(split) if hasattr(split, "__len__") else None for split, _ in self._splits.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def check_it_is_there(self) -> None:
        """Open files stay readable; what cannot be read raises by itself."""

    def __iter__(self) -> Iterator[Candidate]:
        for place, (name, (split, column)) in enumerate(self._splits.items()):
            about = (name, place, column)
            if hasattr(split, "__len__"):
                # A row may hold megabytes of audio: read when it is wanted, not when it is listed.
                for number in range(len(split)):
                    read = functools.partial(self._row, split, number, about)
                    yield self._candidate(read, number, about, f"{split._fingerprint} {number}")
            else:
                for number, row in enumerate(split):
                    yield self._candidate(functools.partial(self._track, row, number, about, ""), number, about, "")

    def _candidate(self, read: Callable[[], Track], number: int, about: _About, stamp: str) -> Candidate:
        name, place, _ = about
        return Candidate(id=f"{name}/{number:08d}", order=f"{place:06d}/{number:012d}", stamp=lambda: stamp, read=read)

    def _row(self, split: Any, number: int, about: _About) -> Track:
        return self._track(split[number], number, about, f"{split._fingerprint} {number}")

    def _track(self, row: dict[str, Any], number: int, about: _About, stamp: str) -> Track:
        name, place, column = about
        row = dict(row)
        audio = row.pop(column)
        stated = split_name(row.get("split"))
        track = Track(
            id=f"{name}/{number:08d}",
            order=f"{place:06d}/{number:012d}",
            audio=b"",
            split=stated or (split_name(name) if len(self._splits) > 1 else None),
            description=describe(row, self._captions),
        )
        if isinstance(audio, Mapping):
            track.description.metadata.setdefault("file", jsonable(audio.get("path")))
            audio = audio.get("bytes") or audio.get("path")
        if isinstance(audio, bytes) and audio:
            track.audio, track.stamp = audio, stamp
        elif isinstance(audio, str) and audio:
            # A file of its own, which may change while the dataset does not: it has no stamp.
            track.audio = Path(audio)
        else:
            track.problem = f"the row has no audio in its column {column}"
        return track


def open_dataset(
    settings: PreprocessSettings, path: Path | None, name: str, listing: Listing | None = None
) -> DatasetSource:
    """The dataset of that name.

    Args:
        settings: which part of it.
        path: its file or folder; None for one of the hub.
        name: its name on the hub, or the path as it was given.
        listing: of a folder with parquet files; of a saved dataset, and of a file, None.

    Raises:
        ValueError: it cannot be read, or has no audio.
    """
    import datasets

    hub = settings.hub
    try:
        if path is None:
            found = datasets.load_dataset(
                name, hub.config_name, split=hub.split, revision=hub.revision, streaming=hub.streaming
            )
        elif path.is_dir() and listing is None:
            found = datasets.load_from_disk(str(path))
        elif path.suffix == ".arrow":
            found = datasets.Dataset.from_file(str(path))
        else:
            files = _parquet_files(path, listing)
            found = datasets.load_dataset("parquet", data_files=files, streaming=hub.streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        what = (
            f"input {name} is nothing on this machine, and as a dataset of the hub" if path is None else f"input {name}"
        )
        raise ValueError(f"{what} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        found = {hub.split or "train": found}
    if path is not None and hub.split is not None:
        if hub.split not in found:
            raise ValueError(f"the dataset {name} has no split {hub.split!r}; it has {', '.join(found)}")
        found = {hub.split: found[hub.split]}
    return DatasetSource(found, hub.audio_column, settings.captions)


def _parquet_files(path: Path, listing: Listing | None) -> dict[str, list[str]]:
    """Parquet files by split, which folders or names like `validation-00000-of-00001.parquet` may say."""
    if listing is None:
        return {"train": [str(path)]}
    files: dict[str, list[str]] = {}
    for relative in listing.ending([".parquet"]):
        name = relative.rpartition("/")[2]
        split = split_name(re.split(r"[-_.]", name)[0]) or split_of_folder(relative) or "train"
        files.setdefault(split, []).append(str(path / relative))
    if not files:
        raise ValueError(f"there is no .parquet file in {path}")
    return files


def _audio_column(split: Any, asked: str | None) -> str:
    import datasets

    features = split.features or {}
    columns = list(features) or list(split.column_names or ())
    if asked is not None:
        if asked not in columns:
            raise ValueError(f"the dataset has no column {asked!r} (hub.audio_column); it has {', '.join(columns)}")
        return asked
    for name, feature in features.items():
        if isinstance(feature, datasets.Audio):
            return str(name)
    if "audio" in columns:
        return "audio"
    raise ValueError(f"the dataset has no Audio column; it has {', '.join(columns)}. Name one with hub.audio_column")


def _undecoded(split: Any, column: str) -> tuple[Any, str]:
    import datasets

    # datasets itself decodes with torchcodec only, which a bare machine does not have.
    if split.features is not None and isinstance(split.features.get(column), datasets.Audio):
        split = split.cast_column(column, datasets.Audio(decode=False))
    return split, column
