import fsspec
import pytest

from distrib.errors import ConfigurationError
from distrib.storage.find_files import find_files


@pytest.fixture
def folder(tmp_path):
    for name in ("b-1", "a-2", "a-1", "deep/a-3", "[x]", ".a-0"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    return tmp_path


def names(paths, **kwargs):
    return [file.location.name for file in find_files(paths, "paths", **kwargs)]


def test_patterns_paths_and_lists(folder):
    assert names(folder / "a-*") == ["a-1", "a-2"]
    assert names(folder / ".a-0") == [".a-0"]
    assert names(folder / "*") == ["[x]", "a-1", "a-2", "b-1"]
    assert names(f"{folder}/?-1") == ["a-1", "b-1"]
    assert names(f"{folder}/**/a-*") == ["a-1", "a-2", "a-3"]
    assert names([folder / "b-1", folder / "a-*", folder / "a-1"]) == ["a-1", "a-2", "b-1"]


def test_a_relative_pattern_is_resolved(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (file, _) = find_files("a-*", "paths")
    assert file.location.path == str(folder / "a-1")
    assert file.size == 5


def test_the_version_follows_the_content(folder):
    (before,) = find_files(folder / "a-1", "paths")
    (folder / "a-1").write_bytes(b"54321")
    (after,) = find_files(folder / "a-1", "paths")
    assert before.version != after.version


def test_urls(folder):
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/found/a-1", b"1")
    filesystem.pipe_file("/found/a-2", b"2")
    assert names("memory://found/a-*") == ["a-1", "a-2"]
    filesystem.rm("/found", recursive=True)


def test_a_folder_is_no_file(folder):
    with pytest.raises(ConfigurationError, match=r"`paths='.*deep'`: there is no such file"):
        find_files(f"{folder}/deep", "paths")
