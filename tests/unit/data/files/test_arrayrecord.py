import pickle

import fsspec
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from distrib.data import ArrayRecordSource
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError


def write(path, numbers):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for number in numbers:
        writer.write(b"%d" % number * 100)
    writer.close()


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a-0.arrayrecord", range(5))
    write(tmp_path / "a-1.arrayrecord", range(5, 12))
    return tmp_path


@pytest.fixture
def url(folder):
    """The same files in a store."""
    filesystem = fsspec.filesystem("memory")
    for path in folder.glob("*.arrayrecord"):
        filesystem.pipe_file(f"/arrayrecord/{path.name}", path.read_bytes())
    yield "memory://arrayrecord/a-*.arrayrecord"
    filesystem.rm("/arrayrecord", recursive=True)


def test_records_are_read_in_any_order(folder):
    source = ArrayRecordSource(folder / "a-*")
    assert source.__getitems__([11, 0, 4, 5]) == [b"%d" % n * 100 for n in (11, 0, 4, 5)]
    assert pickle.loads(pickle.dumps(source))[6] == b"6" * 100
    with pytest.raises(IndexError):
        source[12]
    (batch,) = make_dataset(f"{folder}/a-*.arrayrecord", 12)
    assert batch.numpy().tolist() == [b"%d" % n * 100 for n in range(12)]


def test_files_in_a_store_are_copied_once(url, tmp_path, caplog):
    caplog.set_level("INFO", "distrib")
    cache = tmp_path / "cache"
    source = ArrayRecordSource(url, cache_dir=cache)
    assert "copying 2 files" in caplog.text
    assert source.__getitems__([11, 0]) == [b"11" * 100, b"0" * 100]
    caplog.clear()
    ArrayRecordSource(url, cache_dir=cache)
    assert not caplog.records
    write(tmp_path / "new", range(50))
    content = (tmp_path / "new").read_bytes() + bytes(1 << 16)
    fsspec.filesystem("memory").pipe_file("/arrayrecord/a-1.arrayrecord", content)
    with pytest.raises(ConfigurationError, match=r"a-1.arrayrecord is empty, truncated or no"):
        ArrayRecordSource(url, cache_dir=cache)


def test_files_in_a_store_are_refused_without_a_folder_for_copies(url):
    with pytest.raises(ConfigurationError, match=r"Pass `cache_dir=...`, a folder to copy them to"):
        ArrayRecordSource(url)
    with pytest.raises(ConfigurationError, match="must be a local folder"):
        ArrayRecordSource(url, cache_dir="memory://cache")


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:-9], lambda c: b"id,label\n" * 100])
def test_unsound_files_are_named(folder, damage):
    path = folder / "a-1.arrayrecord"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ConfigurationError, match=r"a-1.arrayrecord is empty, truncated or no Array"
    ):
        ArrayRecordSource(folder / "a-*.arrayrecord")


def test_files_without_records_are_refused(folder):
    write(folder / "b.arrayrecord", [])
    with pytest.raises(ConfigurationError, match="have no records"):
        ArrayRecordSource(folder / "b.arrayrecord")


def test_a_file_damaged_later_is_named(folder):
    source = ArrayRecordSource(folder / "a-*.arrayrecord")
    assert source[0] == b"0" * 100
    write(folder / "a-1.arrayrecord", range(3))
    with pytest.raises(OSError, match=r"a-1.arrayrecord was replaced or changed"):
        source[11]
