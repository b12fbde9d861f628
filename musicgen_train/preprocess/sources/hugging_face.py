"""Hugging Face datasets as sources: saved to disk, in parquet or Arrow files, or on the hub."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from musicgen_train.preprocess.settings import CaptionSettings, HubSettings
from musicgen_train.preprocess.sources.captions import Description, jsonable
from musicgen_train.preprocess.sources.listing import Listing
from musicgen_train.preprocess.sources.tracks import Candidate, Track, split_name, split_of_folder

# A split's name, its place among the splits, and its audio column.
_SplitInfo = tuple[str, int, str]


class DatasetSource:
    """A Hugging Face dataset, with one track a row. The audio is left undecoded; the other columns are fields.

    Args:
        splits: `datasets.Dataset` or `datasets.IterableDataset` by name.
        audio_column: the column with the audio; None looks for it.
        captions: which columns are captions and which are tags.

    Raises:
        ValueError: a split has no audio column.
    """

    kind = "dataset"

    def __init__(self, splits: Mapping[str, Any], audio_column: str | None, captions: CaptionSettings) -> None:
        self._captions = captions
        self._splits = {name: _undecoded(split, _audio_column(split, audio_column)) for name, split in splits.items()}

    def count(self) -> int | None:
        sizes = [len(split) if hasattr(split, "__len__") else None for split, _ in self._splits.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def check_it_is_there(self) -> None:
        """Do nothing: files that are open stay readable, and reading what is gone raises by itself."""

    def __iter__(self) -> Iterator[Candidate]:
        for place, (name, (split, column)) in enumerate(self._splits.items()):
            info = (name, place, column)
            if hasattr(split, "__len__"):
                # A row may hold megabytes of audio, so it is read when its turn comes, not when it is listed.
                for number in range(len(split)):
                    read = functools.partial(self._row, split, number, info)
                    yield self._candidate(read, number, info, f"{split._fingerprint} {number}")
            else:
                for number, row in enumerate(split):
                    yield self._candidate(functools.partial(self._track, row, number, info, ""), number, info, "")

    def _candidate(self, read: Callable[[], Track], number: int, info: _SplitInfo, stamp: str) -> Candidate:
        name, place, _ = info
        return Candidate(id=f"{name}/{number:08d}", order=f"{place:06d}/{number:012d}", stamp=lambda: stamp, read=read)

    def _row(self, split: Any, number: int, info: _SplitInfo) -> Track:
        return self._track(split[number], number, info, f"{split._fingerprint} {number}")

    def _track(self, row: dict[str, Any], number: int, info: _SplitInfo, stamp: str) -> Track:
        name, place, column = info
        row = dict(row)
        audio = row.pop(column)
        stated = split_name(row.get("split"))
        track = Track(
            id=f"{name}/{number:08d}",
            order=f"{place:06d}/{number:012d}",
            audio=b"",
            split=stated or (split_name(name) if len(self._splits) > 1 else None),
            description=Description.from_fields(row, self._captions),
        )
        if isinstance(audio, Mapping):
            track.description.metadata.setdefault("file", jsonable(audio.get("path")))
            audio = audio.get("bytes") or audio.get("path")
        if isinstance(audio, bytes) and audio:
            track.audio, track.stamp = audio, stamp
        elif isinstance(audio, str) and audio:
            # The audio file may change while the dataset does not, so the track has no stamp.
            track.audio = Path(audio)
        else:
            track.problem = f"the row has no audio in its column {column}"
        return track


def open_dataset(
    name: str, path: Path | None, listing: Listing | None, hub: HubSettings, captions: CaptionSettings
) -> DatasetSource:
    """Open a dataset of the hub or of this machine.

    Args:
        name: its id on the hub, or its path as the user gave it.
        path: its file or folder; None for a dataset of the hub.
        listing: the files of a folder with parquet files; None for anything else.
        hub: which part of it to read, and how.
        captions: which columns are captions and which are tags.

    Raises:
        ValueError: the dataset cannot be read, or has no audio.
    """
    import datasets

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
    return DatasetSource(found, hub.audio_column, captions)


def _parquet_files(path: Path, listing: Listing | None) -> dict[str, list[str]]:
    """Sort parquet files into splits, by folder or by names like `validation-00000-of-00001.parquet`."""
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

    # datasets itself decodes with torchcodec alone, which not every machine has.
    if split.features is not None and isinstance(split.features.get(column), datasets.Audio):
        split = split.cast_column(column, datasets.Audio(decode=False))
    return split, column
