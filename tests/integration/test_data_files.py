"""Training files in real object stores are found, indexed, read, and read again after faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fault_proxy import fault_proxy
from stores import Server

from distrib.data import TFRecordSource
from distrib.data.make_dataset import make_dataset

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


def test_records_are_read_from_a_store_with_an_index_beside_them(server: Server, url: str) -> None:
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
        assert len(proxy.exchanges("GET .*tfrecord")) - read == EXAMPLES + 1  # and example 0 first
        proxy.fail("reset", match="GET .*tfrecord", times=3)
        assert batches(again) == expected
