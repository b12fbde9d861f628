"""Tables of a latent dataset, memory-mapped by pyarrow."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa

from musicgen_train.files import read_json

# `save_to_disk` writes it; it names the files that hold the rows.
_STATE_NAME = "state.json"


class OtherColumnsError(ValueError):
    """A table does not have the columns it should have."""


def open_table(folder: Path, features: datasets.Features) -> pa.Table:
    """Map the files of a dataset that `save_to_disk` wrote; nothing of its values is read.

    Plain `datasets` maps them alike, but decodes all columns of a row at once.

    Args:
        folder: of the one dataset.
        features: its columns.

    Raises:
        FileNotFoundError: there is no such dataset, or a file of it is missing.
        OtherColumnsError: it has other columns.
        ValueError: it has null values, or its files are damaged.
    """
    tables = []
    for file in read_json(folder / _STATE_NAME)["_data_files"]:
        path = folder / file["filename"]
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            if datasets.Features.from_arrow_schema(stream.schema) != features:
                raise OtherColumnsError(f"has other columns than {', '.join(features)}")
            table = stream.read_all()
        for name, column in zip(table.column_names, table.columns, strict=True):
            if column.null_count:
                raise ValueError(f"{path} has null values in {name}")
        tables.append(table)
    return pa.concat_tables(tables)
