"""Shards to a latent dataset: captions numbered, tracks divided into splits, the folder's files written."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from musicgen_train.latents.format import CAPTION_FEATURES, CAPTIONS_FOLDER, CLIP_FEATURES, REJECTED_NAME
from musicgen_train.latents.manifest import SplitRecord
from musicgen_train.preprocess.settings import SPLITS, SplitSettings
from musicgen_train.preprocess.shards import CAPTIONS_NAME, CLIPS_NAME, read_report, read_table
from musicgen_train.preprocess.splits import Membership, assign_splits


@dataclass(kw_only=True)
class Assembled:
    """What the dataset holds."""

    splits: dict[str, SplitRecord]
    captions: int
    counts: Counter[str]


def assemble(shards: Sequence[Path], dataset: Path, work: Path, settings: SplitSettings) -> Assembled:
    """Write everything of a latent dataset but its manifest.

    Memory does not grow with the number of clips: tables are memory-mapped, and written batch by batch.

    Args:
        shards: in the order that rows will have.
        dataset: the folder to make.
        work: a folder for files in between.
        settings: how tracks are divided.
    """
    dataset.mkdir()
    work.mkdir()
    counts: Counter[str] = Counter()
    with (dataset / REJECTED_NAME).open("w", encoding="utf-8") as file:
        for shard in shards:
            report = read_report(shard)
            counts += report.counts
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in report.rejected)

    tracks: dict[str, Membership] = {}
    for shard in shards:
        table = read_table(shard, CLIPS_NAME)
        for track, group, stated in zip(
            table["track"].to_pylist(), table["group"].to_pylist(), table["stated_split"].to_pylist(), strict=True
        ):
            tracks[track] = Membership(group=group, stated=stated)
    split_of = assign_splits(tracks, settings)
    caption_rows = _write_captions(shards, work)
    splits = _write_clips(shards, work, split_of, caption_rows)

    with _quiet():
        parts = {split: datasets.Dataset.from_file(str(work / f"{split}.arrow")) for split in splits}
        datasets.DatasetDict(parts).save_to_disk(str(dataset))
        captions = datasets.Dataset.from_file(str(work / CAPTIONS_NAME))
        # Of no captions it would write no file at all, and not read back what it wrote.
        captions.save_to_disk(str(dataset / CAPTIONS_FOLDER), num_shards=None if len(captions) else 1)
    return Assembled(splits=splits, captions=len(caption_rows), counts=counts)


def _write_captions(shards: Sequence[Path], work: Path) -> dict[str, int]:
    """Write all captions one after the other; returns the row of each."""
    rows: dict[str, int] = {}
    with _stream(work / CAPTIONS_NAME, CAPTION_FEATURES) as stream:
        for shard in shards:
            table = read_table(shard, CAPTIONS_NAME)
            for text in table["text"].to_pylist():
                assert text not in rows, f"caption encoded twice: {text}"
                rows[text] = len(rows)
            stream.write_table(table)
    return rows


def _write_clips(
    shards: Sequence[Path], work: Path, split_of: dict[str, str], caption_rows: dict[str, int]
) -> dict[str, SplitRecord]:
    records: dict[str, SplitRecord] = {}
    members = Counter(split_of.values())
    with contextlib.ExitStack() as stack:
        # In one order, whichever split comes first in the source; a split without tracks is left out.
        streams = {
            split: stack.enter_context(_stream(work / f"{split}.arrow", CLIP_FEATURES))
            for split in SPLITS
            if members[split]
        }
        for split in streams:
            records[split] = SplitRecord(clips=0, tracks=members[split], hours=0.0)
        for shard in shards:
            table = read_table(shard, CLIPS_NAME)
            rows_of: dict[str, list[int]] = {}
            for row, track in enumerate(table["track"].to_pylist()):
                rows_of.setdefault(split_of[track], []).append(row)
            for split, rows in rows_of.items():
                part = table.take(pa.array(rows, pa.int64()))
                numbers = [[caption_rows[text] for text in texts] for texts in part["captions"].to_pylist()]
                columns: dict[str, Any] = {name: part[name] for name in CLIP_FEATURES}
                schema = CLIP_FEATURES.arrow_schema
                columns["captions"] = pa.array(numbers, schema.field("captions").type)
                streams[split].write_table(pa.table(columns, schema=schema))
                records[split].clips += len(rows)
                records[split].hours += sum(part["seconds"].to_pylist()) / 3600
    return records


@contextlib.contextmanager
def _stream(path: Path, features: datasets.Features) -> Iterator[Any]:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as stream:
        yield stream


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`, which know nothing of the run's own."""
    were_on = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
