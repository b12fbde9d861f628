"""Finds out what the input is and opens it as a source.

A source is listed once, and lazily: a track's captions are read when its turn comes, and file names are kept on disk.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from musicgen_train.audio.io import AUDIO_EXTENSIONS
from musicgen_train.preprocess.settings import CaptionSettings, HubSettings, InputFormat
from musicgen_train.preprocess.sources.folder_source import FolderSource
from musicgen_train.preprocess.sources.hugging_face import open_dataset
from musicgen_train.preprocess.sources.listing import Listing
from musicgen_train.preprocess.sources.metadata_sources import (
    MANIFEST_NAMES,
    METADATA_NAMES,
    ManifestSource,
    MetadataSource,
)
from musicgen_train.preprocess.sources.tracks import Candidate, Source

_SAVED_DATASET_NAMES = ("dataset_dict.json", "dataset_info.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_source(name: str, input_format: InputFormat, hub: HubSettings, captions: CaptionSettings) -> Source:
    """Open the input as a source of its format.

    Args:
        name: a path, or a dataset of the hub as `hf://owner/name`.
        input_format: how to read it; `auto` decides by what is there.
        hub: which part of a Hugging Face dataset to read, and how.
        captions: which fields are captions and which are tags.

    Raises:
        FileNotFoundError: the input does not exist.
        ValueError: the input holds nothing that can be preprocessed, or is not of the format asked for.
    """
    path = Path(name).expanduser()
    if input_format == "hub" or (input_format == "auto" and name.startswith("hf://")):
        return open_dataset(name.removeprefix("hf://datasets/").removeprefix("hf://"), None, None, hub, captions)
    if not path.exists():
        if input_format == "auto" and _HUB_ID.fullmatch(name) and not path.parent.exists():
            return open_dataset(name, None, None, hub, captions)
        raise FileNotFoundError(
            f"input {name} does not exist; give a folder of audio, a metadata or manifest file, or a dataset of "
            "the hub as hf://owner/name"
        )
    is_saved = path.is_dir() and any((path / saved).is_file() for saved in _SAVED_DATASET_NAMES)
    # Listing a large library takes a while even by name, so it is done once, whatever the input turns out to be.
    listing = Listing(path) if path.is_dir() and not is_saved else None
    kind = input_format if input_format != "auto" else "dataset" if is_saved else _guess(path, listing)
    if kind == "folder":
        if listing is None:
            raise ValueError(
                f"input {name} is {'a saved dataset' if is_saved else 'a file'}; expected a folder of audio"
            )
        return FolderSource(listing, captions)
    root = path if path.is_dir() else path.parent
    if kind == "audiofolder":
        return MetadataSource(_files_named(METADATA_NAMES, path, listing), root, captions)
    if kind == "audiocraft":
        return ManifestSource(_files_named(MANIFEST_NAMES, path, listing), root, captions)
    return open_dataset(name, path, listing, hub, captions)


class LimitedSource:
    """The first candidates of another source.

    Args:
        source: the other source.
        limit: how many candidates to take at most.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self.kind = source.kind
        self._source = source
        self._limit = limit

    def __iter__(self) -> Iterator[Candidate]:
        return itertools.islice(self._source, self._limit)

    def count(self) -> int | None:
        count = self._source.count()
        return None if count is None else min(count, self._limit)

    def check_it_is_there(self) -> None:
        self._source.check_it_is_there()


def _guess(path: Path, listing: Listing | None) -> InputFormat:
    """Guess the format of a file (without a listing) or of a folder that is no saved dataset."""
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
