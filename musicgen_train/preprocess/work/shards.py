"""Shards: the results for some tracks, in a folder that is there whole or not at all.

    <name>/tracks.arrow     a row per track: its key, its clips and description, or why it was rejected
    <name>/clips.arrow      a row per clip; the clips of a track follow each other
    <name>/captions.arrow   each distinct caption of these tracks, with its states
    <name>/files.json       sizes and checksums of these three files

The folder appears in one rename, so a shard that exists is complete. Its name is a hash of its tracks and what became
of them, so any process that encodes the same tracks makes the same shard. Nothing in a shard depends on other shards.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from musicgen_train.files import flush_to_disk, read_json, write_json
from musicgen_train.latents.format import CAPTION_FEATURES

TRACKS_NAME = "tracks.arrow"
CLIPS_NAME = "clips.arrow"
CAPTIONS_NAME = "captions.arrow"
FILES_NAME = "files.json"

TRACK_FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "key": datasets.Value("string"),  # `Track.content_key`
        "stamp": datasets.Value("string"),  # `Candidate.stamp`
        "problem": datasets.Value("string"),  # why the track cannot be used; null where it can
        "first_clip": datasets.Value("int32"),  # the row of its first clip
        "clips": datasets.Value("int32"),  # 0: the track is too short for a clip
        "short_tail": datasets.Value("bool"),  # what was left at the end was too short for a clip
        "captions": datasets.List(datasets.Value("string")),
        "metadata": datasets.Value("string"),  # JSON
        "stated_split": datasets.Value("string"),
        "group": datasets.Value("string"),
    }
)
SHARD_CLIP_FEATURES = datasets.Features(
    {
        "codes": datasets.Value("binary"),
        "frames": datasets.Value("int32"),
        "start_seconds": datasets.Value("float32"),
        "seconds": datasets.Value("float64"),
        "silent": datasets.Value("bool"),
    }
)
SHARD_CAPTION_FEATURES = datasets.Features(
    {**CAPTION_FEATURES, "cut": datasets.Value("bool")}  # the caption was longer than `captions.max_tokens`
)
_FEATURES = {TRACKS_NAME: TRACK_FEATURES, CLIPS_NAME: SHARD_CLIP_FEATURES, CAPTIONS_NAME: SHARD_CAPTION_FEATURES}
_BLOCK = 1 << 20


class DamagedShardError(ValueError):
    """A shard's files are not what was written."""

    def __init__(self, shard: Path, how: str) -> None:
        super().__init__(f"shard {shard} is damaged: {how}")
        self.shard = shard
        self.how = how


def shard_name(tracks: Sequence[dict[str, Any]]) -> str:
    """Return the name of the shard with these rows of tracks."""
    about = (f"{row['key']} {row['stamp']} {row['problem'] or ''}" for row in tracks)
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:32]


def write_shard(
    folder: Path,
    staging: Path,
    tracks: Sequence[dict[str, Any]],
    clips: Sequence[dict[str, Any]],
    captions: Sequence[dict[str, Any]],
) -> Path:
    """Write a shard, which appears in `folder` in one rename.

    Args:
        folder: the folder with all shards.
        staging: a folder on the same file system to write in; files that a killed process leaves there are not used.
        tracks: the rows of `tracks.arrow`.
        clips: the rows of `clips.arrow`.
        captions: the rows of `captions.arrow`.

    Returns:
        The shard's folder. If a shard of that name exists already, it stays as it is.

    Raises:
        OSError: the shard cannot be written.
    """
    name = shard_name(tracks)
    target = folder / name
    if target.exists():
        return target
    unfinished = staging / f"{name}.{secrets.token_hex(4)}"
    unfinished.mkdir()
    try:
        files: dict[str, Any] = {}
        for file_name, rows in ((TRACKS_NAME, tracks), (CLIPS_NAME, clips), (CAPTIONS_NAME, captions)):
            path = unfinished / file_name
            table = pa.Table.from_pylist(list(rows), schema=_FEATURES[file_name].arrow_schema)
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
            files[file_name] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        write_json(unfinished / FILES_NAME, files)
        flush_tree_to_disk(unfinished)
        unfinished.rename(target)
        flush_to_disk(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        # Another process may have made the same shard in the meantime.
        if not target.exists():
            raise
    return target


def shards_in(folder: Path) -> Iterator[Path]:
    """Yield all shards in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield folder / entry.name


def check_sizes(shard: Path) -> None:
    """Raise DamagedShardError unless all files are there and have the size they were written with."""
    for name, about in _files_of(shard).items():
        try:
            size = (shard / name).stat().st_size
        except FileNotFoundError:
            raise DamagedShardError(shard, f"{name} is missing") from None
        if size != about["bytes"]:
            raise DamagedShardError(shard, f"{name} has {size} bytes of {about['bytes']}")


def check_content(shard: Path) -> None:
    """Read all files, and raise DamagedShardError where a size or checksum differs."""
    check_sizes(shard)
    for name, about in _files_of(shard).items():
        if _crc32(shard / name) != about["crc32"]:
            raise DamagedShardError(shard, f"{name} has another checksum than when it was written")


def read_table(shard: Path, name: str) -> pa.Table:
    """Open a table of a shard, memory-mapped.

    Raises:
        DamagedShardError: the file is no such table.
    """
    try:
        with pa.memory_map(str(shard / name)) as file, pa.ipc.open_stream(file) as stream:
            table = stream.read_all()
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise DamagedShardError(shard, f"{name} cannot be read ({' '.join(str(error).split())})") from error
    if table.schema.names != list(_FEATURES[name]):
        raise DamagedShardError(shard, f"{name} has the columns {', '.join(table.schema.names)}")
    return table


def flush_tree_to_disk(folder: Path) -> None:
    """Flush everything in and below a folder to the disk itself."""
    for path in [*sorted(folder.rglob("*")), folder]:
        flush_to_disk(path)


def _files_of(shard: Path) -> dict[str, Any]:
    try:
        files = read_json(shard / FILES_NAME)
        return {name: {"bytes": int(files[name]["bytes"]), "crc32": int(files[name]["crc32"])} for name in _FEATURES}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamagedShardError(shard, f"{FILES_NAME} cannot be read ({type(error).__name__})") from error


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
