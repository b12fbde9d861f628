"""Tables of a latent dataset, memory-mapped, and read value by value.

pyarrow's own table keeps objects for every column of every record batch: 60 MB for a million clips. Here three numbers
say where a column of a record batch lies in its file; a value is worked out when it is asked for.
"""

from __future__ import annotations

import array
import bisect
import io
import mmap
import os
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from musicgen_train.files import read_json

# As `save_to_disk` writes it; it names the files of rows.
_STATE_NAME = "state.json"
_INT = struct.Struct("<i")
_FLOAT = struct.Struct("<f")
_TWO_INTS = struct.Struct("<ii")


class OtherColumnsError(ValueError):
    """A table that has not the columns it should have."""


class MappedTable:
    """A dataset that `save_to_disk` wrote.

    Args:
        folder: of the one dataset.
        features: its columns.

    Raises:
        FileNotFoundError: there is no such dataset, or a file of it is missing.
        OtherColumnsError: it has other columns.
        ValueError: it has values that are null, or its files are damaged.
    """

    def __init__(self, folder: Path, features: datasets.Features) -> None:
        self._names = list(features)
        # First row of each record batch, and the number of rows behind the last. Arrays of plain numbers, as below.
        self._starts = array.array("q", [0])
        # Of each record batch the number of its file, and of each column's the positions there of its two buffers.
        self._file_of = array.array("q")
        self._positions = {name: (array.array("q"), array.array("q")) for name in features}
        self._files: list[io.FileIO] = []
        weakref.finalize(self, _close, self._files)
        self._mappings: list[mmap.mmap] = []
        self._views: list[memoryview] = []
        for file in read_json(folder / _STATE_NAME)["_data_files"]:
            self._add(folder / file["filename"], features)
        self._release()

    def __len__(self) -> int:
        return self._starts[-1]

    def numbers(self, name: str) -> np.ndarray:
        """All values of an int32 column, `(rows,)`, in memory."""
        values = np.empty(len(self), dtype=np.int32)
        for batch, position in enumerate(self._positions[name][0]):
            first, end = self._starts[batch], self._starts[batch + 1]
            view = self._views[self._file_of[batch]]
            values[first:end] = np.frombuffer(view, "<i4", end - first, position)
        self._release()
        return values

    def integer(self, name: str, row: int) -> int:
        """A value of an int32 column."""
        number, _, position, within = self._find(name, row)
        value: int = _INT.unpack_from(self._views[number], position + 4 * within)[0]
        return value

    def real(self, name: str, row: int) -> float:
        """A value of a float32 column."""
        number, _, position, within = self._find(name, row)
        value: float = _FLOAT.unpack_from(self._views[number], position + 4 * within)[0]
        return value

    def binary(self, name: str, row: int) -> memoryview:
        """A value of a binary column, as a read-only view of the file."""
        number, offsets, values, within = self._find(name, row)
        file = self._views[number]
        begin, end = _TWO_INTS.unpack_from(file, offsets + 4 * within)
        return file[values + begin : values + end]

    def read(self, name: str, row: int) -> bytearray:
        """A value of a binary column, copied out of the file.

        For long values this is faster than a view: pages of a mapped file that a process has not seen yet are brought
        in one by one, which takes longer than to copy them.

        Raises:
            OSError: the file cannot be read, or has become shorter.
        """
        number, offsets, values, within = self._find(name, row)
        begin, end = _TWO_INTS.unpack_from(self._views[number], offsets + 4 * within)
        value = bytearray(end - begin)
        if hasattr(os, "preadv"):
            if os.preadv(self._files[number].fileno(), [value], values + begin) != len(value):
                raise OSError(f"{self._files[number].name} has become shorter since it was opened")
        else:
            value[:] = self._views[number][values + begin : values + end]
        return value

    def text(self, name: str, row: int) -> str:
        """A value of a string column."""
        return str(self.binary(name, row), "utf-8")

    def integers(self, name: str, row: int) -> list[int]:
        """A value of a column of lists of int32."""
        number, offsets, values, within = self._find(name, row)
        file = self._views[number]
        begin, end = _TWO_INTS.unpack_from(file, offsets + 4 * within)
        return list(struct.unpack_from(f"<{end - begin}i", file, values + 4 * begin))

    def _find(self, name: str, row: int) -> tuple[int, int, int, int]:
        """Where a value is: number of the file, positions in it of its column's two buffers, the row within these."""
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f"row {row} of {self._starts[-1]}")
        batch = bisect.bisect_right(self._starts, row) - 1
        offsets, values = self._positions[name]
        return self._file_of[batch], offsets[batch], values[batch], row - self._starts[batch]

    def _release(self) -> None:
        """Let the system have back the pages that were looked at all over the files: else they seem to be in use."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapping in self._mappings:
                mapping.madvise(mmap.MADV_DONTNEED)

    def _add(self, path: Path, features: datasets.Features) -> None:
        file = io.FileIO(path)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        number = len(self._files)
        self._files.append(file)
        self._mappings.append(mapping)
        self._views.append(memoryview(mapping))
        whole = pa.py_buffer(mapping)
        for batch in _record_batches(whole, features):
            self._starts.append(self._starts[-1] + batch.num_rows)
            self._file_of.append(number)
            for name, column in zip(self._names, batch.columns, strict=True):
                if column.null_count:
                    raise ValueError(f"{path} has values that are null in {name}")
                for positions, buffer in zip(self._positions[name], _buffers(column), strict=True):
                    # Of nothing but empty values there is no buffer, or one that lies elsewhere.
                    positions.append(buffer.address - whole.address if buffer is not None and buffer.size else 0)


def _close(files: list[io.FileIO]) -> None:
    for file in files:
        file.close()


def _record_batches(whole: pa.Buffer, features: datasets.Features) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_stream(whole) as stream:
        if datasets.Features.from_arrow_schema(stream.schema) != features:
            raise OtherColumnsError(f"has other columns than {', '.join(features)}")
        yield from stream


def _buffers(column: pa.Array) -> tuple[pa.Buffer | None, pa.Buffer | None]:
    """What a column's values are made of: offsets and values, or twice the values where all are equally long."""
    _, first, *more = column.buffers()
    return first, more[-1] if more else first
