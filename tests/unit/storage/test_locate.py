from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import ConfigurationError
from distrib.storage.locate import locate, relocate


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("given", ["run", "{tmp}/run", "file://{tmp}/run", "~/run", "a/../run/"])
def test_local_paths_and_urls(tmp_path: Path, given: str) -> None:
    url = given.format(tmp=tmp_path)
    location = locate(url, "directory")
    assert location.local == tmp_path / "run"
    assert str(location) == location.url == str(tmp_path / "run")


def test_a_path_object_is_a_path(tmp_path: Path) -> None:
    assert locate(tmp_path / "run", "directory").local == tmp_path / "run"


@pytest.mark.parametrize(
    ("given", "path", "url"),
    [
        ("s3://bucket/runs/17", "bucket/runs/17", "s3://bucket/runs/17"),
        ("s3a://bucket//runs/./17/", "bucket/runs/17", "s3://bucket/runs/17"),
        ("gs://bucket/runs/17/", "bucket/runs/17", "gs://bucket/runs/17"),
        ("gcs://bucket", "bucket", "gs://bucket"),
        ("memory://runs/17/", "/runs/17", "memory://runs/17"),
    ],
)
def test_remote_urls(given: str, path: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"token": "anon"} if given.startswith("g") else None
    location = locate(given, "directory", options)
    assert (location.path, location.url, location.local) == (path, url, None)
    assert str(location / "log.csv") == f"{url}/log.csv"


def test_what_the_environment_says_counts_when_a_location_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = locate("s3://bucket/x", "directory")
    assert locate("s3://bucket/x", "directory").filesystem is not first.filesystem
    assert locate("s3://bucket/x", "directory") == first
    assert not first.filesystem.dircache.use_listings_cache


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "`log_dir` is empty"),
        ("  ", "`log_dir` is empty"),
        ("s3:/bucket/run", "one slash where a URL has two"),
        ("s3://", "must be a path in a bucket"),
        ("s3://bucket/../other", "must be a path in a bucket"),
        ("s3://bucket/run*", r"without any of \* \? \[ \]"),
        ("simplecache::s3://bucket/run", "must be a single path: without `::`"),
        ("sss://bucket/run", "fsspec does not know the protocol 'sss'. It knows .*, s3, "),
    ],
)
def test_urls_that_do_not_fit(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        locate(url, "log_dir")
    assert "`log_dir" in str(caught.value)


def test_pathlib_loses_a_slash() -> None:
    with pytest.raises(ConfigurationError, match="one slash where a URL has two"):
        locate(Path("s3://bucket/run"), "log_dir")


@pytest.mark.parametrize(
    ("url", "module", "remedy"),
    [
        ("s3://b/run", "s3fs", r'pip install "distrib\[s3\]"'),
        ("gs://b/run", "gcsfs", r'pip install "distrib\[gcs\]"'),
        ("abfs://b/run", "adlfs", "Install adlfs to access Azure"),
    ],
)
def test_a_missing_package_is_named(
    url: str, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, Any] = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(loaded, url.partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=remedy):
        locate(url, "directory")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("s3://b/run", {"endpont_url": "x"}, "no option 'endpont_url'; did you mean 'endpoint_"),
        ("gs://b/run", {"tokn": "x"}, "no option 'tokn'; did you mean 'token'"),
        ("s3://b/run", {"zzz": 1}, "no option 'zzz'; it knows anon, "),
        ("s3://b/run", {"key": "a", "username": "hush"}, "cannot be set up: .*key or username"),
        ("dir://b/run", {"target_protocol": "sss"}, "cannot be set up: Protocol not known: sss"),
        ("/run", {"key": "a"}, "on the local disk, which takes no `storage_options`"),
    ],
)
def test_options_that_do_not_fit(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        locate(url, "directory", options)
    assert "hush" not in str(caught.value)


def test_parameters_of_the_server_are_passed_on() -> None:
    options = {"ServerSideEncryption": "AES256", "use_listings_cache": True}
    filesystem = locate("s3://bucket/run", "directory", options).filesystem
    assert filesystem.kwargs == {"ServerSideEncryption": "AES256"}
    assert not filesystem.dircache.use_listings_cache


def test_users_in_urls_are_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        locate("sss://me:hush@host/run", "directory")
    assert "sss://***@host/run" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_another_place_in_the_same_file_system(tmp_path: Path) -> None:
    place = locate("s3://bucket/{epoch}.keras", "filepath")
    other = relocate(place, "s3://bucket//3.keras", "filepath")
    assert other.filesystem is place.filesystem
    assert other.url == "s3://bucket/3.keras"
    assert relocate(locate("{e}", "filepath"), "3", "filepath").local == tmp_path / "3"
    with pytest.raises(ConfigurationError, match="must be a single path"):
        relocate(place, "s3://bucket/*", "filepath")
