import re

import fsspec
import pytest

from distrib.errors import ConfigurationError, StoreUnavailableError
from distrib.storage.find_files import ChangedFileError, _version, find_files, find_tree, unreadable


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


def test_a_list_of_urls_has_one_file_system():
    filesystem = fsspec.filesystem("memory")
    for name in ("b", "a"):
        filesystem.pipe_file(f"/listed/{name}", b"1")
    urls = ["memory://listed/b", "memory://listed/*"]
    one, other = find_files(urls, "paths")
    assert [one.location.name, other.location.name] == ["a", "b"]
    assert one.location.filesystem is other.location.filesystem
    filesystem.rm("/listed", recursive=True)


def test_a_file_that_changes_or_vanishes_is_noticed(folder):
    (file,) = find_files(folder / "a-1", "paths")
    file.check_unchanged()
    (folder / "a-1").write_bytes(b"1")
    with pytest.raises(ChangedFileError, match="a-1 was replaced or changed"):
        file.check_unchanged()
    (folder / "a-1").unlink()
    with pytest.raises(ChangedFileError, match="a-1 was there when this run started, and is gone"):
        file.check_unchanged()


def test_a_listing_that_writes_versions_in_another_way_is_no_change():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/listed/a", b"1")
    (file,) = find_files("memory://listed/*", "paths")
    assert file.version != _version(filesystem.info("/listed/a"))
    file.check_unchanged()
    filesystem.pipe_file("/listed/a", b"2")
    with pytest.raises(ChangedFileError):
        file.check_unchanged()
    filesystem.rm("/listed", recursive=True)


def test_a_tree_has_the_files_below_a_folder(folder):
    location, found = find_tree(folder, "directory")
    assert location.path == str(folder)
    assert sorted(found) == [".a-0", "[x]", "a-1", "a-2", "b-1", "deep/a-3"]
    assert found["deep/a-3"].location.path == f"{folder}/deep/a-3"
    with pytest.raises(ConfigurationError, match=r"`directory='.*none'`: there is no such folder"):
        find_tree(folder / "none", "directory")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConnectionResetError("reset"), StoreUnavailableError, r"data: the connection was lost"),
        (PermissionError(13, "no"), ConfigurationError, r"data: access is denied \(no\)"),
        (ChangedFileError("a was replaced"), ConfigurationError, r"^a was replaced\.$"),
    ],
)
def test_only_errors_that_may_pass_are_worth_a_restart(folder, error, kind, message):
    (file,) = find_files(folder / "a-1", "paths")
    raised = unreadable("data", error, file.location)
    assert type(raised) is kind
    assert re.search(message, str(raised))


def test_a_folder_is_no_file(folder):
    with pytest.raises(ConfigurationError, match=r"`paths='.*deep'`: there is no such file"):
        find_files(f"{folder}/deep", "paths")
