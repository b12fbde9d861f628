"""Shards: what some tracks became, in a folder of their own that is there whole or not at all.

    <name>/tracks.arrow     a row per track: its key, what it says of its clips, or why it was rejected
    <name>/clips.arrow      a row per clip, those of a track one after the other
    <name>/captions.arrow   each distinct caption of these tracks, with its states
    <name>/files.json       sizes and checksums of the three

The folder appears in one rename, which is the mark that it is complete. Its name is a hash of what its tracks are, so
that whoever encodes the same tracks makes the same shard. Nothing in it depends on other shards.
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
        "problem": datasets.Value("string"),  # why it cannot be used; null where it can
        "first_clip": datasets.Value("int32"),  # row of its first clip
        "clips": datasets.Value("int32"),  # 0: it is too short for one
        "short_tail": datasets.Value("bool"),  # sound at its end was too short for a clip
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
    {**CAPTION_FEATURES, "cut": datasets.Value("bool")}  # whether it was longer than `captions.max_tokens`
)
_FEATURES = {TRACKS_NAME: TRACK_FEATURES, CLIPS_NAME: SHARD_CLIP_FEATURES, CAPTIONS_NAME: SHARD_CAPTION_FEATURES}
_BLOCK = 1 << 20


class DamagedShardError(ValueError):
    """A shard whose files are not what was written."""

    def __init__(self, shard: Path, how: str) -> None:
        super().__init__(f"shard {shard} is damaged: {how}")
        self.shard = shard
        self.how = how


def shard_name(tracks: Sequence[dict[str, Any]]) -> str:
    """The name of the shard of these rows of tracks: what they are, and what became of them."""
    about = (f"{row['key']} {row['stamp']} {row['problem'] or ''}" for row in tracks)
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:32]


def write_shard(
    folder: Path,
    staging: Path,
    tracks: Sequence[dict[str, Any]],
    clips: Sequence[dict[str, Any]],
    captions: Sequence[dict[str, Any]],
) -> Path:
    """Write a shard; it appears in `folder` in one rename.

    Args:
        folder: where all shards are.
        staging: a folder on the same file system in which it is written; what a killed process leaves there is waste.

    Returns:
        Its own folder. One of that name that is there already stays as it is.

    Raises:
        OSError: it cannot be written.
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
        # Another process may have made the same one in the meantime.
        if not target.exists():
            raise
    return target


def shards_in(folder: Path) -> Iterator[Path]:
    """All shards of a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield folder / entry.name


def check_sizes(shard: Path) -> None:
    """Look whether all files are there and as long as they were written. Raises DamagedShardError otherwise."""
    for name, about in _files_of(shard).items():
        try:
            size = (shard / name).stat().st_size
        except FileNotFoundError:
            raise DamagedShardError(shard, f"{name} is missing") from None
        if size != about["bytes"]:
            raise DamagedShardError(shard, f"{name} has {size} bytes of {about['bytes']}")


def check_content(shard: Path) -> None:
    """Read all files and compare their checksums. Raises DamagedShardError where one differs."""
    check_sizes(shard)
    for name, about in _files_of(shard).items():
        if _crc32(shard / name) != about["crc32"]:
            raise DamagedShardError(shard, f"{name} has another checksum than when it was written")


def read_table(shard: Path, name: str) -> pa.Table:
    """A table of a shard, memory-mapped.

    Raises:
        DamagedShardError: it is no such table.
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
    """Have all files of a folder, and of those in it, on the disk itself."""
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
