import struct

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf

from distrib.data.files.tfrecord_format import RecordError, content_of, record_ends

RECORDS = [b"", b"a", b"bc" * 100, bytes(range(256)) * 50, b"", b"end"]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in RECORDS:
            writer.write(record)
    return path.read_bytes()


def ends_of(content, window_size=16):
    return record_ends(lambda start, end: content[start:end], len(content), window_size)


@pytest.mark.parametrize("window_size", [12, 13, 300, 1 << 20])
def test_records_that_tensorflow_wrote_are_found(written, window_size):
    ends = ends_of(written, window_size)
    assert ends.dtype == np.int64
    starts = [0, *ends[:-1]]
    found = [content_of(written[start:end], start) for start, end in zip(starts, ends, strict=True)]
    assert found == RECORDS


def test_what_lies_between_two_windows_is_not_read():
    with_one_large = b"".join(_record(b"x" * size) for size in (10, 1_000_000, 10))
    read = []

    def note(start, end):
        read.append((start, end))
        return with_one_large[start:end]

    record_ends(note, len(with_one_large), 100)
    assert sum(end - start for start, end in read) < 300


def test_an_empty_file_has_no_records():
    assert ends_of(b"").shape == (0,)


@pytest.mark.parametrize("missing", [1, 5, 15])
def test_a_truncated_file_is_recognized(written, missing):
    with pytest.raises(RecordError, match="truncated"):
        ends_of(written[:-missing])


def test_a_damaged_length_names_its_place(written):
    second = int(ends_of(written)[0])
    damaged = bytearray(written)
    damaged[second] ^= 1
    with pytest.raises(RecordError, match=f"damaged at byte {second}"):
        ends_of(bytes(damaged))


@pytest.mark.parametrize("flipped", [0, 9, 12, -1])
def test_every_part_of_a_record_is_checked(flipped):
    record = bytearray(_record(b"content"))
    record[flipped] ^= 1
    with pytest.raises(RecordError, match=r"byte 70|damaged"):
        content_of(bytes(record), 70)


def test_another_length_than_that_of_the_index_is_noticed():
    with pytest.raises(RecordError, match="another length"):
        content_of(_record(b"content") + b"more", 0)


@pytest.mark.parametrize(("compression", "match"), [("GZIP", "GZIP"), ("ZLIB", "ZLIB")])
def test_a_compressed_file_is_recognized(tmp_path, compression, match):
    path = tmp_path / "a.tfrecord.gz"
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        writer.write(b"a")
    with pytest.raises(RecordError, match=match):
        ends_of(path.read_bytes())


def test_another_kind_of_file_is_recognized():
    with pytest.raises(RecordError, match="no TFRecord file"):
        ends_of(b"id,label\n1,2\n3,4\n")


def _record(content):
    def masked(data):
        crc = google_crc32c.value(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    header = struct.pack("<Q", len(content))
    return header + struct.pack("<I", masked(header)) + content + struct.pack("<I", masked(content))
