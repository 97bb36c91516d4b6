import gzip
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from distrib.data import GzipTFRecordSource, TFRecordSource
from distrib.data.files import tfrecord_gzip
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError

SIZES = np.random.default_rng(0).integers(0, 40_000, 150)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Files of 0, 100 and 50 records, 3 MB in all."""
    for file, numbers in enumerate([range(0), range(100), range(100, 150)]):
        write(tmp_path / f"a-{file}.tfrecord.gz", numbers)
    return tmp_path


def record(number):
    return b"%d " % number + np.random.default_rng(number).bytes(SIZES[number])


def write(path, numbers, compression="GZIP"):
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for number in numbers:
            writer.write(record(number))


def test_records_are_read_in_their_order(folder):
    source = GzipTFRecordSource(folder / "a-*.gz")
    assert source.block_size == 100
    dataset = make_dataset(f"{folder}/a-*.tfrecord.gz", 16)
    assert [r for batch in dataset for r in batch.numpy()] == [record(i) for i in range(150)]
    dataset.seek(0, 8)
    assert next(iter(dataset)).numpy().tolist() == [record(i) for i in range(128, 144)]


def test_going_back_restarts_the_file(folder, monkeypatch):
    monkeypatch.setattr(tfrecord_gzip, "_KEPT_BYTES", 1 << 16)
    monkeypatch.setattr(tfrecord_gzip, "_CHUNK", 1 << 14)
    monkeypatch.setattr(tfrecord_gzip, "_OPEN_FILES", 1)
    source = GzipTFRecordSource(folder / "a-*.gz")
    wanted = [149, 3, 99, 4, 100, 0]
    assert [source[i] for i in wanted] == [record(i) for i in wanted]
    assert source.__getitems__(wanted) == [record(i) for i in wanted]
    assert pickle.loads(pickle.dumps(source))[7] == record(7)


def test_several_threads_read_at_once(folder):
    source = GzipTFRecordSource(folder / "a-*.gz")
    numbers = np.random.default_rng(1).permutation(150).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, numbers)) == [record(i) for i in numbers]


def test_random_order_is_refused(folder):
    with pytest.raises(ConfigurationError, match='use `shuffle="blocks"`, or decompress'):
        make_dataset(f"{folder}/a-*.tfrecord.gz", 16, shuffle=True)


def test_an_uncompressed_source_says_what_to_use(folder):
    with pytest.raises(ConfigurationError, match="GzipTFRecordSource"):
        TFRecordSource(folder / "a-1.tfrecord.gz")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-20], "it is truncated"),
        (lambda content: content[:1000] + b"\1\2\3" + content[1003:], "it is damaged"),
        (lambda content: gzip.decompress(content), "it is damaged, or not compressed by GZIP"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-20]), "within its last record"),
        (lambda content: gzip.compress(b"id,label\n" * 9), "is no TFRecord file"),
    ],
)
def test_unsound_files_are_named(folder, damage, message):
    path = folder / "a-1.tfrecord.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=f"a-1.tfrecord.gz cannot be used: .*{message}"):
        GzipTFRecordSource(folder / "a-*.gz")


def test_members_of_several_compressors_are_one_file(folder):
    path = folder / "a-1.tfrecord.gz"
    path.write_bytes(path.read_bytes() + (folder / "a-2.tfrecord.gz").read_bytes())
    assert GzipTFRecordSource(path)[120] == record(120)


def test_a_file_damaged_after_indexing_is_named(folder):
    path = folder / "a-1.tfrecord.gz"
    source, time = GzipTFRecordSource(path), path.stat().st_mtime
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    os.utime(path, (time, time))
    with pytest.raises(ValueError, match=r"a-1.tfrecord.gz: .*damaged"):
        source.__getitems__(range(100))
    assert source[0] == record(0)
