import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.data import ParquetSource
from distrib.data.files import parquet
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError


def table(numbers):
    count = len(numbers)
    pairs = pa.array(np.repeat(np.float32(numbers), 2))
    return pa.table(
        {
            "int": pa.array(numbers, pa.int16()),
            "float": pa.array(numbers, pa.float64()),
            "half": np.float16(numbers),
            "bool": [number % 2 == 0 for number in numbers],
            "text": [f"n{number}" for number in numbers],
            "bytes": [b"%d" % number for number in numbers],
            "category": pa.array(["a", "b"] * (count // 2)).dictionary_encode(),
            "list": pa.array([[number, 1, 2] for number in numbers], pa.list_(pa.int32())),
            "pair": pa.FixedSizeListArray.from_arrays(pairs, 2),
        }
    )


@pytest.fixture
def folder(tmp_path):
    """Files of 40 and 20 rows, in row groups of 7."""
    pq.write_table(table(range(40)), tmp_path / "a-0.parquet", row_group_size=7)
    pq.write_table(table(range(40, 60)), tmp_path / "a-1.parquet", row_group_size=7)
    return tmp_path


def written(folder, columns, **options):
    pq.write_table(pa.table(columns), folder / "b.parquet", row_group_size=3, **options)
    return folder / "b.parquet"


def test_rows_are_dicts_that_keep_dtypes(folder):
    source = ParquetSource(folder / "a-*.parquet")
    assert (len(source), source.block_size) == (60, 7)
    rows = source.__getitems__([59, 0, 7, 7])
    assert [row["int"] for row in rows] == [59, 0, 7, 7]
    row = rows[0]
    assert {name: row[name].dtype.name for name in ("int", "float", "half", "bool")} == {
        "int": "int16",
        "float": "float64",
        "half": "float16",
        "bool": "bool",
    }
    assert (row["text"], row["bytes"], row["category"]) == ("n59", b"59", "b")
    np.testing.assert_array_equal(row["list"], np.int32([59, 1, 2]), strict=True)
    np.testing.assert_array_equal(row["pair"], np.float32([59, 59]), strict=True)
    assert pickle.loads(pickle.dumps(source))[41]["text"] == "n41"


def test_a_dataset_takes_a_pattern(folder):
    dataset = make_dataset(f"{folder}/a-*.parquet", 60)
    (batch,) = dataset
    assert batch["int"].numpy().tolist() == list(range(60))
    assert batch["list"].shape == (60, 3)


def test_columns_are_chosen(folder):
    source = ParquetSource(folder / "a-*.parquet", columns=["text", "int"])
    assert source[3] == {"text": "n3", "int": 3}
    with pytest.raises(ConfigurationError, match=r"a-0.parquet has no column 'txt'; it has text"):
        ParquetSource(folder / "a-*.parquet", columns=["txt"])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([{"x": 1}], "'a' is nested"),
        ([[[1]]], "'a' is nested"),
        ([["a"]], "'a' is nested"),
        (pa.array([1], pa.timestamp("us")), r"'a' is of a type that tensors do not have \(time"),
        ([None], r"'a' is of a type that tensors do not have \(null"),
        ([1, 2, 3, 4, None], "'a' has no value in row 4"),
    ],
)
def test_columns_that_make_no_tensors_are_named(folder, column, message):
    columns = {"a": column, "b": range(len(column))}
    with pytest.raises(ConfigurationError, match=f"b.parquet: column {message}"):
        ParquetSource(written(folder, columns))
    assert ParquetSource(folder / "b.parquet", columns=["b"])[0] == {"b": 0}


def test_empty_values_of_which_the_footer_does_not_tell_are_named_when_they_are_read(folder):
    for column in ([1, 2, 3, 4, None], [[1], [2], [], [3], [4, None]], [[1]] * 4 + [None]):
        source = ParquetSource(written(folder, {"a": column}, write_statistics=False))
        source.__getitems__([0, 1, 2])
        with pytest.raises(ValueError, match=r"b.parquet: column 'a' has no value in row 4"):
            source[3]


def test_files_that_differ_in_their_columns_are_named(folder):
    written(folder, {"int": [1]})
    with pytest.raises(ConfigurationError, match=r"b.parquet.* differ in their columns \(bool"):
        ParquetSource(folder / "*.parquet")
    with pytest.raises(ConfigurationError, match=r"b.parquet: column 'int' is int64, but int16"):
        ParquetSource(folder / "*.parquet", columns=["int"])


def test_large_row_groups_are_warned_of(folder, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 100)
    ParquetSource(folder / "a-*.parquet")
    assert "each of which must be read as a whole" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[:-9], "is truncated, damaged or no Parquet file"),
        (lambda content: content[:-50] + b"\xff" * 30 + content[-20:], "is truncated, damaged"),
        (lambda content: b"id,label\n" * 100, "is truncated, damaged or no Parquet file"),
    ],
)
def test_unsound_files_are_named(folder, damage, message):
    path = folder / "a-1.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=f"a-1.parquet {message}"):
        ParquetSource(folder / "a-*.parquet")


def test_a_row_group_damaged_later_is_named(folder):
    path = folder / "a-0.parquet"
    pq.write_table(table(range(40)), path, row_group_size=7, write_page_checksum=True)
    source, time = ParquetSource(path), path.stat().st_mtime
    content = bytearray(path.read_bytes())
    content[50:150] = bytes(100)
    path.write_bytes(content)
    os.utime(path, (time, time))
    with pytest.raises(ValueError, match=r"a-0.parquet: row group 0 is damaged"):
        source[0]
    assert source[39]["int"] == 39
