import os
import shutil

import pytest
import tensorflow as tf

from distrib.data import TFRecordSource
from distrib.data.compare_contents import compare_contents
from distrib.data.make_dataset import make_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Two files of 1,000 records of 8 bytes."""
    (tmp_path / "data").mkdir()
    for file in range(2):
        write(tmp_path / "data" / f"a-{file}.tfrecord", range(1000 * file, 1000 * file + 1000))
    return tmp_path / "data"


def write(path, numbers):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in numbers:
            writer.write(b"%08d" % number)


def contents(folder):
    return make_dataset(f"{folder}/*.tfrecord", 100).fingerprint()["contents"]


def test_the_same_bytes_have_the_same_fingerprint_elsewhere_and_later(folder):
    before = contents(folder)
    shutil.copytree(folder, folder.parent / "elsewhere")
    os.utime(folder.parent / "elsewhere" / "a-0.tfrecord", (1, 1))
    (folder.parent / "elsewhere" / "a-1.tfrecord").rename(
        folder.parent / "elsewhere" / "b.tfrecord"
    )
    assert contents(folder.parent / "elsewhere") == before


@pytest.mark.parametrize("numbers", [range(999), range(1, 1001), range(2000, 3000)])
def test_other_records_have_another_fingerprint(folder, numbers):
    before = contents(folder)
    write(folder / "a-0.tfrecord", numbers)
    assert compare_contents(before, contents(folder)) == "other"


def test_files_in_another_order_have_another_fingerprint(folder):
    before = contents(folder)
    (folder / "a-0.tfrecord").rename(folder / "b.tfrecord")
    assert contents(folder) != before
    (folder / "a-1.tfrecord").unlink()
    assert contents(folder) != before


def test_a_block_is_a_few_mib_or_a_small_part_of_small_data(folder, tmp_path):
    assert TFRecordSource(folder / "*.tfrecord").block_size == 2000 // 256
    with tf.io.TFRecordWriter(str(tmp_path / "large.tfrecord")) as writer:
        writer.write(bytes(5 << 20))
    assert TFRecordSource(tmp_path / "large.tfrecord").block_size == 1
