import logging
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from distrib.data import TFRecordSource
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "distrib" / "indexes"


@pytest.fixture
def folder(tmp_path):
    """Three files of 0, 5 and 4 records, named 0 to 8."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train-0.tfrecord", [])
    write(folder / "train-1.tfrecord", range(5))
    write(folder / "train-2.tfrecord", range(5, 9))
    return folder


def write(path, numbers):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in numbers:
            features = {
                "number": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
                "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x" * number])),
            }
            writer.write(
                tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
            )


def parse(record):
    return tf.io.parse_single_example(record, {"number": tf.io.FixedLenFeature([], tf.int64)})


def numbers(source):
    return [int(parse(source[i])["number"]) for i in range(len(source))]


def indexes(folder):
    return sorted(path.name for path in folder.glob(".distrib-index-*"))


def test_records_have_one_number_over_all_files(folder):
    source = TFRecordSource(folder / "train-*.tfrecord")
    assert numbers(source) == list(range(9))
    for index in (-1, 9):
        with pytest.raises(IndexError):
            source[index]


def test_files_may_be_listed_and_count_once(folder):
    names = [f"{folder}/train-2.tfrecord", str(folder / "train-[12].tfrecord")]
    assert numbers(TFRecordSource(names)) == list(range(9))


def test_a_dataset_reads_them_in_any_order_and_resumes(folder):
    pattern = str(folder / "train-*.tfrecord")
    arguments = {"batch_size": 2, "shuffle": True, "seed": 3}
    for map in (parse, tf.function(parse)):
        dataset = make_dataset(pattern, map=map, **arguments)
        batches = [batch["number"].numpy().tolist() for batch in dataset]
        same = [batch.numpy().tolist() for batch in make_dataset(np.arange(9), **arguments)]
        assert batches == same
        dataset.seek(0, 3)
        assert [batch["number"].numpy().tolist() for batch in dataset] == batches[3:]


def test_without_map_the_examples_are_serialized(folder):
    (batch,) = make_dataset(str(folder / "train-*.tfrecord"), 100)
    assert batch.dtype == tf.string
    assert parse(batch.numpy()[7])["number"] == 7


def test_the_index_is_kept_beside_the_data(folder, caplog):
    caplog.set_level(logging.INFO, "distrib")
    TFRecordSource(folder / "train-*.tfrecord")
    assert len(indexes(folder)) == 1
    assert "indexing 3 TFRecord files" in caplog.text
    caplog.clear()
    assert numbers(TFRecordSource(folder / "train-*.tfrecord")) == list(range(9))
    assert not caplog.records


def test_several_that_need_the_same_index_make_it_once(folder, caplog):
    caplog.set_level(logging.INFO, "distrib")
    with ThreadPoolExecutor(4) as pool:  # A lock of a thread excludes others as a process's does.
        sources = list(pool.map(TFRecordSource, [folder / "train-*.tfrecord"] * 4))
    assert [len(source) for source in sources] == [9] * 4
    assert caplog.text.count("indexing 3 TFRecord files") == 1


def test_a_changed_file_makes_a_new_index_in_place_of_the_old_one(folder):
    TFRecordSource(folder / "train-*.tfrecord")
    write(folder / "train-1.tfrecord", range(10, 13))
    assert numbers(TFRecordSource(folder / "train-*.tfrecord")) == [10, 11, 12, 5, 6, 7, 8]
    assert len(indexes(folder)) == 1


def test_a_file_of_the_same_size_written_later_makes_a_new_index(folder, caplog):
    caplog.set_level(logging.INFO, "distrib")
    TFRecordSource(folder / "train-*.tfrecord")
    caplog.clear()
    os.utime(folder / "train-1.tfrecord", (1, 1))
    TFRecordSource(folder / "train-*.tfrecord")
    assert "indexing" in caplog.text


def test_a_damaged_index_is_made_anew(folder, caplog):
    TFRecordSource(folder / "train-*.tfrecord")
    path = folder / indexes(folder)[0]
    content = path.read_bytes()
    for damaged in (content[:-30], content[:20], b"", b"\xff" * 50):
        path.write_bytes(damaged)
        assert numbers(TFRecordSource(folder / "train-*.tfrecord")) == list(range(9))
        assert path.read_bytes() == content


def test_the_index_goes_where_it_is_told(folder, tmp_path, cache):
    for _ in range(2):
        TFRecordSource(folder / "train-*.tfrecord", index_dir=tmp_path / "elsewhere")
    assert len(indexes(tmp_path / "elsewhere")) == 1
    assert not indexes(folder)


def test_data_that_cannot_be_written_beside_have_their_index_in_the_cache(folder, cache):
    # A folder in the index's place: root may write into a read-only folder.
    TFRecordSource(folder / "train-*.tfrecord")
    (name,) = indexes(folder)
    (folder / name).unlink()
    (folder / name / "in the way").mkdir(parents=True)
    TFRecordSource(folder / "train-*.tfrecord")
    assert (cache / name).is_file()


def test_a_machine_without_a_cache_folder_is_no_obstacle(folder, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert numbers(TFRecordSource(folder / "train-*.tfrecord")) == list(range(9))
    assert len(indexes(folder)) == 1


def test_only_the_chief_writes_beside_the_data(folder, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "distrib")
    for variable, value in (("HOROVOD_SIZE", "2"), ("HOROVOD_RANK", "1")):
        monkeypatch.setenv(variable, value)
    TFRecordSource(folder / "train-*.tfrecord")
    TFRecordSource(folder / "train-*.tfrecord", index_dir=folder / "elsewhere")
    assert not indexes(folder)
    assert not (folder / "elsewhere").exists()
    monkeypatch.setenv("HOROVOD_RANK", "0")
    TFRecordSource(folder / "train-*.tfrecord")
    assert len(indexes(folder)) == 1
    assert caplog.text.count("indexing 3 TFRecord files") == 1


def test_a_pattern_does_not_match_the_index(folder):
    for _ in range(2):
        assert len(TFRecordSource(folder / "*")) == 9


def test_a_record_damaged_after_indexing_is_named(folder):
    source = TFRecordSource(folder / "train-2.tfrecord")
    path = folder / "train-2.tfrecord"
    content, time = bytearray(path.read_bytes()), path.stat().st_mtime
    content[-6] ^= 1
    path.write_bytes(content)
    os.utime(path, (time, time))
    assert parse(source[0])["number"] == 5
    with pytest.raises(
        ValueError, match=r"train-2.tfrecord: the record at byte \d+ does not match its checksum"
    ):
        source[3]


def test_a_file_replaced_after_indexing_is_named(folder):
    dataset = make_dataset(str(folder / "train-*.tfrecord"), 9)
    write(folder / "train-2.tfrecord", range(6, 10))
    with pytest.raises(tf.errors.OpError, match=r"train-2.tfrecord was replaced or changed after"):
        list(dataset)


def test_many_records_come_in_the_order_they_are_asked_for(folder):
    source = TFRecordSource(folder / "train-*.tfrecord")
    records = source.__getitems__([8, 0, 0, 5])
    assert [int(parse(record)["number"]) for record in records] == [8, 0, 0, 5]
    assert pickle.loads(pickle.dumps(source)).__getitems__([8]) == records[:1]
    with pytest.raises(IndexError, match="no example 9; there are 9"):
        source.__getitems__([0, 9])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none-*.tfrecord", "there is no such file"),
        ("train-7.tfrecord", "there is no such file"),
        ("train-0.tfrecord", "the TFRecord files have no records"),
        ("bad.tfrecord", "bad.tfrecord cannot be used: it is no TFRecord file"),
    ],
)
def test_unusable_files_are_refused(folder, pattern, message):
    (folder / "bad.tfrecord").write_bytes(b"id,label\n1,2\n3,4\n")
    with pytest.raises(ConfigurationError, match=message):
        TFRecordSource(f"{folder}/{pattern}")


def test_an_empty_list_is_refused():
    with pytest.raises(ConfigurationError, match="`paths` is empty"):
        TFRecordSource([])
