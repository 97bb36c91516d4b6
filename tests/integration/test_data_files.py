"""Training files in real object stores are found, indexed, read, and read again after faults."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter
from fault_proxy import fault_proxy
from stores import Server

from distrib.data import (
    ArrayRecordSource,
    GzipTFRecordSource,
    ImageFolderSource,
    ParquetSource,
    TarSource,
    TFRecordSource,
)
from distrib.data.files import ranges
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError
from distrib.storage.find_files import ChangedFileError

EXAMPLES = 12


@pytest.fixture(params=["moto", "gcs"])
def server(request: pytest.FixtureRequest) -> Server:
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Server)
    return made


@pytest.fixture
def url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two files of TFRecords in a bucket, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = f"{server.bucket()}/data"
    for file in range(2):
        path = tmp_path / str(file)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for number in range(file, EXAMPLES, 2):
                writer.write(np.int64(number).tobytes())
        server.filesystem().pipe_file(f"{folder}/train-{file}.tfrecord", path.read_bytes())
    return f"{folder}/train-*.tfrecord"


def batches(source: TFRecordSource) -> list[list[int]]:
    dataset = make_dataset(source, batch_size=5, shuffle=True, seed=2)
    return [np.frombuffer(b"".join(batch.numpy()), np.int64).tolist() for batch in dataset]


def test_records_are_read_from_a_store_with_an_index_beside_them(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_KEPT_BYTES", 0)  # As if the files were large.
    first = TFRecordSource(url, storage_options=server.storage_options)
    expected = batches(first)
    assert sorted(number for batch in expected for number in batch) == list(range(EXAMPLES))
    folder = url.rpartition("/")[0]
    names = [path.rpartition("/")[2] for path in server.filesystem().ls(folder, detail=False)]
    assert sum(name.startswith(".distrib-index-") for name in names) == 1
    with fault_proxy(server) as proxy:
        again = TFRecordSource(url, storage_options=proxy.server.storage_options)
        read = len(proxy.exchanges("GET .*tfrecord"))
        assert batches(again) == expected
        assert len(proxy.exchanges("GET .*tfrecord")) - read <= EXAMPLES + 1  # and example 0 first
        read = len(proxy.exchanges("GET .*tfrecord"))
        assert len(again.__getitems__(range(EXAMPLES))) == EXAMPLES
        assert len(proxy.exchanges("GET .*tfrecord")) - read == 2  # One request a file.
        proxy.fail("reset", match="GET .*tfrecord", times=3)
        assert batches(again) == expected


def write_arrayrecord(path: Path) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for number in range(EXAMPLES):
        writer.write(b"%d" % number)
    writer.close()


def write_gzip(path: Path) -> None:
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for number in range(EXAMPLES):
            writer.write(b"%d" % number)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": range(EXAMPLES)}), path, row_group_size=5)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(EXAMPLES):
            info = tarfile.TarInfo(f"{number:02}.txt")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"%03d" % number))


def write_image(path: Path) -> None:
    keras.utils.save_img(path, np.full((8, 8, 3), 7, np.uint8), scale=False)


def at(kind: Any) -> Callable[..., Any]:
    """Return a function that makes a source of files from a folder, a name and options."""
    return lambda folder, name, **options: kind(f"{folder}/{name}", **options)


def images(folder: str, name: str, **options: Any) -> ImageFolderSource:
    return ImageFolderSource(folder, image_size=(8, 8), **options)


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[..., Any]]] = {
    "a.arrayrecord": (write_arrayrecord, at(ArrayRecordSource)),
    "a.tfrecord.gz": (write_gzip, at(GzipTFRecordSource)),
    "a.parquet": (write_parquet, at(ParquetSource)),
    "a.tar": (write_tar, at(TarSource)),
    "cats/a.png": (write_image, images),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_and_upload(server: Server, name: str, tmp_path: Path) -> tuple[Path, str]:
    """Return a folder with a file here, and the same in the store."""
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    FORMATS[name][0](path)
    folder = f"{server.bucket()}/data"
    server.filesystem().pipe_file(f"{folder}/{name}", path.read_bytes())
    return tmp_path / "data", folder


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "name",
    [
        "a.tfrecord.gz",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("a.arrayrecord", "a.parquet", "a.tar", "cats/a.png")
        ),
    ],
)
def test_every_format_is_shuffled_resumed_and_shared(name: str, tmp_path: Path) -> None:
    write, make = FORMATS[name]
    for file in range(2):
        path = tmp_path / str(file) / name
        path = path.with_name(f"{file}{path.name}") if "/" in name else tmp_path / f"{file}{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    source = make(tmp_path, "" if "/" in name else f"*{name}")
    source.block_size = 5
    for shuffle in (False, "blocks", True):
        if shuffle is True and source.sequential:
            continue
        options: dict[str, Any] = {"batch_size": 4, "shuffle": shuffle, "map": key_of}
        dataset = make_dataset(source, **options)
        batches = [batch.numpy().tolist() for batch in dataset]
        assert sorted(chain.from_iterable(batches)) == sorted(
            key_of(source[i]) for i in range(len(source))
        )
        dataset.seek(0, len(batches) // 2)
        assert [batch.numpy().tolist() for batch in dataset] == batches[len(batches) // 2 :]
        ranks = [make_dataset(source, **options, rank=rank, size=2) for rank in range(2)]
        assert [
            [*one.numpy().tolist(), *other.numpy().tolist()]
            for one, other in zip(*ranks, strict=True)
        ] == batches


def key_of(example: Any) -> int:
    """Return a number by which examples of any format are told apart."""
    if isinstance(example, tuple):
        return int(example[0][0, 0, 0]) * 10 + int(example[1])
    if isinstance(example, dict):
        return int(example["a"] if "a" in example else example["txt"])
    return int(example)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_from_a_store_that_fails(
    moto: Server, name: str, tmp_path: Path
) -> None:
    local, folder = write_and_upload(moto, name, tmp_path)
    make = FORMATS[name][1]
    here = make(local, name)
    with fault_proxy(moto) as proxy:
        options: dict[str, Any] = {"storage_options": proxy.server.storage_options}
        if name == "a.arrayrecord":
            options["cache_dir"] = tmp_path / "copies"
        content = f"GET .*data/{name}"
        cut_off = proxy.fail("reset", match=content, after_bytes=20)
        unavailable = proxy.fail("503", match=content)
        not_listed = proxy.fail("503", match="list-type|HEAD")
        there = make(folder, name, **options)
        np.testing.assert_equal(
            there.__getitems__(range(len(there))), here.__getitems__(range(len(here)))
        )
        assert (cut_off.struck, unavailable.struck, not_listed.struck) == (1, 1, 1)
        assert there.checksum() == here.checksum()
        proxy.fail("403", times=float("inf"))
        with pytest.raises(ConfigurationError, match="access is denied"):
            make(folder, name, **options)


@pytest.mark.usefixtures("cache")
def test_files_replaced_in_the_store_during_a_run_are_named(server: Server, tmp_path: Path) -> None:
    for name in ("a.tar", "cats/a.png"):
        _, folder = write_and_upload(server, name, tmp_path / name)
        source = FORMATS[name][1](folder, name, storage_options=server.storage_options)
        server.filesystem().pipe_file(f"{folder}/{name}", b"other")
        with pytest.raises(ChangedFileError, match=f"{name} was replaced or changed after this"):
            source.__getitems__([0])
        server.filesystem().rm_file(f"{folder}/{name}")
        with pytest.raises(ChangedFileError, match=f"{name} was there when this run started"):
            source.__getitems__([0])
