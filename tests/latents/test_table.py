"""Values of memory-mapped tables, compared with what plain `datasets` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from musicgen_train.latents.table import MappedTable, OtherColumnsError

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
    table = MappedTable(tmp_path, FEATURES)
    assert len(table) == count
    assert table.numbers("number").tolist() == plain["number"]
    for row in {0, count // 2, count - 1, *range(0, count, 37)}:
        read = {
            "bytes": bytes(table.binary("bytes", row)),
            "numbers": table.integers("numbers", row),
            "text": table.text("text", row),
            "number": table.integer("number", row),
            "real": table.real("real", row),
        }
        assert read == plain[row]


def test_a_table_of_nothing_but_empty_values(tmp_path: Path) -> None:
    write(tmp_path, [{"bytes": b"", "numbers": [], "text": "", "number": 0, "real": 0.0}] * 3)
    table = MappedTable(tmp_path, FEATURES)
    assert [bytes(table.binary("bytes", 2)), table.integers("numbers", 2), table.text("text", 2)] == [b"", [], ""]


def test_a_table_without_rows(tmp_path: Path) -> None:
    write(tmp_path, [], num_shards=1)
    table = MappedTable(tmp_path, FEATURES)
    assert (len(table), table.numbers("number").tolist()) == (0, [])
    with pytest.raises(IndexError, match="row 0 of 0"):
        table.text("text", 0)


def test_null_values_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [*rows(2), {**rows(1)[0], "text": None}])
    with pytest.raises(ValueError, match="has values that are null in text"):
        MappedTable(tmp_path, FEATURES)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path, rows(2))
    fewer = datasets.Features({name: FEATURES[name] for name in ("bytes", "text")})
    with pytest.raises(OtherColumnsError, match="has other columns than bytes, text"):
        MappedTable(tmp_path, fewer)


def test_a_file_cut_between_its_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path, rows(2500))
    [file] = tmp_path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with pytest.raises((ValueError, OSError), match=r"Expected to be able to read|Truncated|truncated"):
        MappedTable(tmp_path, FEATURES)
