"""Values of memory-mapped tables are those that plain `datasets` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from musicgen_train.latents.table import OtherColumnsError, open_table

FEATURES = datasets.Features(
    {
        "bytes": datasets.Value("binary"),
        "numbers": datasets.List(datasets.Value("int32")),
        "text": datasets.Value("string"),
        "number": datasets.Value("int32"),
        "real": datasets.Value("float32"),
    }
)


def rows(count: int) -> list[dict[str, Any]]:
    """Empty values, values of all lengths, and a character of several bytes."""
    return [
        {
            "bytes": bytes(range(row % 5)),
            "numbers": list(range(-row, -row + row % 3)),
            "text": "é" * (row % 4),
            "number": 7 - row,
            "real": row / 4,
        }
        for row in range(count)
    ]


def write(folder: Path, content: list[dict[str, Any]], **options: Any) -> datasets.Dataset:
    columns = {name: [row[name] for row in content] for name in FEATURES}
    datasets.Dataset.from_dict(columns, features=FEATURES).save_to_disk(str(folder), **options)
    return datasets.load_from_disk(str(folder))


@pytest.mark.parametrize(("count", "files"), [(1, 1), (5, 3), (2500, 2)])
def test_values_equal_those_of_plain_datasets(tmp_path: Path, count: int, files: int) -> None:
    plain = write(tmp_path, rows(count), num_shards=files)
    table = open_table(tmp_path, FEATURES)
    assert table.num_rows == count
    assert table["number"].to_pylist() == plain["number"]
    for row in {0, count // 2, count - 1, *range(0, count, 37)}:
        assert {name: table[name][row].as_py() for name in FEATURES} == plain[row]


def test_a_table_without_rows(tmp_path: Path) -> None:
    write(tmp_path, [], num_shards=1)
    assert open_table(tmp_path, FEATURES).num_rows == 0


def test_opening_reads_no_values(tmp_path: Path) -> None:
    write(tmp_path, [{**rows(1)[0], "bytes": bytes(10_000_000)}])
    before = pa.total_allocated_bytes()
    table = open_table(tmp_path, FEATURES)
    assert pa.total_allocated_bytes() - before < 100_000
    assert table.nbytes > 10_000_000


def test_null_values_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [*rows(2), {**rows(1)[0], "text": None}])
    with pytest.raises(ValueError, match="has null values in text"):
        open_table(tmp_path, FEATURES)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path, rows(2))
    fewer = datasets.Features({name: FEATURES[name] for name in ("bytes", "text")})
    with pytest.raises(OtherColumnsError, match="has other columns than bytes, text"):
        open_table(tmp_path, fewer)


def test_a_file_cut_between_its_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path, rows(2500))
    [file] = tmp_path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with pytest.raises((ValueError, OSError), match=r"Expected to be able to read|Truncated|truncated"):
        open_table(tmp_path, FEATURES)
