"""Shards: what some tracks of a source became, in a folder of their own that is there whole or not at all.

    <key>/clips.arrow      a row per clip, its captions as text
    <key>/captions.arrow   the captions that no earlier shard has, with their states
    <key>/report.json      counts and rejected files

The key is a SHA-256 over the tracks' own keys (`Track.content_key`): the same tracks, captions, settings and encoders
give the same key, and anything else another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from musicgen_train.hub.folder import read_json, write_json
from musicgen_train.latents.format import CAPTION_FEATURES

CLIPS_NAME = "clips.arrow"
CAPTIONS_NAME = "captions.arrow"
REPORT_NAME = "report.json"

SHARD_FEATURES = datasets.Features(
    {
        "codes": datasets.Value("binary"),
        "frames": datasets.Value("int32"),
        "captions": datasets.List(datasets.Value("string")),
        "track": datasets.Value("string"),
        "start_seconds": datasets.Value("float32"),
        "silent": datasets.Value("bool"),
        "metadata": datasets.Value("string"),
        "seconds": datasets.Value("float64"),
        "stated_split": datasets.Value("string"),
        "group": datasets.Value("string"),
    }
)


@dataclass(kw_only=True)
class ShardReport:
    """What became of a shard's tracks."""

    counts: Counter[str] = field(default_factory=Counter)
    rejected: list[dict[str, str]] = field(default_factory=list)
    """`{"file", "reason"}` each."""


def shard_key(track_keys: Iterable[str]) -> str:
    """The name of the shard of these tracks."""
    return hashlib.sha256("\n".join(track_keys).encode()).hexdigest()


def write_shard(
    folder: Path,
    key: str,
    clips: Sequence[dict[str, Any]],
    captions: Sequence[dict[str, Any]],
    report: ShardReport,
) -> Path:
    """Write a shard into `folder`; it appears in one rename. Returns its own folder."""
    staging = folder / f"{key}.partial"
    staging.mkdir(parents=True)
    for name, rows, features in ((CLIPS_NAME, clips, SHARD_FEATURES), (CAPTIONS_NAME, captions, CAPTION_FEATURES)):
        table = pa.Table.from_pylist(list(rows), schema=features.arrow_schema)
        with pa.OSFile(str(staging / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    write_json(staging / REPORT_NAME, {"counts": dict(report.counts), "rejected": report.rejected})
    return staging.rename(folder / key)


def read_table(shard: Path, name: str) -> pa.Table:
    """A table of a shard, memory-mapped."""
    with pa.memory_map(str(shard / name)) as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all()


def read_report(shard: Path) -> ShardReport:
    """The report of a shard."""
    values = read_json(shard / REPORT_NAME)
    return ShardReport(counts=Counter(values["counts"]), rejected=values["rejected"])
