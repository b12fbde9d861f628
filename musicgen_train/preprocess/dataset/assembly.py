"""Assembles a latent dataset from shards: numbers the captions, divides tracks into splits and writes the files.

Every byte follows from the tracks and their results alone, not from the runs, ranks and shards they came from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute

from musicgen_train.latents.format import CAPTION_FEATURES, CAPTIONS_FOLDER, CLIP_FEATURES, REJECTED_NAME
from musicgen_train.latents.manifest import SplitRecord
from musicgen_train.preprocess.dataset.splits import Membership, SplitRule, split_group
from musicgen_train.preprocess.scratch import scratch_database
from musicgen_train.preprocess.settings import SPLITS, SplitSettings
from musicgen_train.preprocess.work.results import Results
from musicgen_train.preprocess.work.shards import CAPTIONS_NAME, CLIPS_NAME, TRACKS_NAME, check_content, read_table

# So many rows are written together. The bytes of a file depend on this number.
_BATCH_ROWS = 64
# The most shards open at a time. Tracks next to each other in the source are in as many shards as there are ranks.
_OPEN_SHARDS = 256


@dataclass(kw_only=True)
class Assembled:
    """What an assembled dataset holds."""

    splits: dict[str, SplitRecord]
    captions: int
    counts: Counter[str]


def assemble(results: Results, shards: Path, dataset: Path, work: Path, settings: SplitSettings) -> Assembled:
    """Write a latent dataset without its manifest.

    Memory does not grow with the number of clips: tables are memory-mapped, and written batch by batch.

    Args:
        results: the results of all ranks.
        shards: the folder with the shards.
        dataset: the folder to make.
        work: a folder to make for intermediate files.
        settings: how tracks are divided into splits.

    Raises:
        DamagedShardError: the files of a shard are not what was written.
        OSError: the dataset cannot be written.
    """
    dataset.mkdir()
    work.mkdir()
    for name in results.shards():
        check_content(shards / name)
    assembly = _Assembly(results, shards, settings)
    counts = assembly.write_rejected(dataset / REJECTED_NAME)
    splits, captions = assembly.write_tables(work)
    counts["captions_cut"] = assembly.captions_cut
    with _quiet():
        parts = {split: _open_stream(work / f"{split}.arrow") for split in splits}
        datasets.DatasetDict(parts).save_to_disk(str(dataset))
        # Without captions `datasets` would write no file at all by default, and could not read the folder back.
        _open_stream(work / CAPTIONS_NAME).save_to_disk(
            str(dataset / CAPTIONS_FOLDER), num_shards=None if captions else 1
        )
    return Assembled(splits=splits, captions=captions, counts=counts)


class _Assembly:
    """Walks over all tracks once to decide their splits, and once to write their rows."""

    def __init__(self, results: Results, shards: Path, settings: SplitSettings) -> None:
        self._results = results
        self._settings = settings
        # The cache belongs to this object, so the shards are closed with it.
        self._open = functools.lru_cache(maxsize=_OPEN_SHARDS)(lambda name: _OpenShard(shards / name))
        self._caption_rows = _CaptionRows()
        self.captions_cut = 0

    def write_rejected(self, path: Path) -> Counter[str]:
        """Write `rejected.jsonl`, and return the manifest's counts."""
        counts: Counter[str] = Counter()
        with path.open("w", encoding="utf-8") as file:
            for result in self._results:
                counts["files"] += 1
                if result.problem is not None:
                    counts["rejected"] += 1
                    line = {"file": result.id, "reason": result.problem}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    continue
                shard = self._open(result.shard)
                track = shard.track(result.row)
                counts["tracks" if track["clips"] else "too_short"] += 1
                counts["clips"] += track["clips"]
                counts["silent"] += sum(shard.clips(track, ["silent"])["silent"].to_pylist())
                counts["short_tails"] += track["short_tail"]
                counts["missing_caption"] += bool(track["clips"]) and not track["captions"]
        return counts

    def write_tables(self, folder: Path) -> tuple[dict[str, SplitRecord], int]:
        """Write the clips of every split and the captions as Arrow streams.

        Returns:
            What each split holds, and the number of distinct captions.
        """
        rule = SplitRule((member for _, _, member in self._tracks()), self._settings)
        found = {rule.split_of(member) for _, _, member in self._tracks()}
        # The order is always the same, whichever split comes first in the source. A split without tracks is left out.
        records = {split: SplitRecord(clips=0, tracks=0, hours=0.0) for split in SPLITS if split in found}
        with contextlib.ExitStack() as stack:
            captions = stack.enter_context(_rows_to(folder / CAPTIONS_NAME, CAPTION_FEATURES))
            clips = {
                split: stack.enter_context(_rows_to(folder / f"{split}.arrow", CLIP_FEATURES)) for split in records
            }
            for shard, track, member in self._tracks():
                split = rule.split_of(member)
                numbers = [self._caption_row(text, shard, captions) for text in track["captions"]]
                records[split].tracks += 1
                for clip in shard.clips(track).to_pylist():
                    seconds = clip.pop("seconds")
                    clips[split]({**clip, "captions": numbers, "track": track["id"], "metadata": track["metadata"]})
                    records[split].clips += 1
                    records[split].hours += seconds / 3600
        return records, len(self._caption_rows)

    def _tracks(self) -> Iterator[tuple[_OpenShard, dict[str, Any], Membership]]:
        """Yield all tracks with clips, in the order of the source."""
        group_by = self._settings.group_by
        for result in self._results:
            shard = self._open(result.shard)
            track = shard.track(result.row)
            if track["clips"]:
                metadata = json.loads(track["metadata"]) if group_by is not None else {}
                group = split_group(track["group"], metadata, group_by)
                yield shard, track, Membership(group=group, stated=track["stated_split"])

    def _caption_row(self, text: str, shard: _OpenShard, write: Callable[[dict[str, Any]], None]) -> int:
        """Return the row of a caption, and write it at its first use."""
        row, new = self._caption_rows.row_of(text)
        if new:
            caption = shard.caption(text)
            self.captions_cut += caption.pop("cut")
            write(caption)
        return row


