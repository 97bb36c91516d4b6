import os
import pickle

import fsspec
import pytest

from distrib.data.files.ranges import FileRanges, merge_ranges
from distrib.storage.find_files import ChangedFileError, find_files
from distrib.storage.location import Location

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def ranges(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(CONTENT)
    return FileRanges(find_files(tmp_path / "*", "paths"))


def test_ranges_come_in_the_order_they_are_asked_for(ranges):
    asked = [(1, 900, 1000), (0, 0, 10), (1, 5, 5), (0, 200_000, 200_100), (0, 5, 20)]
    assert ranges.read(asked) == [CONTENT[start:end] for _, start, end in asked]
    assert ranges.read([]) == []
    assert pickle.loads(pickle.dumps(ranges)).read_one(1, 3, 9) == CONTENT[3:9]


def test_neighbours_are_one_request():
    asked = [(0, 30, 40), (0, 0, 10), (1, 12, 20), (0, 12, 20), (0, 1, 2)]
    assert merge_ranges(asked, 5, 100) == [
        ((0, 0, 20), [1, 4, 3]),
        ((0, 30, 40), [0]),
        ((1, 12, 20), [2]),
    ]
    assert merge_ranges([(0, 0, 10), (0, 10, 20)], 5, 15) == [((0, 0, 10), [0]), ((0, 10, 20), [1])]


@pytest.mark.parametrize("change", ["replace", "touch", "truncate"])
def test_a_file_that_changes_is_named(ranges, tmp_path, change):
    path = tmp_path / "a"
    if change == "replace":
        (tmp_path / "new").write_bytes(CONTENT)
        (tmp_path / "new").rename(path)
    elif change == "touch":
        os.utime(path, (1, 1))
    else:
        os.truncate(path, 100)
    with pytest.raises(ChangedFileError, match="a was replaced or changed after this run started"):
        ranges.read_one(0, 90, 200)
    assert ranges.read_one(1, 90, 200) == CONTENT[90:200]


def test_a_file_that_vanishes_is_named(ranges, tmp_path):
    (tmp_path / "b").unlink()
    with pytest.raises(ChangedFileError, match="b was there when this run started, and is gone"):
        ranges.read_one(1, 90, 200)


def test_a_file_in_a_store_is_looked_up_again_only_now_and_then():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/ranges/a", CONTENT)
    files = find_files("memory://ranges/a", "paths")
    filesystem.pipe_file("/ranges/a", CONTENT + b"more")
    assert FileRanges(files).read([(0, 0, 3), (0, 255_000, 255_003)]) == [
        CONTENT[:3],
        CONTENT[255_000:255_003],
    ]
    with pytest.raises(ChangedFileError):
        FileRanges(files, check_interval=0).read_one(0, 0, 3)
    filesystem.rm("/ranges", recursive=True)
    with pytest.raises(ChangedFileError, match="gone"):
        FileRanges(files).read_one(0, 0, 3)


def test_small_files_in_a_store_are_read_once(monkeypatch):
    filesystem = fsspec.filesystem("memory")
    contents = [os.urandom(9 << 20), os.urandom(100)]
    for name, content in zip("ab", contents, strict=True):
        filesystem.pipe_file(f"/small/{name}", content)
    requests = []
    read = Location.read_range

    def counted(location, start, end):
        requests.append((location.name, start, end))
        return read(location, start, end)

    monkeypatch.setattr(Location, "read_range", counted)
    ranges = FileRanges(find_files("memory://small/*", "paths"))
    part = 4 << 20
    asked = [
        (0, part - 5, part + 5),
        (1, 10, 100),
        (0, 0, 2 * part),
        (0, 7, 7),
        (0, 8 << 20, 9 << 20),
    ]
    for _ in range(2):
        assert ranges.read(asked) == [contents[file][start:end] for file, start, end in asked]
        assert sorted(requests) == [
            ("a", 0, part),
            ("a", part, 2 * part),
            ("a", 2 * part, 9 << 20),
            ("b", 0, 100),
        ]
    FileRanges(find_files("memory://small/*", "paths"), keep=False).read([(0, 7, 9)])
    assert requests[-1] == ("a", 7, 9)
    filesystem.rm("/small", recursive=True)


def test_a_range_behind_the_end_of_a_kept_file_is_refused():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/ends/a", CONTENT)
    ranges = FileRanges(find_files("memory://ends/a", "paths"))
    with pytest.raises(OSError, match="a ends before byte 256001"):
        ranges.read([(0, 255_000, len(CONTENT) + 1)])
    filesystem.rm("/ends", recursive=True)
