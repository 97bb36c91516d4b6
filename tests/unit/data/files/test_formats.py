import tarfile

import pytest
import tensorflow as tf
from fsspec.implementations.local import LocalFileSystem

from distrib.data import GzipTFRecordSource, TFRecordSource
from distrib.data.files.formats import source_of_files
from distrib.errors import ConfigurationError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    for name, compression in (
        ("a.tfrecord-00000-of-00001", None),
        ("b.tfrecords.gz", "GZIP"),
        ("c.other", None),
    ):
        with tf.io.TFRecordWriter(str(tmp_path / name), compression) as writer:
            writer.write(b"record")
    return tmp_path


def test_names_tell_the_format(folder):
    assert type(source_of_files(folder / "a*")) is TFRecordSource
    assert type(source_of_files(f"{folder}/b.tfrecords.gz")) is GzipTFRecordSource


def test_a_pattern_is_listed_once(folder, monkeypatch):
    listed = []
    glob = LocalFileSystem.glob

    def counting(filesystem, path, **kwargs):
        listed.append(path)
        return glob(filesystem, path, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "glob", counting)
    assert len(source_of_files(folder / "a*")) == 1
    assert len(listed) == 1


def test_several_formats_are_refused(folder):
    with pytest.raises(
        ConfigurationError, match=r"several formats \(a.tfrecord-.*, b.tfrecords.gz"
    ):
        source_of_files(folder / "*")


@pytest.mark.parametrize("name", ["c.other", "c.*", "none", "none.csv"])
def test_names_that_tell_no_format_are_refused_with_those_that_do(folder, name):
    listed = r"\.tfrecord\.gz, .*\.tfrecord, .*\.arrayrecord, .*\.parquet, \.tar in their names"
    with pytest.raises(ConfigurationError, match=f"{name.replace('*', '.')}'.*{listed}"):
        source_of_files(folder / name)


def test_a_pattern_without_files_is_refused(folder):
    for pattern in ("z-*.tfrecord", "z*"):
        with pytest.raises(ConfigurationError, match=r"source=.*z.*there is no such file"):
            source_of_files(folder / pattern)
    with pytest.raises(ConfigurationError, match="Braces are no wildcard"):
        source_of_files(folder / "train-{00..10}.tar")


def test_a_folder_of_other_files_says_what_to_write(folder):
    with pytest.raises(ConfigurationError, match=r"files such as a.tfrecord-.*\*.tfrecord\*'"):
        source_of_files(folder)


def test_a_compressed_archive_is_refused(folder):
    with tarfile.open(folder / "d.tar.gz", "w:gz"):
        pass
    with pytest.raises(ConfigurationError, match="it is compressed; decompress it"):
        source_of_files(folder / "d.tar.gz")
