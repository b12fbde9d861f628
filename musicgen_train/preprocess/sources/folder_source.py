"""A folder of audio files with their captions beside them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from musicgen_train.audio.io import AUDIO_EXTENSIONS
from musicgen_train.files import read_json
from musicgen_train.preprocess.settings import CaptionSettings
from musicgen_train.preprocess.sources.captions import Description
from musicgen_train.preprocess.sources.listing import Listing, check_not_empty
from musicgen_train.preprocess.sources.tracks import (
    Candidate,
    Track,
    UniqueNames,
    file_stamp,
    problem_text,
    split_of_folder,
)


class FolderSource:
    """The audio files in and below a folder. Captions lie beside them in files of the same stem, `.txt` or `.json`.

    Each line of a `.txt` that is not empty is a caption. Captions from a `.json` come after those. Links are followed,
    and each folder is entered once. Hidden files are passed over (macOS leaves `._song.wav` behind).

    Args:
        listing: the folder's files.
        captions: which fields of a `.json` are captions and which are tags.
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
        check_not_empty(self._folder)

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
            yield Candidate(id=name, order=name, stamp=lambda: "", read=functools.partial(_unchanged, track))

    def _stamp(self, relative: str, beside: Sequence[str]) -> str:
        return "; ".join([file_stamp(self._folder / each) for each in (relative, *beside)])

    def _read(self, name: str, relative: str, beside: Sequence[str]) -> Track:
        # The stamp comes first: if a file changes while it is read, the next run notices.
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
            track.description = Description.from_fields(fields, self._captions, captions)
        except (OSError, ValueError) as error:
            track.problem = f"its captions cannot be read: {problem_text(error, self._folder)}"
        return track


def _unchanged(track: Track) -> Track:
    return track


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}") from error