class _OpenShard:
    """The tables of a shard, memory-mapped. Only the rows that are asked for are copied."""

    def __init__(self, shard: Path) -> None:
        self._tracks = read_table(shard, TRACKS_NAME)
        self._clips = read_table(shard, CLIPS_NAME)
        self._captions = read_table(shard, CAPTIONS_NAME)

    def track(self, row: int) -> dict[str, Any]:
        track: dict[str, Any] = self._tracks.slice(row, 1).to_pylist()[0]
        return track

    def clips(self, track: dict[str, Any], columns: list[str] | None = None) -> pa.Table:
        table = self._clips if columns is None else self._clips.select(columns)
        return table.slice(track["first_clip"], track["clips"])

    def caption(self, text: str) -> dict[str, Any]:
        row = pa.compute.index(self._captions["text"], text).as_py()
        caption: dict[str, Any] = self._captions.slice(row, 1).to_pylist()[0]
        return caption


class _CaptionRows:
    """Gives each distinct caption a row number. They are kept on disk."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection = scratch_database()
        self._database.execute("CREATE TABLE captions (text TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def row_of(self, text: str) -> tuple[int, bool]:
        """Return the row of a caption, and whether the caption is new."""
        new = self._database.execute("INSERT OR IGNORE INTO captions VALUES (?, ?)", (text, self._count)).rowcount == 1
        if new:
            self._count += 1
            return self._count - 1, True
        (number,) = self._database.execute("SELECT number FROM captions WHERE text = ?", (text,)).fetchone()
        return number, False


@contextlib.contextmanager
def _rows_to(path: Path, features: datasets.Features) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open an Arrow stream, and yield a function that adds a row. Rows are written some at a time."""
    schema = features.arrow_schema
    rows: list[dict[str, Any]] = []
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:

        def write(row: dict[str, Any]) -> None:
            rows.append(row)
            if len(rows) == _BATCH_ROWS:
                stream.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()

        yield write
        if rows:
            stream.write_table(pa.Table.from_pylist(rows, schema=schema))


def _open_stream(path: Path) -> datasets.Dataset:
    """Open an Arrow stream as a dataset whose fingerprint follows from its bytes alone; `from_file` adds the time."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    opened = datasets.Dataset.from_file(str(path))
    return datasets.Dataset(opened.data, info=opened.info, split=opened.split, fingerprint=digest[:16])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of `datasets`, which would break into the run's own."""
    were_on = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
