"""What became of each track: the tracks that are encoded already, and the results that a rank hands over."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from musicgen_train.files import write_atomically
from musicgen_train.preprocess.scratch import scratch_database
from musicgen_train.preprocess.settings import SplitSettings
from musicgen_train.preprocess.work.ranks import Rank
from musicgen_train.preprocess.work.shards import TRACKS_NAME, DamagedShardError, check_sizes, read_table, shards_in

_PART_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a track, and the row of a shard that holds it."""

    order: str
    """`Candidate.order`."""
    id: str
    key: str
    """`Track.content_key`."""
    problem: str | None
    """Why the track was rejected; None if it was not."""
    shard: str
    row: int


class EncodedTracks:
    """The tracks of a rank that earlier runs encoded, read from the shards.

    Rejected tracks are left out: the reason may be gone, and trying again costs little. A damaged shard is removed so
    that its tracks are encoded again, with a line on standard error.

    Args:
        folder: the folder with all shards.
        rank: the rank.
    """

    def __init__(self, folder: Path, rank: Rank) -> None:
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
                print(f"{error}; its tracks are encoded again", file=sys.stderr, flush=True)
                shutil.rmtree(shard, ignore_errors=True)
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
        """Return the result of a track whose stamp has not changed; None if it is new, has changed, or has no stamp."""
        return self._find(track, order, "stamp", stamp) if stamp else None

    def equal(self, track: str, order: str, key: str) -> Result | None:
        """Return the result of a track that was read again and has the same content; None if there is none."""
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
    """Results in the order of the source, whatever the order they are added in. They are kept on disk."""

    def __init__(self) -> None:
        self._database = scratch_database()
        self._database.execute(
            "CREATE TABLE results (place TEXT, id TEXT UNIQUE, key TEXT, problem TEXT, shard TEXT, row INTEGER, "
            "PRIMARY KEY (place, id)) WITHOUT ROWID"
        )

    def add(self, result: Result) -> None:
        """Add a result."""
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
        """Yield the name of each shard that holds a result."""
        for (shard,) in self._database.execute("SELECT DISTINCT shard FROM results ORDER BY shard"):
            yield shard

    def content(self, settings: SplitSettings) -> str:
        """Return the SHA-256 of what decides a dataset's rows: the tracks, their results, and the split settings.

        It is the same for any number of ranks, runs and shards.
        """
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
        for result in self:
            digest.update(json.dumps([result.order, result.id, result.key, result.problem]).encode())
        return digest.hexdigest()

    def write_part(self, path: Path, staging: Path, listing: str) -> None:
        """Write a rank's results to a file, which appears in one rename.

        Args:
            path: the file.
            staging: a folder on the same file system.
            listing: `ListingDigest` of the candidates that the rank listed.
        """

        def write(file: BinaryIO) -> None:
            file.write((json.dumps({"part_format": _PART_FORMAT, "listing": listing}) + "\n").encode())
            for result in self:
                row = [result.order, result.id, result.key, result.problem, result.shard, result.row]
                file.write((json.dumps(row) + "\n").encode())

        write_atomically(path, write, partial=staging / path.name)

    @classmethod
    def of_parts(cls, parts: Sequence[Path]) -> Results:
        """Read the results of all ranks."""
        results = cls()
        for part in parts:
            with part.open(encoding="utf-8") as file:
                next(file)
                for line in file:
                    order, track, key, problem, shard, row = json.loads(line)
                    results.add(Result(order=order, id=track, key=key, problem=problem, shard=shard, row=row))
        return results


def listing_of(part: Path) -> str | None:
    """Return the `ListingDigest` in a rank's results; None where they are not there yet, or of another format."""
    try:
        with part.open(encoding="utf-8") as file:
            header: dict[str, Any] = json.loads(next(file))
    except FileNotFoundError:
        return None
    return str(header["listing"]) if header.get("part_format") == _PART_FORMAT else None


class ListingDigest:
    """A digest of the ids of all candidates. Ranks whose digests differ listed different inputs."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, track: str) -> None:
        """Add the next candidate's id."""
        self._digest.update(f"{track}\n".encode())

    def hex(self) -> str:
        """Return the digest of all ids so far."""
        return self._digest.hexdigest()
