"""What is encoded already, and what a rank found and made: tables on disk, written down when the rank is done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from musicgen_train.files import write_atomically
from musicgen_train.preprocess.settings import SplitSettings
from musicgen_train.preprocess.work.ranks import Rank
from musicgen_train.preprocess.work.scratch import scratch_database
from musicgen_train.preprocess.work.shards import TRACKS_NAME, DamagedShardError, check_sizes, read_table, shards_in

_PART_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """A track and the row of a shard that says what became of it."""

    order: str
    """`Candidate.order`."""
    id: str
    key: str
    """`Track.content_key`."""
    problem: str | None
    """Why it was rejected."""
    shard: str
    row: int


class EncodedTracks:
    """The tracks of this rank that earlier runs encoded, from the shards that are there.

    A track that was rejected is not among them: the reason may be gone, and it costs little to try again.

    Args:
        folder: with all shards.
        rank: whose tracks.
    """

    def __init__(self, folder: Path, rank: Rank) -> None:
        self.damaged: list[DamagedShardError] = []
        """Shards that cannot be used."""
        self._database = scratch_database()
        self._database.execute(
            "CREATE TABLE encoded (id TEXT, stamp TEXT, key TEXT, shard TEXT, row INTEGER, PRIMARY KEY (id, shard)) "
            "WITHOUT ROWID"
        )
        for shard in shards_in(folder):
            try:
                check_sizes(shard)
                table = read_table(shard, TRACKS_NAME)
            except DamagedShardError as error:
                self.damaged.append(error)
                continue
            columns = (table[name].to_pylist() for name in ("id", "stamp", "key", "problem"))
            self._database.executemany(
                "INSERT INTO encoded VALUES (?, ?, ?, ?, ?)",
                [
                    (track, stamp, key, shard.name, row)
                    for row, (track, stamp, key, problem) in enumerate(zip(*columns, strict=True))
                    if problem is None and rank.owns(track)
                ],
            )

    def unchanged(self, track: str, order: str, stamp: str) -> Result | None:
        """The result of a track whose stamp is that of when it was encoded."""
        return self._find(track, order, "stamp", stamp) if stamp else None

    def equal(self, track: str, order: str, key: str) -> Result | None:
        """The result of a track that was read again and has the same content."""
        return self._find(track, order, "key", key)

    def _find(self, track: str, order: str, column: str, value: str) -> Result | None:
        found = self._database.execute(
            f"SELECT key, shard, row FROM encoded WHERE id = ? AND {column} = ? ORDER BY shard LIMIT 1", (track, value)
        ).fetchone()
        if found is None:
            return None
        key, shard, row = found
        return Result(order=order, id=track, key=key, problem=None, shard=shard, row=row)


class Results:
    """Results in the order of the source, whatever the order they came in."""

    def __init__(self) -> None:
        self._database = scratch_database()
        self._database.execute(
            "CREATE TABLE results (place TEXT, id TEXT UNIQUE, key TEXT, problem TEXT, shard TEXT, row INTEGER, "
            "PRIMARY KEY (place, id)) WITHOUT ROWID"
        )

    def add(self, result: Result) -> None:
        """Take one more."""
        self._database.execute(
            "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?)",
            (result.order, result.id, result.key, result.problem, result.shard, result.row),
        )

    def __iter__(self) -> Iterator[Result]:
        for place, track, key, problem, shard, row in self._database.execute(
            "SELECT * FROM results ORDER BY place, id"
        ):
            yield Result(order=place, id=track, key=key, problem=problem, shard=shard, row=row)

    def __contains__(self, track: str) -> bool:
        return self._database.execute("SELECT 1 FROM results WHERE id = ?", (track,)).fetchone() is not None

    def shards(self) -> Iterator[str]:
        """The name of each shard that a result is in."""
        for (shard,) in self._database.execute("SELECT DISTINCT shard FROM results ORDER BY shard"):
            yield shard

    def content(self, settings: SplitSettings) -> str:
        """SHA-256 over what decides the rows of a dataset: what all tracks are and became, and how they are divided.

        The same for any number of ranks, runs and shards.
        """
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
        for result in self:
            digest.update(json.dumps([result.order, result.id, result.key, result.problem]).encode())
        return digest.hexdigest()

    def write_part(self, path: Path, staging: Path, listing: str) -> None:
        """Write them as the part of a rank, which appears in one rename.

        Args:
            path: of the part.
            staging: a folder on the same file system.
            listing: `ListingDigest` of what the rank saw.
        """

        def write(file: BinaryIO) -> None:
            file.write((json.dumps({"part_format": _PART_FORMAT, "listing": listing}) + "\n").encode())
            for result in self:
                row = [result.order, result.id, result.key, result.problem, result.shard, result.row]
                file.write((json.dumps(row) + "\n").encode())

        write_atomically(path, write, partial=staging / path.name)

    @classmethod
    def of_parts(cls, parts: Sequence[Path]) -> Results:
        """The results of all ranks."""
        results = cls()
        for part in parts:
            with part.open(encoding="utf-8") as file:
                next(file)
                for line in file:
                    order, track, key, problem, shard, row = json.loads(line)
                    results.add(Result(order=order, id=track, key=key, problem=problem, shard=shard, row=row))
        return results


def listing_of(part: Path) -> str | None:
    """`ListingDigest` of what the rank of a part saw; None where there is no part yet."""
    try:
        with part.open(encoding="utf-8") as file:
            header: dict[str, Any] = json.loads(next(file))
    except FileNotFoundError:
        return None
    return str(header["listing"]) if header.get("part_format") == _PART_FORMAT else None


class ListingDigest:
    """Of the names of all candidates: parts belong together where their ranks listed the same."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, track: str) -> None:
        """The next candidate."""
        self._digest.update(f"{track}\n".encode())

    def hex(self) -> str:
        """Of all so far."""
        return self._digest.hexdigest()
